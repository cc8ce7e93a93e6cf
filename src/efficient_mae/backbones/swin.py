"""Swin Transformers, V1 and V2: timm's, with a mask token in place of hidden patches.

Windows lie on a full grid, so hidden patches cannot be left out.

B images, H x W patches, rows x columns places of the last stage, dim the first stage's width, D the last one's.
"""

from typing import Any, cast

from jaxtyping import Bool, Float
from timm.models import swin_transformer, swin_transformer_v2
from torch import Tensor, nn

from efficient_mae.backbones.base import Backbone, check_sizes, hide
from efficient_mae.backbones.patches import as_pair, grid_size
from efficient_mae.backbones.positions import stretch_biases
from efficient_mae.backbones.sizes import SWIN_PATCH_SIZE, SWIN_SIZES
from efficient_mae.errors import InputError
from efficient_mae.ranges import Positive, PositiveInt, check_range

# A table of biases is stretched with its window; V2 computes its biases.
_TABLE = ".relative_position_bias_table"


class _Stages(Backbone):
    """What both versions share; they are built by the arguments of :func:`_settle`, and `drop_path_rate`.

    That is the share of the images for which the last block is skipped; it grows from 0 in the first block.
    """

    pools = ("avg",)
    ARGUMENTS = ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "window_size", "mlp_ratio")
    depth: tuple[int, ...]
    window_size: int
    patch_embed: nn.Module
    layers: nn.Module
    norm: nn.Module

    def note(self, settled: dict[str, Any]) -> None:
        """Keep what it is made of."""
        for name, value in settled.items():
            setattr(self, name, value)
        stages = range(len(self.depth))
        self.grid_size = grid_size(self.img_size, self.patch_size)
        self.strides = tuple(self.patch_size * 2**stage for stage in stages)
        self.dims = tuple(settled["embed_dim"] * 2**stage for stage in stages)

    @property
    def timm_arguments(self) -> dict[str, Any]:
        return _for_timm(self.arguments) | {"drop_path_rate": 0.0}

    def forward_masked(
        self, images: Float[Tensor, "B C h w"], mask: Bool[Tensor, "B H W"], mask_token: Float[Tensor, "1 1 dim"]
    ) -> Float[Tensor, "B rows columns D"]:
        self.check_images(images)
        return self.norm(self.layers(hide(self.patch_embed(images), mask, mask_token)))

    def resized(self, **changed: Any) -> Backbone:
        """As of any backbone; windows keep their share of the grid where that is a whole number of places."""
        arguments = self.arguments | changed
        grid = grid_size(as_pair(arguments["img_size"]), arguments["patch_size"])
        sides = {self.window_size * new / old for new, old in zip(grid, self.grid_size, strict=True)}
        if len(sides) == 1 and (side := sides.pop()).is_integer():
            arguments["window_size"] = int(side)
        return type(self)(**arguments)

    def fit_positions(self, weights: dict[str, Tensor], grid_size: tuple[int, int]) -> None:
        for name, module in self.named_modules():
            if (table := name + _TABLE) in weights:
                stage, new = int(name.split(".")[1]), cast(tuple[int, int], module.window_size)
                old = _window(len(weights[table]), grid_size[0] // 2**stage, grid_size[1] // 2**stage)
                weights[table] = stretch_biases(weights[table], old, new)


class Swin(swin_transformer.SwinTransformer, _Stages):  # pyright: ignore[reportIncompatibleMethodOverride]
    """timm's Swin Transformer, without a head."""

    family = "swin"
    timm_class = swin_transformer.SwinTransformer

    def __init__(self, drop_path_rate: float = 0.0, **arguments: Any):
        settled = _settle(**arguments)
        super().__init__(**_for_timm(settled), num_classes=0, drop_path_rate=drop_path_rate)
        self.note(settled)

    def forward_features(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Float[Tensor, "B C h w"]
    ) -> Float[Tensor, "B rows columns D"]:
        self.check_images(images)
        return super().forward_features(images)

    @property
    def timm_name(self) -> str:
        return _timm_name(self, "swin_{}_patch4_window7_224", ("tiny", "small", "base", "large"))


class SwinV2(swin_transformer_v2.SwinTransformerV2, _Stages):  # pyright: ignore[reportIncompatibleMethodOverride]
    """timm's Swin Transformer V2, without a head: normalised after each branch, cosine attention, computed biases."""

    family = "swinv2"
    timm_class = swin_transformer_v2.SwinTransformerV2

    def __init__(self, drop_path_rate: float = 0.0, **arguments: Any):
        settled = _settle(**arguments)
        super().__init__(**_for_timm(settled), num_classes=0, drop_path_rate=drop_path_rate)
        self.note(settled)

    def forward_features(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Float[Tensor, "B C h w"]
    ) -> Float[Tensor, "B rows columns D"]:
        self.check_images(images)
        return super().forward_features(images)

    @property
    def timm_name(self) -> str:
        return _timm_name(self, "swinv2_{}_window12_192", ("base", "large"))


def _settle(
    img_size: int | tuple[int, int] = 224,
    patch_size: int = SWIN_PATCH_SIZE,
    in_chans: int = 3,
    embed_dim: int = 96,
    depth: tuple[int, ...] = (2, 2, 6, 2),
    num_heads: tuple[int, ...] = (3, 6, 12, 24),
    window_size: int = 7,
    mlp_ratio: float = 4.0,
) -> dict[str, Any]:
    """What a Swin is built by, checked.

    Args:
        img_size: pixels, one number or (height, width).
        patch_size: in pixels; divides the image.
        in_chans: C.
        embed_dim: of the first stage; each next one's is twice as wide.
        depth: blocks of each stage.
        num_heads: of each stage.
        window_size: side of a window, in places; divides each stage's grid, unless that is smaller.
        mlp_ratio: width of a block's MLP, times that of its stage.

    Raises:
        InputError: a number below 1, or the patch size does not divide the image, or the heads a width, or the window
            a grid.
    """
    check_sizes(in_chans=in_chans, embed_dim=embed_dim, window_size=window_size)
    for name, stages in {"depth": depth, "num_heads": num_heads}.items():
        check_range(name, stages, tuple[PositiveInt, ...])
    check_range("mlp_ratio", mlp_ratio, Positive)
    pixels = as_pair(img_size)
    rows, columns = grid_size(pixels, patch_size)
    if not depth or len(depth) != len(num_heads):
        raise InputError(f"num_heads={num_heads}: must be one number for each of {len(depth)} stages")
    for stage, heads in enumerate(num_heads):
        if embed_dim * 2**stage % heads:
            raise InputError(f"num_heads={num_heads}: {heads} does not divide the width {embed_dim * 2**stage}")
        scale = 2**stage
        if rows % scale or columns % scale:
            raise InputError(
                f"img_size={pixels[0]}x{pixels[1]}: {rows} x {columns} patches cannot be halved {stage} times, as "
                f"{len(depth)} stages do: take multiples of {patch_size * 2 ** (len(depth) - 1)} pixels"
            )
        if any(side // scale > window_size and side // scale % window_size for side in (rows, columns)):
            raise InputError(
                f"window_size={window_size} does not divide the {rows // scale} x {columns // scale} places of stage "
                f"{stage + 1} of images of {pixels[0]}x{pixels[1]}: take another window, or multiples of "
                f"{window_size * patch_size * 2 ** (len(depth) - 1)} pixels"
            )
    return {
        "img_size": pixels,
        "patch_size": patch_size,
        "in_chans": in_chans,
        "embed_dim": embed_dim,
        "depth": tuple(depth),
        "num_heads": tuple(num_heads),
        "window_size": window_size,
        "mlp_ratio": mlp_ratio,
    }


def _for_timm(settled: dict[str, Any]) -> dict[str, Any]:
    return {"depths" if name == "depth" else name: value for name, value in settled.items()}


def _window(offsets: int, rows: int, columns: int) -> tuple[int, int]:
    """The window, at most as large as the grid, in which there are so many relative positions."""
    windows = ((min(side, rows), min(side, columns)) for side in range(1, max(rows, columns) + 1))
    return next(one for one in windows if (2 * one[0] - 1) * (2 * one[1] - 1) == offsets)


def _timm_name(model: Any, form: str, sizes: tuple[str, ...]) -> str:
    near = [size for size in sizes if SWIN_SIZES[size].embed_dim <= model.dims[0]]
    return form.format(max(near, key=lambda size: SWIN_SIZES[size].embed_dim, default=sizes[0]))
