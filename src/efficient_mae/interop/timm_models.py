"""timm: the encoder as timm's VisionTransformer, and as a folder that `timm.create_model` loads."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm.models.vision_transformer as timm_vit

from efficient_mae.backbones import SIZES, VisionTransformer
from efficient_mae.data import crop_share
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.interop.classifiers import Classifier, head_arguments, save_classifier
from efficient_mae.interop.files import encoder_arguments, save_encoder
from efficient_mae.interop.headers import Head, ImageStatistics
from efficient_mae.methods import Method, MethodConfig, backbone_of


@torch_seeded(0)
def to_timm(model: Method | VisionTransformer) -> timm_vit.VisionTransformer:
    """timm's VisionTransformer with the encoder's weights; `forward_features` gives the same tokens.

    Args:
        model: an encoder or a whole model; its weights are copied.
    """
    encoder = backbone_of(model)
    vit = timm_vit.VisionTransformer(**encoder_arguments(encoder), num_classes=0).to(encoder.cls_token)
    vit.load_state_dict(encoder.state_dict())
    return vit.train(model.training)


def save_timm(folder: Path, model: Method | VisionTransformer | Classifier, statistics: ImageStatistics) -> None:
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
        arguments, head = model.arguments, model.head
    else:
        save_encoder(file, model, statistics)
        arguments, head = encoder_arguments(model), None
    _write_json(folder / "config.json", timm_config(arguments, statistics, head))


def describe_run(
    file: Path,
    names: Iterable[str],
    arguments: dict[str, Any],
    statistics: ImageStatistics,
    head: Head | None = None,
) -> None:
    """Make the directory of an encoder's or classifier's file one that is loaded as :func:`save_timm`'s is.

    Args:
        file: the only safetensors file of the directory; may be written later.
        names: of its tensors.
        arguments: :func:`encoder_arguments`.
        statistics: of its images.
        head: of a classifier.

    Raises:
        OSError: the disk is full or not writable.
    """
    _write_json(file.parent / "config.json", timm_config(arguments, statistics, head))
    # transformers looks for model.safetensors, or for what says where each tensor is.
    index = {"metadata": {}, "weight_map": dict.fromkeys(sorted(names), file.name)}
    _write_json(file.parent / "model.safetensors.index.json", index)


def timm_config(arguments: dict[str, Any], statistics: ImageStatistics, head: Head | None = None) -> dict[str, Any]:
    """What timm's `config.json` says of an encoder, or, with a head, of a classifier."""
    img_size, width = tuple(arguments["img_size"]), arguments["embed_dim"]
    head_made = {} if head is None else head_arguments(head)
    num_classes = head_made.pop("num_classes", 0)
    return {
        "architecture": _architecture(width),
        "num_classes": num_classes,
        "num_features": width,
        "model_args": arguments | head_made,
        "pretrained_cfg": {
            "input_size": [arguments["in_chans"], *img_size],
            "fixed_input_size": True,
            "crop_pct": crop_share(img_size, statistics.size),
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


def _architecture(width: int) -> str:
    """The name of timm's that is nearest; `model_args` says all, so that any plain ViT's name would do."""
    name = next((name for name, size in SIZES.items() if size.embed_dim == width), "base")
    return f"vit_{name}_patch{14 if name == 'huge' else 16}_224"


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


def load_snippet(model: Method | MethodConfig | VisionTransformer, file: Path) -> str:
    """Python that loads an encoder with timm: in one call where :func:`describe_run` was, else with safetensors."""
    if (file.parent / "config.json").is_file():
        return timm_snippet(file.parent)
    arguments = ", ".join(f"{name}={value}" for name, value in encoder_arguments(model).items())
    image, width = arguments.split(", embed_dim")
    return f"""\
from safetensors.torch import load_file
from timm.models import VisionTransformer

vit = VisionTransformer(
    {image},
    embed_dim{width}, num_classes=0,
)
vit.load_state_dict(load_file({str(file)!r}))
"""
