"""BEiT's encoder: timm's, with a mask token in place of hidden patches.

B images, N patches of an image, D width.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from timm.models import beit as timm_beit
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from efficient_mae.backbones.base import Backbone, check_sizes, hide
from efficient_mae.backbones.patches import as_pair, grid_size
from efficient_mae.backbones.positions import stretch_biases
from efficient_mae.backbones.sizes import SIZES
from efficient_mae.backbones.vit import VisionTransformer, check_heads
from efficient_mae.errors import InputError


class Beit(timm_beit.Beit, Backbone):
    """timm's Beit with class token, final norm and, in place of positions, one table of biases by relative position.

    Args:
        img_size: pixels, one number or (height, width).
        patch_size: P, in pixels; divides the image.
        in_chans: C.
        embed_dim: D.
        depth: number of blocks.
        num_heads: heads of each block.
        init_values: with which layer scale begins.
        drop_path_rate: share of the images for which the last block is skipped; grows from 0 in the first block.

    Raises:
        InputError: a number out of its range, or the patch size does not divide the image, or the heads the width.
    """

    family = "beit"
    ARGUMENTS = (*VisionTransformer.ARGUMENTS, "init_values")
    timm_class = timm_beit.Beit

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        init_values: float = 0.1,
        drop_path_rate: float = 0.0,
    ):
        check_sizes(in_chans=in_chans, embed_dim=embed_dim, depth=depth, num_heads=num_heads)
        check_heads(num_heads, embed_dim)
        pixels = as_pair(img_size)
        grid = grid_size(pixels, patch_size)
        super().__init__(
            img_size=pixels,
            patch_size=patch_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            num_classes=0,
            global_pool="token",
            init_values=init_values,
            drop_path_rate=drop_path_rate,
            use_abs_pos_emb=False,
            use_shared_rel_pos_bias=True,
        )
        self.rel_pos_bias: timm_beit.RelativePositionBias
        self.img_size, self.grid_size, self.patch_size = pixels, grid, patch_size
        self.in_chans, self.depth, self.num_heads = in_chans, depth, num_heads
        self.strides, self.dims = (patch_size,), (embed_dim,)
        self.init_values, self.drop_path_rate = init_values, drop_path_rate

    @property
    def timm_arguments(self) -> dict[str, Any]:
        fixed = {"use_abs_pos_emb": False, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}
        return self.arguments | fixed | {"global_pool": "token"}

    @property
    def timm_name(self) -> str:
        return f"beit_{'large' if self.embed_dim >= SIZES['large'].embed_dim else 'base'}_patch16_224"

    def forward_features(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Float[Tensor, "B C h w"]
    ) -> Float[Tensor, "B tokens D"]:
        """Normalised features of the class token and of all patches, as timm gives them."""
        self.check_images(images)
        return self._encode(self.patch_embed(images))

    def forward_masked(
        self, images: Float[Tensor, "B C h w"], mask: Bool[Tensor, "B H W"], mask_token: Float[Tensor, "1 1 D"]
    ) -> Float[Tensor, "B H W D"]:
        self.check_images(images)
        return self._encode(hide(self.patch_embed(images), mask, mask_token))[:, 1:].unflatten(1, self.grid_size)

    def classifier_arguments(self, num_classes: int, pool: str, fc_norm: bool) -> dict[str, Any]:
        if fc_norm != (pool == "avg"):
            raise InputError(f"pool={pool}: timm's Beit normalises after a mean, and before a class token is taken")
        return super().classifier_arguments(num_classes, pool, fc_norm)

    def fit_positions(self, weights: dict[str, Tensor], grid_size: tuple[int, int]) -> None:
        name = "rel_pos_bias.relative_position_bias_table"
        table, of_class_token = weights[name][:-3], weights[name][-3:]
        weights[name] = torch.cat([stretch_biases(table, grid_size, self.grid_size), of_class_token])

    def _encode(self, patches: Float[Tensor, "B N D"]) -> Float[Tensor, "B tokens D"]:
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        bias = self.rel_pos_bias()
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, bias, use_reentrant=False)
            else:
                x = block(x, bias)
        return self.norm(x)
