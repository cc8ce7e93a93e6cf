"""Block-wise masking (BEiT, Alg. 1; also MaskFeat, CAE): hide rectangles until enough patches are hidden."""

import math
import random
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from efficient_mae.errors import InputError
from efficient_mae.ranges import PositiveInt, Ratio, check_range

# Logarithm of the least aspect ratio of a block; it is uniform between this and its negative.
_LEAST_LOG_ASPECT = math.log(0.3)
# Blocks that are tried, each of another size at another place, before a mask is left as it is.
_TRIES = 10


def num_hidden(num_patches: int, mask_ratio: float) -> int:
    """Number of patches that blocks hide, ``round(num_patches * mask_ratio)`` as in MaskFeat: 78 of 196 at 0.4.

    Raises:
        InputError: the ratio hides no patch, or all.
    """
    check_range("mask_ratio", mask_ratio, Ratio)
    hidden = round(num_patches * mask_ratio)
    if not 0 < hidden < num_patches:
        many, mend = ("none", "larger") if hidden == 0 else ("all", "smaller")
        raise InputError(f"mask_ratio={mask_ratio} hides {many} of {num_patches} patches: take a {mend} one")
    return hidden


def check_blocks(grid_size: tuple[int, int], num_masked: int, smallest_block: int) -> None:
    """Refuse blocks with which a mask may never come to its number.

    Args:
        grid_size: (H, W) in patches.
        num_masked: patches to hide in an image.
        smallest_block: patches of a block, at least.

    Raises:
        InputError: a number out of its range, or blocks that the grid or the mask has no room for.
    """
    check_range("smallest_block", smallest_block, PositiveInt)
    check_range("num_masked", num_masked, PositiveInt)
    height, width = grid_size
    if num_masked >= height * width:
        raise InputError(f"num_masked={num_masked}: must be less than the {height * width} patches of an image")
    largest = _largest_block(grid_size, num_masked)
    if largest == 0:
        raise InputError(f"a grid of {height} x {width} patches has no room for blocks: take smaller patches")
    if smallest_block > largest:
        raise InputError(
            f"smallest_block={smallest_block}: a mask of {num_masked} among {height} x {width} patches has no room "
            f"for such blocks; take at most {largest}"
        )


def blockwise_mask_from_noise(
    noise: Float[Tensor, "B N"],
    grid_size: tuple[int, int],
    num_masked: int,
    smallest_block: int,
    *,
    exact: bool = False,
) -> Bool[Tensor, "B H W"]:
    """Masks of overlapping rectangles, each with its own random size, shape and place.

    A block's area is uniform between `smallest_block` and what is yet to be hidden. It is taken if it is smaller than
    the grid both ways, and hides at least one more patch, and no more than are to be hidden.

    Args:
        noise: random numbers, one a patch. An image's are the seed of all that is drawn for it, of which nobody knows
            beforehand how much it will be.
        grid_size: (H, W) in patches.
        num_masked: patches to hide in an image.
        smallest_block: patches of a block, at least, as long as so many are to be hidden.
        exact: hide just so many, as CAE does; else, as BEiT and MaskFeat do, an image is left with fewer when ten
            blocks in turn were none.

    Returns:
        True = masked.

    Raises:
        InputError: as :func:`check_blocks`.
    """
    height, width = grid_size
    if noise.shape[1] != height * width:
        raise InputError(f"noise has {noise.shape[1]} numbers an image, a {height} x {width} grid needs one a patch")
    check_blocks(grid_size, num_masked, smallest_block)
    masks = np.zeros((len(noise), height, width), dtype=bool)
    for mask, seed in zip(masks, noise.cpu().numpy(), strict=True):
        rng, left = random.Random(seed.tobytes()), num_masked
        while left:
            hidden = _hide_block(mask, left, smallest_block, rng)
            left -= hidden
            if not (hidden or exact):
                break
    return torch.from_numpy(masks).to(noise.device)


def _hide_block(mask: Bool[np.ndarray, "H W"], most: int, smallest: int, rng: random.Random) -> int:
    """Hide one more block, and say how many patches it hides: from 1 to `most`, or 0 when all tries were none."""
    rows, columns = mask.shape
    for _ in range(_TRIES):
        area, aspect = rng.uniform(smallest, most), math.exp(rng.uniform(_LEAST_LOG_ASPECT, -_LEAST_LOG_ASPECT))
        height, width = _block(area, aspect)
        if height >= rows or width >= columns:
            continue
        top, left = rng.randint(0, rows - height), rng.randint(0, columns - width)
        block = mask[top : top + height, left : left + width]
        more = height * width - int(np.count_nonzero(block))
        if 0 < more <= most:
            block[:] = True
            return more
    return 0


def _block(area: float, aspect: float) -> tuple[int, int]:
    """(height, width) in patches."""
    return round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))


@lru_cache
def _largest_block(grid_size: tuple[int, int], num_masked: int) -> int:
    """The largest area for which, as for each smaller one, some aspect gives a block that fits and isn't larger.

    So whatever is yet to be hidden, there is a block that hides some of it and no more.
    """
    height, width = grid_size
    logs = np.linspace(_LEAST_LOG_ASPECT, -_LEAST_LOG_ASPECT, 201)
    for area in range(1, num_masked + 1):
        blocks = [_block(area, math.exp(log)) for log in logs]
        if not any(rows < height and columns < width and rows * columns <= area for rows, columns in blocks):
            return area - 1
    return num_masked
