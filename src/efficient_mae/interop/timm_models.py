"""timm: the encoder as timm's VisionTransformer, and as a folder that `timm.create_model` loads."""

import json
from pathlib import Path

import timm.models.vision_transformer as timm_vit

from efficient_mae.backbones import SIZES, VisionTransformer
from efficient_mae.data.images.transforms import EVAL_MARGIN
from efficient_mae.interop.files import ImageStatistics, encoder_arguments, save_encoder
from efficient_mae.methods.mae import MAEConfig


def to_timm(model: VisionTransformer) -> timm_vit.VisionTransformer:
    """timm's VisionTransformer with the encoder's weights; `forward_features` gives the same tokens.

    Args:
        model: an encoder or a whole autoencoder; its weights are copied.
    """
    vit = timm_vit.VisionTransformer(**encoder_arguments(model), num_classes=0).to(model.cls_token)
    weights = model.state_dict()
    vit.load_state_dict({name: weights[name] for name in vit.state_dict()})
    return vit.train(model.training)


def save_timm(folder: Path, model: VisionTransformer, statistics: ImageStatistics) -> None:
    """Write a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.

    Args:
        folder: exists.
        model: whose encoder is written.
        statistics: of its images; timm's `resolve_model_data_config` gives them back.

    Raises:
        OSError: the disk is full or not writable.
    """
    save_encoder(folder / "model.safetensors", model, statistics)
    arguments = encoder_arguments(model) | {"num_classes": 0}
    config = {
        "architecture": _architecture(model),
        "num_classes": 0,
        "num_features": model.embed_dim,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [model.in_chans, *model.img_size],
            "fixed_input_size": True,
            "crop_pct": 1 / EVAL_MARGIN,
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


def load_snippet(model: MAEConfig | VisionTransformer, file: Path) -> str:
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
