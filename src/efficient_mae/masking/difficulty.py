"""The difficulty of masked patches by name: P2Dist and the metrics that Table 5 compares it with."""

import math
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from efficient_mae.errors import InputError
from efficient_mae.masking.p2dist import check_mask, p2dist, p2dist_exact
from efficient_mae.ranges import PositiveInt, check_range


def _visible_neighbours(mask: Tensor, patch_size: int) -> Tensor:
    """Table 5 (a): one over the number of visible patches in the 3 x 3 neighbourhood; no unit."""
    return 1 / _neighbourhood_sum(mask, 1, lambda rows, columns: 1.0)


def _inverse_distance_sum(mask: Tensor, patch_size: int) -> Tensor:
    """Table 5 (b): one over the sum of inverse distances to the visible patches of the 5 x 5 around; pixels."""
    return 1 / _neighbourhood_sum(mask, 2, lambda rows, columns: 1 / (patch_size * math.hypot(rows, columns)))


def _nearest_patch(mask: Tensor, patch_size: int) -> Tensor:
    """Table 5 (c): distance between the centres of a patch and of its nearest visible patch; pixels."""
    return patch_size * p2dist_exact(mask, patch_size=1)


def _neighbourhood_sum(mask: Tensor, reach: int, weight: Callable[[int, int], float]) -> Tensor:
    """(B, H, W): the weights of the visible patches around each patch, by steps down and to the right, summed.

    Term by term: a convolution would be as precise as autocast, or a GPU's settings, allow.
    """
    check_mask(mask)
    _, rows, columns = mask.shape
    visible = F.pad((~mask).float(), [reach] * 4)
    summed = torch.zeros_like(mask, dtype=torch.float32)
    steps = range(-reach, reach + 1)
    for down, right in product(steps, steps):
        if (down, right) != (0, 0):
            top, left = reach + down, reach + right
            summed += weight(down, right) * visible[:, top : top + rows, left : left + columns]
    return summed


METRICS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "p2dist": p2dist,
    "p2dist_exact": p2dist_exact,
    "visible_neighbours": _visible_neighbours,
    "inverse_distance_sum": _inverse_distance_sum,
    "nearest_patch": _nearest_patch,
}


def shuffle_difficulty(
    difficulty: Float[Tensor, "B H W"], mask: Bool[Tensor, "B H W"], noise: Float[Tensor, "B N"]
) -> Float[Tensor, "B H W"]:
    """The same difficulties, dealt out anew to an image's hidden patches: in row-major order to ascending noise.

    Where a mask hides the patches of the largest noise, the order of theirs is a random one, whatever is hidden.

    Args:
        difficulty: of any metric; 0 where visible.
        mask: True = masked.
        noise: one number a patch, in row-major order; equal ones by index.
    """
    hidden = mask.flatten(1)
    places = torch.where(hidden, noise, torch.inf).argsort(dim=1, stable=True)
    values = difficulty.flatten(1).gather(1, (~hidden).int().argsort(dim=1, stable=True))
    return torch.zeros_like(values).scatter_(1, places, values).view_as(difficulty)


def difficulty(
    mask: Bool[Tensor, "B H W"], patch_size: int = 16, metric: str = "p2dist", k: int = 8
) -> Float[Tensor, "B H W"]:
    """How hard each masked patch is to reconstruct; larger is harder.

    Args:
        mask: True = masked; each image needs a visible and a masked patch.
        patch_size: P, in pixels.
        metric: one of :data:`METRICS`: ``p2dist`` (Algorithm 1), ``p2dist_exact`` (Eq. 1), or Table 5's
            ``visible_neighbours`` (a), ``inverse_distance_sum`` (b), ``nearest_patch`` (c).
        k: points that ``p2dist`` looks at; the others have no such number.

    Returns:
        float32; 0 where visible, infinite where (a) or (b) see no visible patch. Pixels, but for (a).

    Raises:
        InputError: an unknown metric, a number below 1, or an image without a visible or without a masked patch.
    """
    if metric not in METRICS:
        raise InputError(f"metric={metric!r}: must be one of {', '.join(METRICS)}")
    check_range("patch_size", patch_size, PositiveInt)
    measure = partial(p2dist, k=k) if metric == "p2dist" else METRICS[metric]
    return torch.where(mask, measure(mask, patch_size), 0.0)
