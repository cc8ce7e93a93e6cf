"""timm: the encoder as timm's VisionTransformer, and as a folder that `timm.create_model` loads."""

import json
from pathlib import Path

import timm.models.vision_transformer as timm_vit

from efficient_mae.backbones import SIZES, VisionTransformer
from efficient_mae.data import crop_share
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.interop.files import ImageStatistics, encoder_arguments, save_encoder
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


def save_timm(folder: Path, model: Method | VisionTransformer, statistics: ImageStatistics) -> None:
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
    arguments = encoder_arguments(encoder) | {"num_classes": 0}
    config = {
        "architecture": _architecture(encoder),
        "num_classes": 0,
        "num_features": encoder.embed_dim,
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


def _architecture(model: VisionTransformer) -> str:
    """The name of timm's that is nearest; `model_args` says all, so that any plain ViT's name would do."""
    name = next((name for name, size in SIZES.items() if size.embed_dim == model.embed_dim), "base")
    return f"vit_{name}_patch{14 if name == 'huge' else 16}_224"


def load_snippet(model: Method | MethodConfig | VisionTransformer, file: Path) -> str:
    """Python that loads an exported encoder with timm and safetensors alone."""
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
