"""timm: the encoder as timm's VisionTransformer, and as a folder that `timm.create_model` loads."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from efficient_mae.backbones import Backbone
from efficient_mae.data import crop_share
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.interop.classifiers import Classifier, save_classifier
from efficient_mae.interop.files import save_encoder
from efficient_mae.interop.headers import Head, ImageStatistics
from efficient_mae.methods import Method, MethodConfig, backbone_of


@torch_seeded(0)
def to_timm(model: Method | Backbone, drop_path: float = 0.0) -> Any:
    """timm's model with the encoder's weights: a VisionTransformer; `forward_features` gives the same tokens.

    Args:
        model: an encoder or a whole model; its weights are copied.
        drop_path: share of the images for which the last block is skipped in training; grows from 0 in the first.
    """
    encoder = backbone_of(model)
    arguments = encoder.timm_arguments | {"drop_path_rate": drop_path, "num_classes": 0}
    made = encoder.timm_class(**arguments).to(next(encoder.parameters()))
    made.load_state_dict(encoder.state_dict())
    return made.train(model.training)


def save_timm(folder: Path, model: Method | Backbone | Classifier, statistics: ImageStatistics) -> None:
    """Write a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.

    transformers' AutoModel and, of a classifier, AutoModelForImageClassification load it too, by means of timm.

    Args:
        folder: exists.
        model: whose encoder is written; or a classifier.
        statistics: of its images; timm's `resolve_model_data_config` gives them back, with how they were cropped.

    Raises:
        OSError: the disk is full or not writable.
    """
    file = folder / "model.safetensors"
    if isinstance(model, Classifier):
        save_classifier(file, model)
        encoder, head = model.encoder, model.head
    else:
        save_encoder(file, model, statistics)
        encoder, head = backbone_of(model), None
    _write_json(folder / "config.json", timm_config(encoder, statistics, head))


def describe_run(
    file: Path, names: Iterable[str], encoder: Backbone, statistics: ImageStatistics, head: Head | None = None
) -> None:
    """Make the directory of an encoder's or classifier's file one that is loaded as :func:`save_timm`'s is.

    Args:
        file: the only safetensors file of the directory; may be written later.
        names: of its tensors.
        encoder: that it is of, or holds; its numbers don't matter.
        statistics: of its images.
        head: of a classifier.

    Raises:
        OSError: the disk is full or not writable.
    """
    _write_json(file.parent / "config.json", timm_config(encoder, statistics, head))
    # transformers looks for model.safetensors, or for what says where each tensor is.
    index = {"metadata": {}, "weight_map": dict.fromkeys(sorted(names), file.name)}
    _write_json(file.parent / "model.safetensors.index.json", index)


def timm_config(encoder: Backbone, statistics: ImageStatistics, head: Head | None = None) -> dict[str, Any]:
    """What timm's `config.json` says of an encoder, or, with a head, of a classifier."""
    made = {} if head is None else encoder.classifier_arguments(len(head.classes), head.pool, head.fc_norm)
    num_classes = made.pop("num_classes", 0)
    return {
        "architecture": encoder.timm_name,
        "num_classes": num_classes,
        "num_features": encoder.dims[-1],
        "model_args": encoder.timm_arguments | made,
        "pretrained_cfg": {
            "input_size": [encoder.in_chans, *encoder.img_size],
            "fixed_input_size": True,
            "crop_pct": crop_share(encoder.img_size, statistics.size),
            "crop_mode": "center",
            "interpolation": "bicubic",
            "mean": statistics.mean,
            "std": statistics.std,
            "num_classes": num_classes,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    } | ({} if head is None else {"label_names": head.classes})


def _write_json(file: Path, content: dict[str, Any]) -> None:
    replace_file(file, (json.dumps(content, indent=2) + "\n").encode())


def timm_snippet(folder: Path) -> str:
    """Python that loads what :func:`save_timm` or :func:`describe_run` made, in one call."""
    return f"""\
import timm

vit = timm.create_model({quoted(f"local-dir:{folder}")}, pretrained=True)
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(vit))
"""


def quoted(path: Path | str) -> str:
    """A path as Python spells it in double quotes, which JSON does alike."""
    return json.dumps(str(path), ensure_ascii=False)


def load_snippet(model: Method | MethodConfig | Backbone, file: Path) -> str:
    """Python that loads an encoder with timm: in one call where :func:`describe_run` was, else with safetensors."""
    if (file.parent / "config.json").is_file():
        return timm_snippet(file.parent)
    if isinstance(model, MethodConfig):
        with torch.device("meta"):
            model = model.make_backbone()
    encoder = backbone_of(model)
    arguments = ", ".join(f"{name}={value}" for name, value in encoder.timm_arguments.items())
    image, width = arguments.split(", embed_dim")
    name = encoder.timm_class.__name__
    return f"""\
from safetensors.torch import load_file
from timm.models import {name}

vit = {name}(
    {image},
    embed_dim{width}, num_classes=0,
)
vit.load_state_dict(load_file({str(file)!r}))
"""
