"""The difficulty schedulers that Table 6 compares: which masked patches are predicted, and what each weighs.

The Difficulty-Flatten Loss needs the patch's own difficulty alone (`targets.py`). A curriculum and a normalisation
also need to know how hard masked patches are in general: :func:`sample_difficulties`.
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from efficient_mae.errors import InputError
from efficient_mae.masking.difficulty import METRICS, difficulty
from efficient_mae.masking.random import random_masking

# The paper's scheduler, then Table 6's (a), (b) and (c).
SCHEDULES = ("flatten", "threshold", "curriculum", "normalise")
# Metrics that measure what beta bounds.
P2DIST = ("p2dist", "p2dist_exact")

# The mask ratio whose distribution of difficulty Table 6 (c) takes as its norm.
NORM_MASK_RATIO = 0.75
# Neither is in the paper: the least share of the masked patches, from the easiest, that a curriculum begins with, and
# the number of intervals that a normalisation counts patches in.
FIRST_SHARE = 0.25
INTERVALS = 16
# At 14 x 14 patches some 40,000 difficulties.
_SAMPLE_MASKS = 256


def check_schedule(metric: str, schedule: str, beta: float | None, grid_size: tuple[int, int]) -> None:
    """Raise InputError for a metric or schedule that doesn't exist, or that the other settings don't go with."""
    for name, value, known in (("difficulty", metric, tuple(METRICS)), ("schedule", schedule, SCHEDULES)):
        if value not in known:
            raise InputError(f"{name}={value!r}: must be one of {', '.join(known)}")
    if beta is not None and metric not in P2DIST:
        raise InputError(
            f"beta={beta}: bounds P2Dist, not difficulty={metric}; give beta null to predict every masked patch "
            "whose difficulty is finite (Table 5)"
        )
    patches = grid_size[0] * grid_size[1]
    if schedule == "normalise" and int(patches * (1 - NORM_MASK_RATIO)) == 0:
        raise InputError(
            f"schedule=normalise: mask ratio {NORM_MASK_RATIO}, its norm, leaves none of {patches} patches visible: "
            "take smaller patches"
        )


@lru_cache(maxsize=16)
def sample_difficulties(
    grid_size: tuple[int, int], mask_ratio: float, patch_size: int = 16, metric: str = "p2dist", k: int = 8
) -> Float[Tensor, " patches"]:
    """Difficulties of the masked patches of random masks, ascending; the infinite ones are left out.

    The masks are always the same, so this is a function of its arguments.

    Args:
        grid_size: (H, W) in patches.
        mask_ratio: share of patches hidden.
        patch_size, metric, k: see :func:`efficient_mae.masking.difficulty`.
    """
    mask = random_masking(_SAMPLE_MASKS, grid_size, mask_ratio, torch.Generator().manual_seed(0))
    found = difficulty(mask, patch_size, metric, k)[mask]
    return found[found.isfinite()].sort().values


def curriculum_threshold(difficulties: Float[Tensor, " patches"], progress: float) -> float:
    """The difficulty beyond which a patch is not predicted yet; infinite at the end of training.

    The share of the masked patches that are wanted grows steadily, from the easiest quarter to all. Equally hard ones
    come in together, so more are predicted: by P2Dist at 14 x 14 and ratio 0.85 a curriculum begins with 31.7 %.

    Args:
        difficulties: how hard masked patches are, ascending.
        progress: of training, from 0 to 1.

    Source: Table 6 (b); the paper doesn't say at what pace.
    """
    if progress >= 1:
        return math.inf
    share = FIRST_SHARE + (1 - FIRST_SHARE) * progress
    return float(difficulties[math.ceil(share * len(difficulties)) - 1])


def normalising_weights(
    mask: Bool[Tensor, "*shape"],
    difficulty: Float[Tensor, "*shape"],
    present: Float[Tensor, " patches"],
    norm: Float[Tensor, " others"],
) -> Float[Tensor, "*shape"]:
    """Weights with which patches of every difficulty count as often as they do under another mask ratio.

    Args:
        mask: True = masked.
        difficulty: of the masked patches; an infinite one weighs nothing.
        present: how hard masked patches are at the present mask ratio, over as many masks as `norm`.
        norm: the same at the other.

    Returns:
        Patches of the same difficulty under the other ratio for each one under the present; 0 where visible. The
        intervals of difficulty hold equally many patches at the present ratio, so that none is empty.

    Source: Table 6 (c).
    """
    quantiles = torch.linspace(0, 1, INTERVALS + 1, device=present.device)[1:-1]
    bounds = present.quantile(quantiles, interpolation="lower").unique()

    def count(values: Tensor) -> Tensor:
        return torch.bincount(torch.bucketize(values, bounds), minlength=len(bounds) + 1)

    # Where the hardest bound is the hardest patch of all, nothing lies beyond it.
    ratio = count(norm) / count(present).clamp(min=1)
    ratio, bounds = ratio.to(difficulty.device), bounds.to(difficulty.device)
    masked = mask & difficulty.isfinite()
    return ratio[torch.bucketize(difficulty, bounds)] * masked
