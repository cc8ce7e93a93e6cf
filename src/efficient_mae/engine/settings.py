"""The settings that every training task has, and how they are settled for given data on a given machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le

from efficient_mae.data.batches.loader import DATA_TIMEOUT
from efficient_mae.data.sources.choice import DataChoice
from efficient_mae.data.sources.measure import ReadingSettings
from efficient_mae.engine.machine.distributed import resolve_precision
from efficient_mae.engine.machine.parallel import PARALLEL
from efficient_mae.engine.optim import BASE_BATCH_SIZE
from efficient_mae.errors import InputError
from efficient_mae.ranges import Epochs, Location, NonNegative, NonNegativeInt, Positive, PositiveInt, Seed, Switch

# Settings that may differ when a run is resumed: none of them changes what is learned.
OPERATIONAL = (
    "out",
    "device",
    "parallel",
    "compile",
    "accum_iter",
    "num_workers",
    "data_timeout",
    "log_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_checkpoints",
    "max_skipped_steps",
    "rollbacks",
    "accept_changed_data",
)

# Where no batch size is given. The learning rate scales with it, so a paper's batch is a matter of its recipe.
_DEFAULT_BATCH_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class RunConfig(DataChoice, ReadingSettings):
    """Settings of a training run."""

    data: Location
    """folder of images, folder per class, hf:NAME_OR_PATH, wds:PATTERN, fashion-mnist-sample,
    photographs-sample or fashion-mnist"""
    out: Location
    """run directory; the same command again resumes the run in it"""
    epochs: Epochs = 100
    """passes over the data; 1.5 ends half-way through the second"""
    batch_size: PositiveInt | None = None
    """images of an optimiser step, over all processes (null: 256, or fewer where the data set is smaller)"""
    accum_iter: PositiveInt = 1
    """micro-batches that an optimiser step is cut into, to fit the memory"""
    base_lr: Positive = 1e-3
    """learning rate at batch size 256; scales with the batch"""
    min_lr: NonNegative = 0.0
    """learning rate that training ends with, whatever the batch"""
    warmup_epochs: NonNegative | None = None
    """epochs of linear warm-up (null: the task's usual number, or a fifth of the epochs where that is less)"""
    clip_grad: Positive | None = None
    """largest norm of the gradient (null: no clipping)"""
    seed: Seed = 0
    """of all that is random"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    precision: str = "auto"
    """bf16, fp32, or auto: bf16 where the hardware computes in it"""
    parallel: str = "ddp"
    """how several processes share a model: ddp, each holds all of it, or fsdp, each a part, for what doesn't fit"""
    compile: Switch = False
    """compile the transformer blocks with torch.compile, slower to start, faster after: true (on a CPU it needs g++),
    false, or auto, on a GPU where it works"""
    num_workers: NonNegativeInt | None = None
    """processes that read images, for each training process (null: 1 on a CPU, up to 12 on a GPU)"""
    data_timeout: Annotated[float, Ge(0), Le(1e9)] = DATA_TIMEOUT
    """seconds without a batch after which the run ends, and says what it waited for; 0 waits for ever, but of several
    processes the others wait ten minutes on GPUs, half an hour on CPUs"""
    log_every: PositiveInt = 20
    """steps between two lines of metrics.jsonl; at first each step has one, and no two are more than 30 s apart"""
    checkpoint_every: PositiveInt = 500
    """steps between two checkpoints"""
    checkpoint_minutes: Positive = 10.0
    """minutes between two checkpoints where steps are long; an epoch of more than a minute ends with one at least"""
    keep_checkpoints: PositiveInt = 2
    """checkpoints that stay on the disk; one that `emae replay` needs stays besides"""
    max_skipped_steps: PositiveInt = 10
    """steps in a row, skipped because the loss or the gradient is not finite, with which the run stops"""
    rollbacks: NonNegativeInt = 0
    """times that a run which would stop goes back to its last checkpoint instead, and passes over the images since"""
    accept_changed_data: bool = False
    """go on with data in which images were removed, or added, since the run was begun; data.json keeps what was"""


def settle(config: RunConfig, num_samples: int, device: torch.device, usual_warmup: float) -> dict[str, Any]:
    """The settings that depend on the data and the machine: `batch_size`, `warmup_epochs` and `precision`.

    Args:
        config: the settings as given.
        num_samples: images in the training set.
        device: that the run computes on.
        usual_warmup: epochs of warm-up where none are given and the run is long enough.

    Raises:
        InputError: a setting that cannot work.
    """
    if config.parallel not in PARALLEL:
        raise InputError(f"parallel={config.parallel!r}: must be one of {', '.join(PARALLEL)}")
    warmup = config.warmup_epochs
    if warmup is None:
        warmup = _warmup(usual_warmup, config.epochs)
    if warmup > config.epochs:
        raise InputError(
            f"warmup_epochs={warmup}: must lie between 0 and epochs={config.epochs}; null takes what suits them"
        )
    largest = 1 << (num_samples.bit_length() - 1)  # power of two
    batch_size = min(_DEFAULT_BATCH_SIZE, largest) if config.batch_size is None else config.batch_size
    if config.min_lr > (highest := config.base_lr * batch_size / BASE_BATCH_SIZE):
        at = f"base_lr={config.base_lr} at batch_size={batch_size}"
        raise InputError(f"min_lr={config.min_lr}: must be at most {highest:g}, the rate of {at}")
    return {
        "batch_size": batch_size,
        "warmup_epochs": warmup,
        "precision": resolve_precision(config.precision, device),
    }


def without_usual_warmup(settings: Mapping[str, Any], usual_warmup: float) -> dict[str, Any]:
    """A run's settings for another one, whose epochs may be others: a warm-up that null would have settled is null.

    Args:
        settings: as recorded, settled.
        usual_warmup: of the run's task.
    """
    epochs, kept = settings.get("epochs"), dict(settings)
    if isinstance(epochs, int | float) and kept.get("warmup_epochs") == _warmup(usual_warmup, epochs):
        kept["warmup_epochs"] = None
    return kept


def _warmup(usual: float, epochs: float) -> float:
    return min(usual, epochs / 5)


def check_division(batch_size: int, accum_iter: int, world_size: int, num_samples: int) -> None:
    """Refuse a global batch that the data cannot fill or that cannot be cut evenly.

    Raises:
        InputError: with what would do.
    """
    if world_size > num_samples:
        raise InputError(
            f"{world_size} processes for {num_samples} images: start at most as many as there are images"
        )
    if not 0 < batch_size <= num_samples:
        raise InputError(
            f"batch_size={batch_size}: must be at least 1 and at most the {num_samples} images of the data set"
        )
    parts = accum_iter * world_size
    if batch_size % parts:
        fewer, more = batch_size // parts * parts, (batch_size // parts + 1) * parts
        sizes = [str(size) for size in (fewer, more) if 0 < size <= num_samples]
        accums = [n for n in range(1, batch_size // world_size + 1) if batch_size % (n * world_size) == 0]
        ways = [f"batch_size {' or '.join(sizes)}"] if sizes else []
        if accums:
            ways.append(f"accum_iter {min(accums, key=lambda n: abs(n - accum_iter))}")
        raise InputError(
            f"batch_size={batch_size}: cannot be divided evenly among "
            f"accum_iter={accum_iter} x {world_size} processes; take {', or '.join(ways) or 'fewer processes'}"
        )
