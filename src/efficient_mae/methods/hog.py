"""Histograms of oriented gradients, MaskFeat's targets, and how they are drawn.

B images, C channels, h x w pixels, T chosen patches of P x P pixels, u x u cells of each, 9 bins of a cell.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize, pad

from efficient_mae.backbones.patches import gather_patches

# Of unsigned orientation, 20 degrees each.
BINS = 9
# A gradient below this many standard deviations of the data is none but for rounding, which would decide to which
# bin a pixel goes. Two neighbouring values of 8-bit images are farther apart by a factor of 390 at least, of 16 bits
# by 1.5; rounding makes a gradient of 1e-6 / std out of nothing.
ROUNDING = 1e-5


def hog_targets(
    images: Float[Tensor, "B C h w"], ids: Int64[Tensor, " T"], patch_size: int, cell_size: int
) -> Float[Tensor, "T X"]:
    """Histograms of the chosen patches' cells, each channel's by itself, scaled to length 1; of flat cells zeros.

    The gradients are Sobel's, across the borders of patches too, and every pixel gives all of its gradient's
    magnitude to the bin of its orientation. What an image is scaled and shifted by makes no difference.

    Args:
        images: normalised images.
        ids: the patches, by index into the B * N patches in row-major order.
        patch_size: P, in pixels.
        cell_size: pixels of a cell's side; divides P.

    Returns:
        X = C * 9 * u * u numbers: the channel varies slowest, then the bin, the cell's row, its column.

    Source: MaskFeat, Sec. 3.2, and its published code; docs/readings.md says where they leave a choice.
    """
    magnitude, bins = _orientations(images)
    votes, chosen = (_cells(gather_patches(x, ids, patch_size), cell_size) for x in (magnitude, bins))
    # Bin by bin: a table of all pixels and bins takes nine times the images' memory; scatter_add no fixed order.
    histograms = [torch.where(chosen == number, votes, 0.0).sum(dim=(-3, -1)) for number in range(BINS)]
    return normalize(torch.stack(histograms, dim=2), dim=2, eps=1e-12).flatten(1)


def _orientations(images: Float[Tensor, "B C h w"]) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, "B C h w"]]:
    """Of each pixel the gradient's magnitude, and the bin of its angle from the vertical axis."""
    x = pad(images, (1, 1, 1, 1), mode="reflect")
    # Differences come first: of equal pixels they are 0, whatever these were normalised by.
    across, down = x[..., :-2] - x[..., 2:], x[..., :-2, :] - x[..., 2:, :]
    gx = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    gy = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    gx, gy = (torch.where(gradient.abs() < ROUNDING, 0.0, gradient) for gradient in (gx, gy))
    bins = (torch.atan2(gx, gy) / math.pi * BINS).floor().remainder(BINS)
    return torch.hypot(gx, gy), bins


def _cells(patches: Tensor, cell_size: int) -> Tensor:
    """(T, C, P, P) as (T, C, u, cell, u, cell)."""
    return patches.unflatten(-1, (-1, cell_size)).unflatten(-3, (-1, cell_size))


def draw_hog(
    histograms: Float[Tensor, "T X"], channels: int, patch_size: int, cell_size: int
) -> Float[Tensor, "T C P P"]:
    """Each cell as nine lines through its middle, along the edges that they stand for; 0 none, 1 brightest.

    Args:
        histograms: as :func:`hog_targets` has them, or a model predicts them: what is below 0 is not drawn.
        channels: C, each drawn by itself.
        patch_size: P, in pixels.
        cell_size: pixels of a cell's side.
    """
    cells = patch_size // cell_size
    values = histograms.view(-1, channels, BINS, cells, cells).clamp(min=0)
    angles = (torch.arange(BINS, device=values.device) + 0.5) * math.pi / BINS
    place = torch.arange(cell_size, device=values.device) - (cell_size - 1) / 2
    # From the line, in pixels: an edge runs across its gradient, whose angle counts from the vertical axis.
    distance = place[None, None, :] * angles.sin()[:, None, None] + place[None, :, None] * angles.cos()[:, None, None]
    lines = (1.4 - distance.abs()).clamp(0, 1)  # (9, cell, cell)
    # Where lines cross the brightest is seen: their sum would be a white spot wherever a cell has no direction.
    drawn = (values[..., :, None, :, None] * lines[:, None, :, None, :]).amax(dim=2)  # (T, C, u, cell, u, cell)
    return drawn.reshape(-1, channels, patch_size, patch_size).clamp(max=1)
