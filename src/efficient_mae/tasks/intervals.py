"""What several seeds say together: a mean, and how sure it is."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats


def mean_and_interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean of independent results and its 95 % interval by Student's t distribution.

    Returns:
        `mean`, `low` and `high` (the interval's bounds), `half_width` of the interval, and the `values`.

    Raises:
        ValueError: fewer than two values, of which no spread can be told.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} values: an interval needs two at least")
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half, "half_width": half, "values": list(values)}
