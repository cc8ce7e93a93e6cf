"""SimMIM's own `.pth` files: the encoder's names after `encoder.`, patches merged at a stage's end."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from efficient_mae.backbones import Beit
from efficient_mae.engine.storage.checkpoint import load_tensors
from efficient_mae.interop.authors.beit import architecture_named, beit_sizes
from efficient_mae.methods.simmim import SimMIM, SimMIMConfig

_TABLE = "relative_position_bias_table"
# What the authors' files hold beside weights: both follow from the sizes.
_BUFFERS = ("relative_position_index", "attn_mask")


def is_simmim(weights: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is one of SimMIM's pre-training files."""
    return "encoder.mask_token" in weights


def read_simmim(file: Path, weights: Mapping[str, Tensor]) -> SimMIM:
    """The model of a pre-training file.

    A Swin's weights don't say for images of what size they are. It is taken for the size at which the last stage is
    one window, as it is of all models that the authors published: 192 pixels.

    Raises:
        InputError: another architecture.
    """
    tensors = {_our_name(name): value for name, value in weights.items() if not name.endswith(_BUFFERS)}
    with architecture_named(file, "SimMIM"):
        config = _vit(tensors) if "cls_token" in tensors else _swin(tensors)
    model = SimMIM(config)
    load_tensors(tensors, model, file)
    return model


def _our_name(name: str) -> str:
    name = name.removeprefix("encoder.")
    return re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample", name)


def _vit(tensors: Mapping[str, Tensor]) -> SimMIMConfig:
    sizes = beit_sizes(tensors)
    return SimMIMConfig(family=Beit.family, window_size=None, mask_unit=2 * sizes["patch_size"], **sizes)


def _swin(tensors: Mapping[str, Tensor]) -> SimMIMConfig:
    width, in_chans, patch, _ = tensors["patch_embed.proj.weight"].shape
    blocks = {(int(m[1]), int(m[2])) for name in tensors if (m := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name))}
    depth = tuple(sum(stage == which for which, _ in blocks) for stage in sorted({stage for stage, _ in blocks}))
    tables = [tensors[f"layers.{stage}.blocks.0.attn.{_TABLE}"].shape for stage in range(len(depth))]
    windows = [(math.isqrt(rows) + 1) // 2 for rows, _ in tables]
    stride = patch * 2 ** (len(depth) - 1)
    return SimMIMConfig(
        family="swin",
        img_size=(windows[-1] * stride, windows[-1] * stride),
        patch_size=patch,
        in_chans=in_chans,
        embed_dim=width,
        depth=depth,
        num_heads=tuple(heads for _, heads in tables),
        window_size=windows[0],
        mlp_ratio=len(tensors["layers.0.blocks.0.mlp.fc1.bias"]) / width,
        mask_unit=stride,
    )
