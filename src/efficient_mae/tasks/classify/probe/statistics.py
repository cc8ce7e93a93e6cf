"""How sure a difference of two encoders is, over all that could have come out otherwise.

Letters: S seeds, L label subsets, N held-out images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64
from scipy import stats

REPLICATES = 10_000

# Weights of images that are drawn at a time: 64 MiB.
_AT_ONCE = 2**23


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and its 95 % interval, by Student's t unless another is said.

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


@dataclass(frozen=True)
class Bootstrap:
    """Answers of several rows, over the same draws of seeds, label subsets and held-out images.

    Intervals are mean ± t standard errors. The error is the draws' spread, which has all three in it; t has the
    degrees of freedom that few of one or the other leave (Satterthwaite 1946), since the spread of few is itself
    uncertain, and quantiles of the draws would make too little of that.

    Attributes:
        means: share of right answers of each row, 0 to 1.
        drawn: its replicates.
        parts: its means of each seed, of each subset and of each image.
    """

    means: Mapping[str, float]
    drawn: Mapping[str, Float64[np.ndarray, " number"]]
    parts: Mapping[str, tuple[Float64[np.ndarray, " _"], ...]]

    @classmethod
    def of(cls, right: Mapping[str, Bool[np.ndarray, "S L N"]]) -> "Bootstrap":
        """Of rows with the same seeds, label subsets and images."""
        return cls.of_each({"": right})[""]

    @classmethod
    def of_each(cls, right: Mapping[str, Mapping[str, Bool[np.ndarray, "S L N"]]]) -> "dict[str, Bootstrap]":
        """Of several tables of such rows; they are drawn once for all."""
        rows = [answers for table in right.values() for answers in table.values()]
        drawn = iter(replicates(np.stack(rows).astype(np.float32)).T)
        return {
            title: cls(
                {name: float(answers.mean()) for name, answers in table.items()},
                {name: next(drawn) for name in table},
                {name: tuple(answers.mean(axis=over) for over in _OTHERS) for name, answers in table.items()},
            )
            for title, table in right.items()
        }

    def accuracy(self, name: str) -> Estimate:
        """Share of right answers of a row, with its interval."""
        error, freedom = _error(self.drawn[name], self.parts[name])
        return _by_t(self.means[name], error, freedom, least=0.0)

    def gains(self, first: str, second: str) -> Float64[np.ndarray, " number"]:
        """What the second row is better by, draw by draw."""
        return self.drawn[second] - self.drawn[first]

    def difference(self, first: str, second: str) -> Difference:
        """What the second row is better by, answer by answer, with its interval; p no less than draws can tell."""
        gains = self.gains(first, second)
        parts = [theirs - ours for ours, theirs in zip(self.parts[first], self.parts[second], strict=True)]
        mean, (error, freedom) = self.means[second] - self.means[first], _error(gains, parts)
        beyond = 2.0 * float(stats.t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
        estimate = _by_t(mean, error, freedom, least=-1.0)
        return Difference(**asdict(estimate), p=max(beyond, 2.0 / (1 + len(gains))))

    def quantiles(self, first: str, second: str) -> Estimate:
        """The same with the interval that 95 % of the draws lie in: of few seeds it is too narrow."""
        low, high = np.quantile(self.gains(first, second), (0.025, 0.975))
        return Estimate(mean=self.means[second] - self.means[first], low=float(low), high=float(high))


# The axes of answers (seeds, label subsets, images) that a mean of each seed, subset or image is over.
_OTHERS = ((1, 2), (0, 2), (0, 1))


def _error(drawn: Float64[np.ndarray, " number"], parts: Sequence[Float64[np.ndarray, " _"]]) -> tuple[float, float]:
    """Standard error of a mean, and the degrees of freedom that it is known with."""
    variance = float(drawn.var())
    uncertain = sum((float(part.var(ddof=1)) / len(part)) ** 2 / (len(part) - 1) for part in parts if len(part) > 1)
    return variance**0.5, variance**2 / uncertain if uncertain else np.inf


def _by_t(mean: float, error: float, freedom: float, least: float) -> Estimate:
    half = float(stats.t.ppf(0.975, freedom)) * error
    return Estimate(mean=mean, low=max(least, mean - half), high=min(1.0, mean + half))


def replicates(
    values: Float[np.ndarray, "*rows S L N"], number: int = REPLICATES, seed: int = 0
) -> Float64[np.ndarray, "number ..."]:
    """Means over seeds, label subsets and images, each of the three drawn anew with replacement.

    All that belongs to a seed, a subset or an image is drawn together, as in Owen's pigeonhole bootstrap (2007),
    whose variance is no smaller than the mean's. Of n are drawn n - 1 (Rao and Wu 1988), without which that of few
    seeds would be too small by n / (n - 1); of a single one nothing can be told, and it stays. Rows have the same
    draws, so that the replicates of a difference are the difference of theirs; of whole numbers both are exact.
    """
    rng = np.random.default_rng(seed)
    *rows, seeds, subsets, images = values.shape
    flat = values.reshape(-1, images).astype(np.float32, copy=False)
    total = np.prod([max(1, size - 1) for size in (seeds, subsets, images)])
    parts = []
    for start in range(0, number, at_once := max(1, _AT_ONCE // images)):
        count = min(at_once, number - start)
        of_seed, of_subset, of_image = (_times(rng, size, count) for size in (seeds, subsets, images))
        sums = (of_image @ flat.T).reshape(count, *rows, seeds, subsets)
        parts.append(np.einsum("r...sl,rs,rl->r...", sums, of_seed, of_subset, dtype=np.float64) / total)
    return np.concatenate(parts)


def _times(rng: np.random.Generator, size: int, count: int) -> Float32[np.ndarray, "count size"]:
    """How often each is drawn; whole numbers, whose sums of right answers are exact in float32 below 2 ** 24."""
    if size == 1:
        return np.ones((count, 1), np.float32)
    return rng.multinomial(size - 1, np.full(size, 1.0 / size), count).astype(np.float32)


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
