"""Random masking (MAE, Sec. 3; the paper's Sec. 3.1): hide the patches with the largest noise."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from efficient_mae.errors import InputError
from efficient_mae.ranges import NonNegativeInt, PositiveInt, Ratio, check_range


def num_visible(num_patches: int, mask_ratio: float) -> int:
    """Number of patches that stay visible, ``int(num_patches * (1 - mask_ratio))`` as in MAE.

    Raises:
        InputError: the ratio leaves no patch visible, or none masked.
    """
    check_range("mask_ratio", mask_ratio, Ratio)
    check_range("num_patches", num_patches, PositiveInt)
    visible = int(num_patches * (1 - mask_ratio))
    if visible == 0:
        in_ten_thousandths = math.floor(10_000 * (1 - 1 / num_patches))
        fitting = (one / 10_000 for one in range(in_ten_thousandths, 0, -1) if num_patches * (1 - one / 10_000) >= 1)
        highest = next(fitting, None)
        most = "take smaller patches" if highest is None else f"take at most {highest:.4g}, or smaller patches"
        raise InputError(f"mask_ratio={mask_ratio} leaves none of {num_patches} patches visible: {most}")
    if visible == num_patches:
        raise InputError(f"mask_ratio={mask_ratio} masks none of {num_patches} patches: take a larger one")
    return visible


def mask_from_noise(
    noise: Float[Tensor, "B N"], grid_size: tuple[int, int], mask_ratio: float
) -> Bool[Tensor, "B H W"]:
    """The mask that keeps, in each image, the patches with the smallest noise; equal noise by index.

    Args:
        noise: one number a patch, in row-major order of the grid.
        grid_size: (H, W) in patches.
        mask_ratio: share of patches to hide.

    Returns:
        True = masked.
    """
    height, width = grid_size
    if noise.shape[1] != height * width:
        raise InputError(f"noise has {noise.shape[1]} numbers an image, a {height} x {width} grid needs one a patch")
    visible = num_visible(height * width, mask_ratio)
    ids_keep = noise.argsort(dim=1, stable=True)[:, :visible]
    mask = torch.ones_like(noise, dtype=torch.bool)
    mask.scatter_(1, ids_keep, False)
    return mask.view(-1, height, width)


def unit_mask_from_noise(
    noise: Float[Tensor, "B N"], grid_size: tuple[int, int], unit: int, mask_ratio: float
) -> Bool[Tensor, "B H W"]:
    """The same, of square units of several patches: all of a unit's patches are hidden, or none (SimMIM, Sec. 3.2).

    Args:
        noise: random numbers, at least one a unit; those beyond are of no use.
        grid_size: (H, W) in patches.
        unit: side of a unit, in patches.
        mask_ratio: share of units to hide; see :func:`num_visible` for the rounding.

    Returns:
        True = masked.

    Raises:
        InputError: units that do not fill the grid, or a ratio that leaves none visible or none masked.
    """
    height, width = grid_size
    check_range("unit", unit, PositiveInt)
    if height % unit or width % unit:
        raise InputError(f"unit={unit}: does not divide the grid of {height} x {width} patches")
    units = height // unit, width // unit
    mask = mask_from_noise(noise[:, : units[0] * units[1]], units, mask_ratio)
    return mask.repeat_interleave(unit, 1).repeat_interleave(unit, 2)


def random_masking(
    batch_size: int,
    grid_size: tuple[int, int],
    mask_ratio: float,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "B H W"]:
    """Uniformly random masks with the same number of visible patches in every image.

    Args:
        batch_size: B.
        grid_size: (H, W) in patches.
        mask_ratio: share of patches to hide; see :func:`num_visible` for the rounding.
        generator: source of randomness; the masks lie on its device (CPU without one).

    Returns:
        True = masked.

    Raises:
        InputError: the ratio leaves nothing visible or nothing masked, or a size cannot be.
    """
    check_range("batch_size", batch_size, NonNegativeInt)
    check_range("grid_size", grid_size, tuple[PositiveInt, PositiveInt])
    height, width = grid_size
    num_visible(height * width, mask_ratio)
    device = generator.device if generator is not None else None
    noise = torch.rand(batch_size, height * width, generator=generator, device=device)
    return mask_from_noise(noise, grid_size, mask_ratio)
