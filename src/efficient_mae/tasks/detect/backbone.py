"""ViTDet's backbone: a plain ViT whose blocks attend within windows, but for a few, and a pyramid of its last map.

Source: Li et al. 2022, Exploring Plain Vision Transformer Backbones for Object Detection.

B images, C channels, h x w pixels, H x W patches, N of them, D width, d width of a head.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.norm import LayerNorm2d
from timm.models.vision_transformer_sam import get_rel_pos, window_partition, window_unpartition
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import Conv2dNormActivation

# Of the layer norms over channels.
_EPS = 1e-6
ChannelNorm: Callable[[int], nn.Module] = partial(LayerNorm2d, eps=_EPS)


class RelativePositions(nn.Module):
    """A block's tables of relative positions, decomposed into rows and columns, which its heads share.

    Args:
        grid: (height, width) in patches of what the block attends within.
        head_dim: d.

    Attributes:
        rel_pos_h, rel_pos_w: a vector for each distance of rows, and of columns; no distance counts at first.
    """

    def __init__(self, grid: tuple[int, int], head_dim: int):
        super().__init__()
        self.rel_pos_h, self.rel_pos_w = (nn.Parameter(torch.zeros(2 * side - 1, head_dim)) for side in grid)


class WindowedViT(nn.Module):
    """What makes a plain ViT ViTDet's: windows, a few blocks that attend everywhere, and relative positions.

    The encoder keeps its weights; it is no part of this module.

    Args:
        encoder: timm's VisionTransformer.
        grid: (H, W) of the images that it is to see; relative positions stretch for others.
        window_size: side of a window, in patches.
        global_blocks: number of blocks that attend everywhere, evenly spread; the last is one of them.
        grad_checkpointing: recompute each block in the backward pass.
    """

    def __init__(
        self,
        encoder: Any,
        grid: tuple[int, int],
        window_size: int = 14,
        global_blocks: int = 4,
        grad_checkpointing: bool = False,
    ):
        super().__init__()
        depth, attn = len(encoder.blocks), encoder.blocks[0].attn
        self.pretrained_grid: tuple[int, int] = encoder.patch_embed.grid_size
        self.grad_checkpointing = grad_checkpointing
        # As whole numbers: depth * n / global_blocks, rounded up.
        everywhere = {-(-depth * number // global_blocks) - 1 for number in range(1, global_blocks + 1)}
        self.windows = [0 if block in everywhere else window_size for block in range(depth)]
        self.blocks = nn.ModuleList(
            RelativePositions((window, window) if window else grid, attn.head_dim) for window in self.windows
        )

    def forward(self, encoder: Any, images: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D H W"]:
        """Features of the last block, not normalised.

        Args:
            images: normalised, of a multiple of the patch size.
        """
        x = encoder.patch_embed.proj(images).permute(0, 2, 3, 1)
        x = x + resized_positions(encoder.pos_embed, self.pretrained_grid, x.shape[1:3])
        for block, positions, window in zip(encoder.blocks, self.blocks, self.windows, strict=True):
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(run_block, block, positions, x, window, use_reentrant=False)
            else:
                x = run_block(block, positions, x, window)
        return x.permute(0, 3, 1, 2)


def resized_positions(
    pos_embed: Float[Tensor, "1 tokens D"], grid: tuple[int, int], new: tuple[int, ...]
) -> Float[Tensor, "1 H W D"]:
    """Absolute positions of another grid, bicubic and not antialiased, as ViTDet has it; the class token's left out.

    Args:
        grid: (H, W) that they are for.
        new: of the images.
    """
    positions = pos_embed[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2)
    if tuple(new) != tuple(grid):
        positions = F.interpolate(positions, tuple(new), mode="bicubic", align_corners=False)
    return positions.permute(0, 2, 3, 1)


def run_block(block: Any, positions: Any, x: Float[Tensor, "B H W D"], window: int) -> Float[Tensor, "B H W D"]:
    """A block of timm's ViT, its attention within windows.

    Args:
        positions: :class:`RelativePositions` of the block.
        window: side in patches; 0 for none. The last windows are filled up with zeros, which take part.
    """
    normed = block.norm1(x)
    if window:
        windows, padded = window_partition(normed, window)
        attended = window_unpartition(
            attend(block.attn, positions, windows), window, (x.shape[1], x.shape[2]), padded
        )
    else:
        attended = attend(block.attn, positions, normed)
    x = x + block.drop_path1(block.ls1(attended))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def attend(attn: Any, positions: RelativePositions, x: Float[Tensor, "B H W D"]) -> Float[Tensor, "B H W D"]:
    """timm's self-attention with decomposed relative positions: q . Rh[y - y'] + q . Rw[x - x'] is added to a logit.

    These sums are made part of the product: each query is followed by what it has for each row and each column, and
    each key by ones in the places of its own. So no N x N table is kept for the backward pass.
    """
    height, width = x.shape[1:3]
    q, k, v = attn.qkv(x.flatten(1, 2)).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = attn.q_norm(q), attn.k_norm(k)  # (B, heads, N, d)
    grid = q.unflatten(2, (height, width))
    of_rows = torch.einsum("bnyxd,ykd->bnyxk", grid, get_rel_pos(height, height, positions.rel_pos_h))
    of_columns = torch.einsum("bnyxd,xkd->bnyxk", grid, get_rel_pos(width, width, positions.rel_pos_w))
    rows, columns = (torch.eye(side, dtype=q.dtype, device=q.device) for side in (height, width))
    own = torch.cat([rows.repeat_interleave(width, dim=0), columns.repeat(height, 1)], dim=1)
    queries = torch.cat([q * attn.scale, of_rows.flatten(2, 3), of_columns.flatten(2, 3)], dim=-1)
    keys = torch.cat([k, own.expand(*k.shape[:2], -1, -1)], dim=-1)
    out = F.scaled_dot_product_attention(queries.to(v.dtype), keys.to(v.dtype), v, scale=1.0)
    return attn.proj(out.transpose(1, 2).flatten(2)).unflatten(1, (height, width))


class SimplePyramid(nn.Module):
    """Maps of 4, 2, 1 and 1/2 times a ViT's grid, all made of its last one, and every other place of the coarsest.

    Args:
        dim: D.
        width: of the maps.
    """

    def __init__(self, dim: int, width: int = 256):
        super().__init__()

        def up(before: int) -> nn.Module:
            return nn.ConvTranspose2d(before, before // 2, 2, stride=2)

        def out(before: int) -> list[nn.Module]:
            made = {"norm_layer": ChannelNorm, "activation_layer": None}
            return [Conv2dNormActivation(before, width, 1, **made), Conv2dNormActivation(width, width, 3, **made)]

        first = [up(dim), ChannelNorm(dim // 2), nn.GELU(), up(dim // 2)]
        self.levels = nn.ModuleList(
            [
                nn.Sequential(*first, *out(dim // 4)),
                nn.Sequential(up(dim), *out(dim // 2)),
                nn.Sequential(*out(dim)),
                nn.Sequential(nn.MaxPool2d(2), *out(dim)),
            ]
        )

    def forward(self, features: Float[Tensor, "B D H W"]) -> "OrderedDict[str, Float[Tensor, 'B width _ _']]":
        """By name, the finest first: `0` to `3`, and `pool`."""
        maps = OrderedDict((str(number), level(features)) for number, level in enumerate(self.levels))
        maps["pool"] = F.max_pool2d(maps["3"], 1, stride=2)
        return maps
