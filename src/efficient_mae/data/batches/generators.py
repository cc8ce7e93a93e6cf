"""Global generators, Python's, numpy's and PyTorch's, for what draws from them and from no other."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


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


@contextmanager
def torch_seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Within, PyTorch's generators start from a seed; afterwards they are as before.

    For models that are made, whether their first weights stay or others take their place.

    Args:
        seed: as for `torch.manual_seed`, with the same numbers drawn; that would seed every GPU too, for good.
        device: if it is a GPU, its generator as well as the host's.
    """
    generators = [torch.default_generator]
    if device is not None and device.type == "cuda":
        torch.cuda.init()
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
