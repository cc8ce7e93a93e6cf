"""Python's and numpy's global generators, for libraries that draw from them."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def seeded_generators(rng: np.random.Generator) -> Iterator[None]:
    """Within, `random` and `numpy.random` continue from a seed that `rng` draws; afterwards they are as before.

    timm's augmentations draw from these: so they become functions of (seed, epoch, index), as all else is.
    """
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the very thing
    seed = int(rng.integers(2**32))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
