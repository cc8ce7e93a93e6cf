"""Which samples a step sees, and the random numbers that each of them gets.

Everything here is a function of (seed, epoch, index) alone: not of the number of workers or processes, nor of
whether the run was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from efficient_mae.errors import InputError


class _Seed(np.random.bit_generator.ISeedSequence):
    """Hands a generator its whole initial state. numpy's own SeedSequence does the like in four times the time."""

    def __init__(self, words: np.ndarray) -> None:
        self._words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> np.ndarray:
        return self._words


def sample_rng(seed: int, epoch: int, index: int, stream: str) -> np.random.Generator:
    """The random numbers of one sample in one epoch for one purpose.

    A new generator, at its beginning, at every call. Its state is a hash of the four values, so that all such
    streams are independent, and drawing more numbers for one purpose does not change another.

    Args:
        stream: what the numbers are for: "crop", "mask", "order".
    """
    state = blake2b(f"{seed}/{epoch}/{index}/{stream}".encode(), digest_size=32).digest()
    words = _Seed(np.frombuffer(state, np.uint64))
    return np.random.Generator(np.random.PCG64(words))  # pyright: ignore[reportArgumentType]


class ResumableBatchSampler(Sampler[list[tuple[int, int]]]):
    """This process's batches of (epoch, index), without end, from any step on.

    A pass over the data set is a permutation of it, cut into global batches; what is left over is dropped. A global
    batch is divided among `accum_iter` micro-batches and `world_size` processes, and holds the same samples
    whatever these two numbers are.

    Repeated augmentation (Hoffer et al. 2020) puts `repeats` samples of an image side by side, so that it need be
    read once for them all. An epoch counts samples, so a pass takes `repeats` epochs; an image's samples are those
    that it would have had, one in each of these epochs, without repeats. So over a pass repeats change the order of
    samples and nothing else.

    Attributes:
        steps_per_epoch: global batches in an epoch.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch_size: int,
        seed: int,
        *,
        repeats: int = 1,
        accum_iter: int = 1,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        passed_over: Sequence[tuple[int, int]] = (),
    ) -> None:
        """
        Args:
            num_samples: images in the data set.
            global_batch_size: samples in one optimiser step, over all processes and micro-batches.
            repeats: samples of an image in a micro-batch.
            start: the micro-step to begin with, counted from the beginning of training; one optimiser step is
                `accum_iter` micro-steps.
            passed_over: (step, batches): from this step on, so many global batches are left out.

        Raises:
            InputError: the global batch is larger than the data set, or cannot be divided evenly.
        """
        if not 0 < global_batch_size <= num_samples:
            raise InputError(
                f"the global batch of {global_batch_size} images must be at least 1 and at most the "
                f"{num_samples} of the data set: change batch_size, accum_iter or the number of processes"
            )
        if global_batch_size % (accum_iter * world_size):
            raise InputError(
                f"the global batch of {global_batch_size} images cannot be divided evenly among "
                f"accum_iter={accum_iter} x {world_size} processes"
            )
        self.micro_batch_size = global_batch_size // (accum_iter * world_size)
        if repeats < 1 or self.micro_batch_size % repeats:
            raise InputError(
                f"repeats={repeats}: must be at least 1 and divide the {self.micro_batch_size} images of a "
                "micro-batch (batch_size over accum_iter and processes)"
            )
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.repeats = repeats
        self.accum_iter = accum_iter
        self.rank = rank
        self.world_size = world_size
        self.start = start
        self.passed_over = passed_over
        self.steps_per_epoch = num_samples // global_batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        cuts = [(step * self.accum_iter, batches * self.accum_iter) for step, batches in self.passed_over]
        bounds = sorted({self.start, *(cut for cut, _ in cuts if cut > self.start)})
        for begin, end in zip(bounds, [*bounds[1:], None]):
            left_out = sum(batches for cut, batches in cuts if cut <= begin)
            yield from islice(self._from(begin + left_out), None if end is None else end - begin)

    def _from(self, start: int) -> Iterator[list[tuple[int, int]]]:
        """All batches from a micro-step on, none left out."""
        size = self.micro_batch_size // self.repeats
        step, micro = divmod(start, self.accum_iter)
        number, batch = divmod(step, self.steps_per_epoch * self.repeats)
        while True:
            order = self._order(number)
            epochs = range(number * self.repeats, (number + 1) * self.repeats)
            images = self.global_batch_size // self.repeats
            for first in range(batch * images, len(order), images):
                for part in range(micro, self.accum_iter):
                    begin = first + (part * self.world_size + self.rank) * size
                    yield [(epoch, index) for index in order[begin : begin + size].tolist() for epoch in epochs]
                micro = 0
            number, batch = number + 1, 0

    def _order(self, number: int) -> np.ndarray:
        """The images of a pass in order, whole batches only; 10 million take half a second."""
        order = np.arange(self.num_samples, dtype=np.uint32 if self.num_samples < 2**32 else np.uint64)
        sample_rng(self.seed, number, 0, "order").shuffle(order)
        return order[: self.steps_per_epoch * self.global_batch_size]
