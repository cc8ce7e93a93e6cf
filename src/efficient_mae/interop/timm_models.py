"""timm: the encoder as timm's VisionTransformer, and as a folder that `timm.create_model` loads."""

import json
from pathlib import Path
from typing import Any

import torch

from efficient_mae.backbones import Backbone
from efficient_mae.data import crop_share
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.interop.files import ImageStatistics, save_encoder
from efficient_mae.methods import Method, MethodConfig, backbone_of


@torch_seeded(0)
def to_timm(model: Method | Backbone) -> Any:
    """timm's model with the encoder's weights: a VisionTransformer; `forward_features` gives the same tokens.

    Args:
        model: an encoder or a whole model; its weights are copied.
    """
    encoder = backbone_of(model)
    made = encoder.timm_class(**encoder.timm_arguments, num_classes=0).to(next(encoder.parameters()))
    made.load_state_dict(encoder.state_dict())
    return made.train(model.training)


def save_timm(folder: Path, model: Method | Backbone, statistics: ImageStatistics) -> None:
    """Write a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.

    Args:
        folder: exists.
        model: whose encoder is written.
        statistics: of its images; timm's `resolve_model_data_config` gives them back, with how they were cropped.

    Raises:
        OSError: the disk is full or not writable.
    """
    save_encoder(folder / "model.safetensors", model, statistics)
    encoder = backbone_of(model)
    arguments = encoder.timm_arguments | {"num_classes": 0}
    config = {
        "architecture": encoder.timm_name,
        "num_classes": 0,
        "num_features": encoder.dims[-1],
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [encoder.in_chans, *encoder.img_size],
            "fixed_input_size": True,
            "crop_pct": crop_share(encoder.img_size, statistics.size),
            "crop_mode": "center",
            "interpolation": "bicubic",
            "mean": statistics.mean,
            "std": statistics.std,
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_snippet(model: Method | MethodConfig | Backbone, file: Path) -> str:
    """Python that loads an exported encoder with timm and safetensors alone."""
    if isinstance(model, MethodConfig):
        with torch.device("meta"):
            model = model.make_backbone()
    encoder = backbone_of(model)
    arguments = ", ".join(f"{name}={value!r}" for name, value in encoder.timm_arguments.items())
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
