"""The Difficulty-Flatten Loss (Sec. 4.1, Eq. 2)."""

import torch
from jaxtyping import Float
from torch import Tensor

from efficient_mae.errors import InputError
from efficient_mae.masking.targets import flatten_weights


def patch_errors(prediction: Float[Tensor, "T X"], target: Float[Tensor, "T X"]) -> Float[Tensor, " T"]:
    """Mean squared error of each patch over its X = P * P * C values, in float32 or better."""
    wide = torch.promote_types(target.dtype, torch.float32)
    return (prediction.to(wide) - target.to(wide)).square().mean(dim=1)


def weighted_error_sum(
    prediction: Float[Tensor, "T X"], target: Float[Tensor, "T X"], weights: Float[Tensor, " T"]
) -> tuple[Float[Tensor, ""], Float[Tensor, " T"]]:
    """The numerator of Eq. 2, and the squared error of each patch; the denominator is `weights.sum()`.

    Training divides by the weights of the whole global batch, of which this may be a part.

    Args:
        prediction: T predicted patches of X = P * P * C values.
        target: their true values.
        weights: of the patches; d ** -gamma in the paper.

    Source: Eq. 2, with MAE's squared error.
    """
    errors = patch_errors(prediction, target)
    return (weights.to(errors.dtype) * errors).sum(), errors


def difficulty_flatten_loss(
    prediction: Float[Tensor, "T X"],
    target: Float[Tensor, "T X"],
    difficulty: Float[Tensor, " T"],
    gamma: float = 0.6,
) -> Float[Tensor, ""]:
    """Mean of the patches' squared errors, each weighted by its difficulty to the power of -gamma.

    Args:
        prediction: T predicted patches of X = P * P * C values.
        target: their true values.
        difficulty: of each patch; where none is greater than 0 and finite, the loss is NaN.
        gamma: flattening parameter; 0 gives MAE's loss.

    Raises:
        InputError: no patch, or gamma is negative or not finite.

    Source: Eq. 2, with MAE's squared error.
    """
    if len(prediction) == 0:
        raise InputError("no patch to take the loss of: prediction is empty")
    # By the easiest patch's: so that whatever gamma is, a weight is left that float32 can hold.
    easiest = difficulty.where(difficulty > 0, torch.inf).min()
    weights = flatten_weights(difficulty / easiest, gamma)
    return weighted_error_sum(prediction, target, weights)[0] / weights.sum()
