"""How sure a difference of two encoders is, over all that could have come out otherwise.

Letters: S seeds, L label subsets, N held-out images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy import stats

REPLICATES = 10_000

# Weights of images that are drawn at a time: 64 MiB.
_AT_ONCE = 2**23


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and its 95 % interval.

    Attributes:
        mean: over seeds, label subsets and held-out images.
        low: the interval's lower bound.
        high: its upper one.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Difference(Estimate):
    """A difference of two means.

    Attributes:
        p: two-sided, of its being none.
    """

    p: float


def accuracy_estimate(right: Bool[np.ndarray, "S L N"]) -> Estimate:
    """Share of right answers, 0 to 1, with its bootstrapped interval."""
    means = replicates(right.astype(np.float32))
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(mean=float(right.mean()), low=float(low), high=float(high))


def paired_difference(first: Bool[np.ndarray, "S L N"], second: Bool[np.ndarray, "S L N"]) -> Difference:
    """What `second` is better by than `first`, answer by answer, with its bootstrapped interval."""
    means = replicates(second.astype(np.float32) - first.astype(np.float32))
    low, high = np.quantile(means, (0.025, 0.975))
    beyond = 1 + min((means <= 0).sum(), (means >= 0).sum())
    p = min(1.0, 2.0 * float(beyond) / (1 + len(means)))
    return Difference(mean=float(second.mean() - first.mean()), low=float(low), high=float(high), p=p)


def replicates(
    values: Float[np.ndarray, "S L N"], number: int = REPLICATES, seed: int = 0
) -> Float64[np.ndarray, " number"]:
    """Means over seeds, label subsets and images, each of the three drawn anew with replacement.

    All that belongs to a seed, a subset or an image is drawn together, as in Owen's pigeonhole bootstrap (2007): it
    errs towards wide intervals. Of n are drawn n - 1 (Rao and Wu 1988), without which few seeds would seem surer than
    they are by n / (n - 1); of a single one nothing can be told, and it stays.
    """
    rng = np.random.default_rng(seed)
    seeds, subsets, images = values.shape
    flat = values.reshape(seeds * subsets, images)
    parts = []
    for start in range(0, number, at_once := max(1, _AT_ONCE // images)):
        count = min(at_once, number - start)
        of_seed, of_subset, of_image = (_weights(rng, size, count) for size in values.shape)
        means = (of_image.astype(np.float32) @ flat.T).reshape(count, seeds, subsets)
        parts.append(np.einsum("rsl,rs,rl->r", means, of_seed, of_subset))
    return np.concatenate(parts).astype(np.float64)


def _weights(rng: np.random.Generator, size: int, count: int) -> Float64[np.ndarray, "count size"]:
    if size == 1:
        return np.ones((count, 1))
    return rng.multinomial(size - 1, np.full(size, 1.0 / size), count) / (size - 1)


def mcnemar(first: Bool[np.ndarray, " N"], second: Bool[np.ndarray, " N"]) -> float:
    """p of two classifiers being right equally often, of the images on which one alone is: McNemar's test, exact."""
    alone = int((first & ~second).sum()), int((second & ~first).sum())
    return float(stats.binomtest(alone[0], sum(alone)).pvalue) if sum(alone) else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """p of several hypotheses such that one falsely rejected among all is as rare as each says (Holm 1979)."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1.0)
    found = np.empty_like(values)
    found[order] = adjusted
    return found.tolist()
