"""What the decoder reconstructs (decoder masking, Sec. 4.2) and what each patch weighs (Sec. 4.1)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from efficient_mae.errors import InputError
from efficient_mae.ranges import NonNegative, Positive, PositiveInt, check_range

# The patch size for which the paper states beta (Sec. 5.1); Table 3's ViT-H/14 cost shows that it scales.
BETA_PATCH_SIZE = 16

# Controls: what of decoder masking and of the loss is left to chance.
SHUFFLES = ("targets", "difficulties")

# What is reconstructed: what beta leaves, as in the paper; or a share of the hidden patches, chosen at random or by
# furthest-point sampling.
TARGETS = ("p2dist", "random", "farthest")


def check_targets(
    targets: str,
    prediction_ratio: float | None,
    beta: float | None,
    schedule: str,
    num_hidden: int,
    shuffle: str | None = None,
) -> None:
    """Raise InputError for targets that don't exist, or that the other settings don't go with."""
    if targets not in TARGETS:
        raise InputError(f"targets={targets!r}: must be one of {', '.join(TARGETS)}")
    if shuffle is not None and shuffle not in SHUFFLES:
        raise InputError(f"shuffle={shuffle!r}: must be null or one of {', '.join(SHUFFLES)}")
    if shuffle is not None and targets != "p2dist":
        raise InputError(f"shuffle={shuffle}: targets={targets} are chosen by chance already; give targets p2dist")
    if shuffle == "targets" and schedule == "curriculum":
        raise InputError("schedule=curriculum: begins with the easiest patches; shuffle=targets leaves it to chance")
    if shuffle == "targets" and beta is None:
        raise InputError("shuffle=targets: as many as beta leaves, and beta is null, so that all are reconstructed")
    if targets == "p2dist":
        if prediction_ratio is not None:
            raise InputError(
                f"prediction_ratio={prediction_ratio}: targets=p2dist goes by beta; give targets random or farthest"
            )
        return
    if prediction_ratio is None:
        raise InputError(f"targets={targets}: needs prediction_ratio, the share of the hidden patches to reconstruct")
    if beta is not None:
        raise InputError(f"beta={beta}: targets={targets} goes by prediction_ratio alone; give beta null")
    if schedule == "curriculum":
        raise InputError(f"schedule=curriculum: begins with the easiest patches; give targets p2dist, not {targets}")
    if num_targets(num_hidden, prediction_ratio) == 0:
        raise InputError(
            f"prediction_ratio={prediction_ratio}: reconstructs none of {num_hidden} hidden patches; "
            f"take at least {1 / num_hidden:.3g}"
        )


def num_targets(num_hidden: int, prediction_ratio: float) -> int:
    """Patches that a share of the hidden ones is, to the nearest."""
    return round(num_hidden * prediction_ratio)


def random_targets(
    candidates: Bool[Tensor, "B H W"], noise: Float[Tensor, "B N"], count: int
) -> Bool[Tensor, "B H W"]:
    """In each image the candidates of the smallest noise, so many of them, or all where there are fewer.

    Where a mask hides the patches of the largest noise (:func:`efficient_mae.masking.mask_from_noise`), the same
    numbers serve again: given which patches are hidden, the order of their noise is a random one.

    Args:
        candidates: that may be chosen, hidden patches.
        noise: one number a patch, in row-major order; equal ones by index.
        count: of patches.
    """
    order = torch.where(candidates.flatten(1), noise, torch.inf).argsort(dim=1, stable=True)
    chosen = torch.zeros_like(noise, dtype=torch.bool).scatter_(1, order[:, :count], True)
    return chosen.view_as(candidates) & candidates


def farthest_targets(
    candidates: Bool[Tensor, "B H W"], noise: Float[Tensor, "B N"], count: int
) -> Bool[Tensor, "B H W"]:
    """In each image so many candidates, each as far as can be from those before it, or all where there are fewer.

    The first is the candidate of the largest noise, which also decides between equally far ones; they are many on a
    grid.

    Args:
        candidates: that may be chosen, hidden patches.
        noise: one number a patch, in row-major order; equal ones by index.
        count: of patches.

    Source: furthest-point sampling, with which PR-MIM (arXiv 2411.15746) chooses; docs/readings.md.
    """
    patches = noise.shape[1]
    cells = torch.cartesian_prod(*(torch.arange(side, device=noise.device) for side in candidates.shape[1:]))
    squared = (cells[:, None] - cells).square().sum(dim=2)  # (N, N)
    rank = noise.argsort(dim=1, stable=True).argsort(dim=1)
    # Whole numbers, so that the same is chosen everywhere; beyond the largest distance nothing is chosen yet.
    nearest = squared.new_full(noise.shape, int(squared.max()) + 1)
    left = candidates.flatten(1).clone()
    for _ in range(min(count, patches)):
        nearest = nearest.where(left, -1)
        one = (nearest * patches + rank).argmax(dim=1)  # (B,)
        left.scatter_(1, one[:, None], False)
        nearest = nearest.minimum(squared[one])
    return candidates & ~left.view_as(candidates)


def select_targets(
    difficulty: Float[Tensor, "B H W"],
    patch_size: int = 16,
    beta: float | None = 26.0,
    mask: Bool[Tensor, "B H W"] | None = None,
) -> Bool[Tensor, "B H W"]:
    """The masked patches that the decoder reconstructs: those no harder than beta.

    Args:
        difficulty: of the masked patches; one of infinite difficulty is never reconstructed.
        patch_size: P, in pixels.
        beta: threshold in pixels at patch size 16, scaled as beta * P / 16; None keeps every masked patch.
        mask: True = masked; None takes the patches whose difficulty isn't 0, as it is where visible.

    Raises:
        InputError: beta or the patch size is not positive.
    """
    check_range("beta", beta, Positive | None)
    check_range("patch_size", patch_size, PositiveInt)
    masked = (difficulty > 0 if mask is None else mask) & difficulty.isfinite()
    return masked if beta is None else masked & (difficulty <= beta * patch_size / BETA_PATCH_SIZE)


def flatten_weights(difficulty: Float[Tensor, "*shape"], gamma: float = 0.6) -> Float[Tensor, "*shape"]:
    """The Difficulty-Flatten Loss' factor d ** -gamma; 0 where visible (d = 0) or where d is infinite.

    Args:
        difficulty: any shape.
        gamma: flattening parameter; 0 weights every masked patch alike.

    Raises:
        InputError: gamma is negative or not finite.

    Source: Eq. 2.
    """
    check_range("gamma", gamma, NonNegative)
    masked = (difficulty > 0) & difficulty.isfinite()
    return torch.where(masked, difficulty, 1.0).pow(-gamma) * masked


def check_weights(gamma: float, weights: Float[Tensor, "*shape"]) -> None:
    """Raise InputError for a gamma with which nothing weighs anything, or more than float32 can hold."""
    total = weights.double().sum()
    if not (total.isfinite() and total >= torch.finfo(torch.float32).tiny):
        raise InputError(f"gamma={gamma:g}: d ** -gamma leaves nothing that float32 can hold; take a smaller one")
