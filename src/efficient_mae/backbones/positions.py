"""Fixed 2-D sine-cosine position embeddings (MAE, appendix A.1); biases by relative position, for another window."""

import torch
from jaxtyping import Float
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from torch import Tensor

from efficient_mae.errors import InputError


def sincos_position_embedding(embed_dim: int, grid_size: tuple[int, int]) -> Float[Tensor, "tokens D"]:
    """Position embedding of the class token (zeros) and of each patch of a grid in row-major order.

    The first half of the D channels encodes the column, the second the row, each as sines then cosines of
    D / 4 frequencies from 1 down to 1 / 10000 (exclusive).

    Args:
        embed_dim: D, a multiple of 4.
        grid_size: (H, W) in patches.

    Raises:
        InputError: embed_dim is not a multiple of 4.
    """
    if embed_dim % 4:
        raise InputError(f"embed_dim={embed_dim}: a 2-D sine-cosine embedding needs a multiple of 4")
    height, width = grid_size
    exponent = torch.arange(embed_dim // 4, dtype=torch.float64) / (embed_dim / 4)
    frequency = 10000.0**-exponent

    def encode(coordinate: Tensor) -> Tensor:  # (N,) -> (N, D / 2)
        angle = coordinate[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    row = torch.arange(height, dtype=torch.float64).repeat_interleave(width)
    column = torch.arange(width, dtype=torch.float64).repeat(height)
    patches = torch.cat([encode(column), encode(row)], dim=1)
    return torch.cat([patches.new_zeros(1, embed_dim), patches]).float()


def stretch_biases(
    table: Float[Tensor, "pairs heads"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "others heads"]:
    """Biases by relative position for another window: places near each other keep theirs, and far ones stretch.

    Args:
        table: one row for each of (2 * rows - 1) x (2 * columns - 1) offsets.
        old, new: (rows, columns) of the windows.

    Source: BEiT's fine-tuning, by timm.
    """
    offsets = [[2 * side - 1 for side in window] for window in (old, new)]
    squares = table.t().reshape(-1, *offsets[0])
    return resize_rel_pos_bias_table(squares, new, (len(squares), *offsets[1])).flatten(1).t()
