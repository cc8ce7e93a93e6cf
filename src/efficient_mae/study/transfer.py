"""Table 10: encoders that are carried to segmentation and detection; the sizes of that, and its data.

    DATA/ade20k/     segmentation, in ADE20K's layout
    DATA/coco/       detection, in COCO's, whose training images encoders are pre-trained on, without labels
    DATA/imagenet/   what they are pre-trained on instead in the paper's own preset

`emae scenes` writes such a folder, but for the last.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficient_mae.data import DataChoice, open_source
from efficient_mae.errors import InputError
from efficient_mae.tasks.detect.config import DetectConfig
from efficient_mae.tasks.detect.data import open_coco
from efficient_mae.tasks.segment.config import SegmentConfig
from efficient_mae.tasks.segment.run import open_data

# The folder that each judge takes, and that of what the paper pre-trains on.
FOLDERS = {"segment": "ade20k", "detect": "coco"}
_PRETRAINED = "imagenet"
# Figures of the judges, from 0 to 1, and how they are called.
FIGURES = {"miou": "mIoU", "macc": "mAcc", "box_ap": "box AP", "mask_ap": "mask AP"}
# Training images of what the paper judges by.
PUBLISHED_IMAGES = {"segment": 20_210, "detect": 117_266}


@dataclass(frozen=True)
class TransferSize:
    """A size of the study.

    Attributes:
        summary: one line.
        images: training images that it is made for.
        pretrain: settings of `emae pretrain`, as of :class:`efficient_mae.study.presets.Preset`.
        judges: settings of the commands that judge, by name.
    """

    summary: str
    images: int
    pretrain: Mapping[str, Any]
    judges: Mapping[str, Mapping[str, Any]]


def open_transfer(data: str, choice: DataChoice, judges: Mapping[str, Mapping[str, Any]], is_paper: bool) -> str:
    """Check a folder for Table 10; return what encoders are pre-trained on.

    Args:
        choice: where what they are pre-trained on leaves one.
        judges: settings of the commands that judge, by name.
        is_paper: they are pre-trained on ImageNet.

    Raises:
        InputError: a folder is missing, or something is wrong in it.
    """
    root = Path(data)
    wanted = [*FOLDERS.values(), *[_PRETRAINED] * is_paper]
    if missing := [name for name in wanted if not (root / name).is_dir()]:
        holds = f"{', '.join(wanted)}, or links to them" if is_paper else "what emae scenes writes"
        raise InputError(f"data={data}: there is no {root / missing[0]}; table10 takes a folder that holds {holds}")
    folders: dict[str, Any] = {judge: str(root / folder) for judge, folder in FOLDERS.items()}
    open_data(SegmentConfig(data=folders["segment"], out="", **judges["segment"]))
    coco = open_coco(DetectConfig(data=folders["detect"], out="", **judges["detect"]))
    pretrained = str(root / _PRETRAINED) if is_paper else str(coco.train.folder)
    open_source(pretrained, choice=choice)
    return pretrained


_SHARED = {"num_workers": 0}
# Scenes of few objects of few pixels: no block is skipped, all layers learn at the same rate, images keep about their
# size, and heads are narrow.
_LIGHT = {"layer_decay": 1.0, "drop_path": 0.0, "weight_decay": 0.05, "eval_every": 1000, **_SHARED}
_SEGMENT = {**_LIGHT, "reduce_zero_label": True, "dropout": 0.0, "resize_range": (1.0, 1.0)}
_DETECT = {**_LIGHT, "window_size": 4, "jitter": (0.8, 1.25), "clip_grad": 1.0}

SIZES = {
    "smoke": TransferSize(
        "seconds: 4 x 4 patches, one block; shows that everything runs",
        8,
        {
            "model": "vit_tiny_patch8",
            "img_size": 32,
            "in_chans": 3,
            "depth": 1,
            "decoder_depth": 1,
            "decoder_embed_dim": 32,
            "epochs": 1,
            "batch_size": 4,
            "panel_every": 1000,
            **_SHARED,
        },
        {
            "segment": {**_SEGMENT, "img_size": 32, "head_width": 8, "aux_width": 8, "epochs": 1, "batch_size": 4},
            "detect": {
                **_DETECT,
                "img_size": 32,
                "global_blocks": 0,
                "width": 16,
                "proposals": 16,
                "epochs": 1,
                "batch_size": 4,
            },
        },
    ),
    "cpu": TransferSize(
        "2 cores: 8 x 8 patches, 4 blocks, 2,000 scenes of 64 pixels; a cell takes minutes",
        2000,
        {
            "model": "vit_tiny_patch8",
            "img_size": 64,
            "in_chans": 3,
            "depth": 4,
            "decoder_depth": 1,
            "decoder_embed_dim": 96,
            "epochs": 60,
            "batch_size": 16,
            "base_lr": 8e-3,
            "warmup_epochs": 3,
            "panel_every": 1000,
            **_SHARED,
        },
        {
            "segment": {
                **_SEGMENT,
                "img_size": 64,
                "head_width": 32,
                "aux_width": 16,
                "epochs": 8,
                "batch_size": 4,
                "base_lr": 0.016,
                "warmup_epochs": 0.5,
            },
            "detect": {
                **_DETECT,
                "img_size": 64,
                "global_blocks": 2,
                "width": 32,
                "proposals": 32,
                "epochs": 6,
                "batch_size": 4,
                "base_lr": 0.064,
                "warmup_epochs": 1,
            },
        },
    ),
}
# Presets that have sizes: the paper's are its recipes.
SIZED = (*SIZES, "paper")
