"""A batch that does not fit the device, before its first step: which setting to lower, and what would fit."""

import math
import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn

from efficient_mae.console import say
from efficient_mae.data import TrainBatch, TrainDataset
from efficient_mae.engine.loop import Objective, step_generators
from efficient_mae.engine.machine.distributed import Processes, autocast
from efficient_mae.engine.machine.free_memory import free_memory
from efficient_mae.engine.machine.step_memory import count_passes
from efficient_mae.engine.settings import RunConfig
from efficient_mae.errors import InputError

GIB = 2**30

# What a step really takes of a device for each byte that is counted, at least and at most: its allocator has holes,
# and its kernels room of their own. Measured on a host (benchmarks/memory_estimate.py), supposed of a GPU.
_TAKEN = {"cpu": (1.05, 1.95), "cuda": (1.0, 1.15)}
# Batches that a worker has at a time: those that wait, one that is being made, and its parts.
_BATCHES_OF_A_WORKER = 4
# What a worker takes for itself.
_WORKER_BYTES = 100 * 2**20

# Numbers that an optimiser keeps for each that is trained; others keep a momentum.
_STATE: dict[type[torch.optim.Optimizer], int] = {torch.optim.AdamW: 2}

# Numbers that a linear map's input and output, and what lies between it and the next, are kept in at most.
_COPIES = 8
# Share of the free memory that is too little to be looked at more closely: the bound that is held against it is many
# times what a step takes.
_LITTLE = 0.2

# What PyTorch says, oneDNN of an operation that it has (one that it lacks fails at its descriptor), CUDA's libraries,
# and CUDA itself where memory of the host is to be pinned.
_MESSAGES = re.compile(
    "can't allocate memory|could not create a primitive(?! descriptor)|CU(BLAS|DNN|SOLVER)_STATUS_ALLOC_FAILED"
    "|CUDA error: out of memory"
)


class BatchMemory:
    """Whether a run's micro-batches fit its device, with the weights on it.

    Args:
        config: of the run, with its batch size.
        processes: that share the batch.
        optimizer: of the parameters that are trained.
        model: in its plain form, as :func:`hollow` copies it.
        objective: what is minimised.
        dataset: makes the batches, on the host.
        unit: images that the model takes at a time, where it doesn't take all: memory grows evenly beyond.
        multiple: what the number of a micro-batch's images is a multiple of.
        num_workers: processes that read images for this one.
        accumulates: whether `accum_iter` may be proposed: where it changes nothing that is learned.
        graphs: whether blocks are replayed as CUDA graphs, which keep a gradient of their own.
    """

    def __init__(
        self,
        config: RunConfig,
        processes: Processes,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        objective: Objective,
        dataset: TrainDataset,
        *,
        unit: int = 8,
        multiple: int = 1,
        num_workers: int = 0,
        accumulates: bool = True,
        graphs: bool = False,
    ):
        self._config, self._processes, self._optimizer = config, processes, optimizer
        self._model, self._objective, self._dataset = model, objective, dataset
        self._unit, self._multiple, self._num_workers = unit + -unit % multiple, multiple, num_workers
        self._accumulates, self._graphs = accumulates, graphs
        self._micro = (config.batch_size or 0) // (config.accum_iter * processes.world_size)
        self._free: int | None = None
        self._counts: dict[int, tuple[int, int]] = {}

    def check(self) -> None:
        """Say so if a step barely fits what is free now; every process calls this.

        Raises:
            InputError: it does not fit.
        """
        device = self._processes.device
        own, sharing = free_memory(device), self._processes.local_world_size if device.type == "cpu" else 1
        known = self._processes.gather(None if own is None else own // sharing)
        if None in known:
            return
        free = self._free = min(known)
        if self._most_at_all() + self._reading(self._micro) < _LITTLE * free:
            return
        least, most = (self.needed(self._micro, factor) for factor in self._taken)
        if least > free:
            raise InputError(self.advice())
        if most > free and self._processes.is_main:
            say(f"memory may not do: {self._told(most)}; if it doesn't, {', or '.join(self._ways(self._micro - 1))}")

    def advice(self) -> str:
        """One line: what doesn't fit, and which settings would."""
        if self._free is not None and (readers := self._reading(1)) > self._free:
            told = f"{self._num_workers} processes that read images take about {readers / GIB:.1f} GiB"
            return f"num_workers={self._num_workers}: {told}{self._room}; lower --num_workers"
        fits = next((fits for factor in reversed(self._taken) if (fits := self._most_images(factor))), 0)
        what = f"batch_size={self._config.batch_size}: {self._told(self.needed(self._micro, self._taken[1]))}"
        if fits > 0:
            return f"{what}: about {fits} would fit; {', or '.join(self._ways(fits))}"
        return f"{what}, nor would a single image fit; {', or '.join(self._ways(0))}"

    @property
    def _taken(self) -> tuple[float, float]:
        return _TAKEN[self._processes.device.type]

    def _told(self, needed: float) -> str:
        told = f"micro-batches of {self._micro} images take about {needed / GIB:.1f} GiB beside the weights"
        return f"{told}{self._room}"

    @property
    def _room(self) -> str:
        return "" if self._free is None else f", and {self._processes.device} has {self._free / GIB:.1f} GiB"

    def _ways(self, fits: int) -> list[str]:
        """Settings with which it would fit, or might."""
        config, world_size = self._config, self._processes.world_size
        batch_size = config.batch_size or 0
        ways = []
        for accum in range(config.accum_iter + 1, batch_size // world_size + 1) if self._accumulates else ():
            images, rest = divmod(batch_size, accum * world_size)
            if rest == 0 and images % self._multiple == 0 and images <= min(fits, self._micro // 2):
                ways.append(f"raise --accum_iter to {accum} (micro-batches of {images})")
                break
        if getattr(config, "grad_checkpointing", True) is False:
            ways.append("pass --grad_checkpointing true")
        if self._graphs:
            ways.append("pass --cuda_graphs false")
        if fits > 0:
            return [*ways, "lower --batch_size"]
        if world_size > 1 and config.parallel == "ddp":
            ways.append("pass --parallel fsdp")
        return ways or ["take a smaller model or more processes"]

    def needed(self, images: int, factor: float = 1.0) -> float:
        """Bytes that a step of a micro-batch takes, and, on the host, those who read its images."""
        config, processes = self._config, self._processes
        on_gpu, several = processes.device.type == "cuda", processes.world_size > 1
        sharded = several and config.parallel == "fsdp"
        trained = sum(p.numel() * p.element_size() for p in self._model.parameters() if p.requires_grad)
        state = trained * _STATE.get(type(self._optimizer), 1) // (processes.world_size if sharded else 1)
        passes = max(self._passes(images))
        if sharded and on_gpu and config.precision == "bf16":
            # Autocast's copies of the weights were counted, where a block's weights are gathered in bf16.
            passes -= sum(2 * p.numel() for p in self._model.parameters())
        # Between micro-batches gradients are whole. Those of DDP lie in its buckets, which are on the GPU already.
        gradients = trained // (processes.world_size if sharded and config.accum_iter == 1 else 1)
        gradients = 0 if several and on_gpu and not sharded else gradients
        copies = (config.accum_iter > 1) + self._graphs  # of the gradients, beside a pass
        step = copies * gradients + passes if copies else max(gradients, passes)
        return factor * (state + step) + self._reading(images)

    def _passes(self, images: int) -> tuple[float, ...]:
        """Most bytes in the forward and in the backward pass: counted, or where they grow evenly, inferred."""
        first, second = 2 * self._unit, 4 * self._unit
        if images <= second:
            return self._counted(images)
        pairs = zip(self._counted(first), self._counted(second), strict=True)
        return tuple(few + (more - few) / (second - first) * (images - first) for few, more in pairs)

    def _counted(self, images: int) -> tuple[int, int]:
        if images not in self._counts:
            self._counts[images] = self._count(images)
        return self._counts[images]

    def _count(self, images: int) -> tuple[int, int]:
        device, precision = self._processes.device, self._config.precision

        def loss(model: nn.Module, batch: TrainBatch) -> Tensor:
            with step_generators(0, 0, 0, device), autocast(precision, device):
                return self._objective.weighted_sum(model, batch.to(device))

        return count_passes(loss, self._model, self._sample(images), device)

    def _reading(self, images: int) -> float:
        if self._processes.device.type != "cpu":
            return 0.0
        batches = 1 + self._num_workers * _BATCHES_OF_A_WORKER
        return batches * images * self._image_bytes + self._num_workers * _WORKER_BYTES

    def _most_images(self, factor: float) -> int:
        """Of a smaller micro-batch that fits, as far as is counted; 0 for none."""
        if self._free is None:
            return self._micro // 2
        most = (self._micro - 1) // self._multiple
        sizes = range(self._multiple, self._multiple * most + 1, self._multiple)  # what they need grows
        return self._multiple * bisect_right(sizes, self._free, key=lambda images: self.needed(images, factor))

    def _most_at_all(self) -> float:
        """More bytes than the weights and linear maps of a step can take: what is so little need not be counted.

        No patch is smaller than a pixel, so no linear map sees more rows.
        """
        pixels = self._sample(1).images[0].numel()
        widths = sum(sum(p.shape[:2]) for p in self._model.parameters() if p.ndim > 1)
        weights = sum(p.numel() for p in self._model.parameters())
        return 4 * (4 * weights + _COPIES * self._micro * pixels * widths)

    def _sample(self, images: int) -> TrainBatch:
        """A batch: of one image, which is read once; as of the last epoch, to which a curriculum leads."""
        last = math.ceil(self._config.epochs) - 1
        return self._dataset.__getitems__([(last + number, 0) for number in range(images)])

    @cached_property
    def _image_bytes(self) -> float:
        return self._sample(2).num_bytes / 2


@contextmanager
def explain_out_of_memory(memory: BatchMemory) -> Iterator[None]:
    """Turn running out of memory after all, on a GPU or on the host, into advice.

    Raises:
        InputError: the memory ran out; says what is too large and what would fit.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(memory.advice()) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is a GPU's or the host's allocator that had no more to give."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(_MESSAGES.search(str(error)))


def asked_too_much(error: BaseException) -> str | None:
    """Running out of memory where nothing has been estimated, in words; None of any other error."""
    if not is_out_of_memory(error):
        return None
    size = re.search(r"allocate (\d+) bytes", str(error))
    asked = "" if size is None else f": {int(size[1]) / GIB:,.1f} GiB were asked for at once"
    return f"there is not enough memory{asked}; take a smaller model, image or batch"
