"""How many masked patches are how hard, and what a trained model loses on them (the paper's Fig. 2).

Letters: C channels, h x w pixels, `edges` the bounds of the bins of P2Dist, one more than `bins`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from efficient_mae.errors import InputError
from efficient_mae.masking import flatten_weights, p2dist, random_masking
from efficient_mae.methods import Method
from efficient_mae.ranges import PositiveInt, check_range


@dataclass(frozen=True)
class DifficultyProfile:
    """The loss of masked patches against their P2Dist.

    Attributes:
        edges: bounds of the bins, pixels. The last bin has both of its bounds, as in `numpy.histogram`.
        counts: masked patches in each bin, over all images and masks.
        loss: mean of their losses (squared errors), nan where there is no patch.
        weighted_loss: the same, each loss times the factor d ** -gamma, scaled so that the factor's mean over
            all patches is 1.
        slope: of the least-squares line through the patches' losses against P2Dist; loss a pixel.
        weighted_slope: the same through the weighted losses.
        images: how many were looked at.
        masks: random masks of each.
    """

    edges: Float[np.ndarray, " edges"]
    counts: Int64[np.ndarray, " bins"]
    loss: Float[np.ndarray, " bins"]
    weighted_loss: Float[np.ndarray, " bins"]
    slope: float
    weighted_slope: float
    images: int
    masks: int


def loss_by_difficulty(
    model: Method,
    images: Iterable[Float[Tensor, "_ C h w"]],
    edges: Float[np.ndarray, " edges"],
    *,
    masks: int = 4,
    seed: int = 0,
    gamma: float | None = None,
) -> DifficultyProfile:
    """Mean loss of a trained model against P2Dist, with the Difficulty-Flatten factor and without (Fig. 2, lower).

    Every masked patch is predicted here, whatever the model's beta. A decoder trained with beta has never
    predicted harder patches, nor seen their mask tokens beside those that it did predict.

    Args:
        model: whose config has :class:`efficient_mae.masking.MaskSettings`; used in evaluation mode on its device,
            and given back in the mode that it was in.
        images: batches of normalised images.
        edges: ascending bounds of the bins, pixels; what lies outside is counted in the outermost bins.
        masks: random masks for each image.
        seed: of the masks.
        gamma: of the factor; None takes the model's.

    Raises:
        InputError: no image, or no mask.
    """
    check_range("masks", masks, PositiveInt)
    config: Any = model.config
    planner = config.with_every_target().planner()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    distances: list[Tensor] = []
    losses: list[Tensor] = []
    number = 0
    was_training = model.training
    model.eval()
    try:
        for batch in images:
            number += len(batch)
            batch = batch.to(device)
            for _ in range(masks):
                patches = config.grid_size[0] * config.grid_size[1]
                layout = planner(torch.rand(len(batch), patches, generator=generator))
                with torch.no_grad():
                    out = model(batch, layout)
                distances.append(layout.difficulty[layout.predicted].double())
                losses.append(out.errors.double().cpu())
    finally:
        model.train(was_training)
    if not losses:
        raise InputError("no image to take the loss of")
    factor = flatten_weights(torch.cat(distances), config.gamma if gamma is None else gamma)
    distance, loss = torch.cat(distances).numpy(), torch.cat(losses).numpy()
    weighted = loss * (factor / factor.mean()).numpy()
    bins = _bins(distance, edges)
    return DifficultyProfile(
        edges=edges,
        counts=np.bincount(bins, minlength=len(edges) - 1),
        loss=_means(bins, loss, len(edges) - 1),
        weighted_loss=_means(bins, weighted, len(edges) - 1),
        slope=_slope(distance, loss),
        weighted_slope=_slope(distance, weighted),
        images=number,
        masks=masks,
    )


def patches_by_difficulty(
    config: Any, mask_ratio: float, edges: Float[np.ndarray, " edges"], *, masks: int = 1000, seed: int = 0
) -> Float[np.ndarray, " bins"]:
    """Masked patches of an image in each bin of P2Dist, mean over random masks (Fig. 2, upper).

    Args:
        config: of a method with :class:`efficient_mae.masking.MaskSettings`; its grid and patch size are taken.
        mask_ratio: share of patches hidden.
        edges: ascending bounds of the bins, pixels; what lies outside is counted in the outermost bins.
        masks: how many to average over.
        seed: of the masks.

    Raises:
        InputError: a mask ratio that leaves nothing visible or nothing masked.
    """
    bins = _bins(_sample_distances(config, mask_ratio, masks, seed), edges)
    return np.bincount(bins, minlength=len(edges) - 1) / masks


def difficulty_edges(config: Any, *, bins: int = 14, masks: int = 1000, seed: int = 0) -> Float[np.ndarray, " edges"]:
    """Bounds of equal bins over the P2Dist that a model meets in training.

    They reach from the easiest patch to the one harder than 999 in 1,000: the few beyond would stretch the axis.

    Raises:
        InputError: fewer than one bin.
    """
    check_range("bins", bins, PositiveInt)
    distances = _sample_distances(config, config.mask_ratio, masks, seed)
    lowest, highest = float(distances.min()), float(np.quantile(distances, 0.999))
    # On a grid of few patches all may be equally hard.
    return np.linspace(lowest, max(highest, lowest + 1e-3 * config.patch_size), bins + 1)


def _sample_distances(config: Any, mask_ratio: float, masks: int, seed: int) -> Float[np.ndarray, " patches"]:
    """P2Dist of the masked patches of random masks, pixels."""
    generator = torch.Generator().manual_seed(seed)
    mask = random_masking(masks, config.grid_size, mask_ratio, generator)
    return p2dist(mask, config.patch_size, config.k)[mask].double().numpy()


def _bins(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The bin of each value, the outermost for what lies outside."""
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)


def _means(bins: np.ndarray, values: np.ndarray, number: int) -> np.ndarray:
    """Mean of the values in each bin, nan in an empty one."""
    with np.errstate(invalid="ignore"):
        return np.bincount(bins, values, minlength=number) / np.bincount(bins, minlength=number)


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Of the least-squares line through the points; 0 where all x are the same."""
    deviation = x - x.mean()
    return float(deviation @ (y - y.mean()) / max(deviation @ deviation, np.finfo(float).tiny))
