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


@dataclass(frozen=True)
class Bootstrap:
    """Answers of several rows, over the same draws of seeds, label subsets and held-out images.

    Attributes:
        means: share of right answers of each row, 0 to 1.
        drawn: its replicates.
    """

    means: Mapping[str, float]
    drawn: Mapping[str, Float64[np.ndarray, " number"]]

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
            )
            for title, table in right.items()
        }

    def accuracy(self, name: str) -> Estimate:
        """Share of right answers of a row, with its interval."""
        return _estimate(self.means[name], self.drawn[name])

    def gains(self, first: str, second: str) -> Float64[np.ndarray, " number"]:
        """What the second row is better by, draw by draw."""
        return self.drawn[second] - self.drawn[first]

    def difference(self, first: str, second: str) -> Difference:
        """What the second row is better by, answer by answer, with its interval."""
        means = self.gains(first, second)
        beyond = 1 + min((means <= 0).sum(), (means >= 0).sum())
        p = min(1.0, 2.0 * float(beyond) / (1 + len(means)))
        return Difference(**asdict(_estimate(self.means[second] - self.means[first], means)), p=p)


def _estimate(mean: float, means: Float64[np.ndarray, " number"]) -> Estimate:
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(mean=mean, low=float(low), high=float(high))


def replicates(
    values: Float[np.ndarray, "*rows S L N"], number: int = REPLICATES, seed: int = 0
) -> Float64[np.ndarray, "number ..."]:
    """Means over seeds, label subsets and images, each of the three drawn anew with replacement.

    All that belongs to a seed, a subset or an image is drawn together, as in Owen's pigeonhole bootstrap (2007): it
    errs towards wide intervals. Of n are drawn n - 1 (Rao and Wu 1988), without which few seeds would seem surer than
    they are by n / (n - 1); of a single one nothing can be told, and it stays. Rows have the same draws, so that the
    replicates of a difference are the difference of theirs; of whole numbers both are exact.
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
