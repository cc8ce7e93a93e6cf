"""What several seeds say together: a mean, and how sure it is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Mean of several values, and its 95 % interval.

    Attributes:
        mean: of the values.
        low: the interval's lower bound.
        high: its upper one.
        half_width: of the interval.
        values: that it is of.
    """

    mean: float
    low: float
    high: float
    half_width: float
    values: list[float]

    def told(self, digits: int) -> str:
        """As a share in percent, with so many digits behind the point."""
        return f"{self.mean:.{digits}%} ± {self.half_width:.{digits}%} (95 %, {len(self.values)} seeds)"


def mean_and_interval(values: Sequence[float]) -> Interval:
    """Mean of independent results and its 95 % interval by Student's t distribution.

    Raises:
        ValueError: fewer than two values, of which no spread can be told.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} values: an interval needs two at least")
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))
    return Interval(mean=mean, low=mean - half, high=mean + half, half_width=half, values=list(values))
