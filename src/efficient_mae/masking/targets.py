"""What the decoder reconstructs (decoder masking, Sec. 4.2) and what each patch weighs (Sec. 4.1)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from efficient_mae.ranges import NonNegative, Positive, PositiveInt, check_range

# The patch size for which the paper states beta (Sec. 5.1); Table 3's ViT-H/14 cost shows that it scales.
BETA_PATCH_SIZE = 16


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
