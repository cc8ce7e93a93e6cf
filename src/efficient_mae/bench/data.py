"""`emae bench data`: how fast the loader makes batches, and whether a training step would have to wait for it."""

import statistics
import time
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rich.console import Console
from rich.table import Table

from efficient_mae.bench.contenders import step_images_per_second
from efficient_mae.command import Result
from efficient_mae.data import (
    DataChoice,
    PretrainTransform,
    ResumableBatchSampler,
    Source,
    TrainDataset,
    UnreadableImage,
    make_train_loader,
    open_source,
    spread,
)
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.data.sources.measure import ReadingSettings
from efficient_mae.engine.machine.distributed import find_device, resolve_precision
from efficient_mae.engine.machine.facts import available_cores, describe_machine
from efficient_mae.errors import InputError
from efficient_mae.ranges import Location, NonNegativeInt, Positive, PositiveInt, Seed, Share
from efficient_mae.tasks.pretrain_config import ModelChoice, build_model

# Images whose files are weighed.
WEIGHED = 256
# Batches that each worker keeps ready; those of the start were not made within the time that is measured.
_PREFETCH = 2


@dataclass(frozen=True, kw_only=True)
class BenchDataConfig(ModelChoice, DataChoice, ReadingSettings):
    """Settings of `emae bench data`."""

    data: Location
    """folder of images, folder per class, hf:NAME_OR_PATH, wds:PATTERN, fashion-mnist-sample or
    photographs-sample"""
    batch_size: PositiveInt = 64
    """images of a batch, of one process"""
    crop_scale: tuple[Share, Share] = (0.2, 1.0)
    """share of the image's area that a random crop covers, from and to"""
    hflip: bool = True
    """flip every other image horizontally"""
    repeats: PositiveInt = 1
    """crops that an image gives whenever it is read"""
    num_workers: tuple[NonNegativeInt, ...] | None = None
    """numbers of loader processes to try, 0 for none but this one (null: 1, 2, 4, ... up to the cores)"""
    seconds: Positive = 5.0
    """time to measure, for each number of workers"""
    step_images_per_second: Positive | None = None
    """speed of the training step that the loader feeds (null: a few steps of the model are timed on the device)"""
    seed: Seed = 0
    """of order, crops and masks"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N: where steps are timed"""
    precision: str = "auto"
    """bf16, fp32, or auto: bf16 where the hardware computes in it"""


@dataclass(frozen=True, kw_only=True)
class LoaderSpeed:
    """How fast so many workers are.

    Attributes:
        num_workers: their number.
        images_per_second: crops, as a step counts them.
        per_worker: the same.
        per_core: the same, of those that they can occupy.
        megabytes_per_second: read from storage.
        wait_share: of its time that the step would wait.
    """

    num_workers: int
    images_per_second: float
    per_worker: float
    per_core: float
    megabytes_per_second: float
    wait_share: float


@dataclass(frozen=True, kw_only=True)
class DataResult(Result):
    """How fast the loader is.

    Attributes:
        data: as given.
        images: in the data set.
        bytes_per_image: mean of the files; 0 if there are none.
        step_images_per_second: of the training step.
        step_measured: whether it was, or given.
        loaders: one for each number of workers.
        machine: as :func:`efficient_mae.engine.machine.facts.describe_machine` has it, and `precision`.
    """

    data: str
    images: int
    bytes_per_image: int
    step_images_per_second: float
    step_measured: bool
    loaders: list[LoaderSpeed]
    machine: dict[str, Any]


def bench_data(config: BenchDataConfig) -> DataResult:
    """Images a second of the loader alone, for each number of workers, beside the training step's.

    Raises:
        InputError: a setting that cannot work, or unusable data.
    """
    given = config.step_images_per_second
    counts = _worker_counts() if config.num_workers is None else config.num_workers
    if not counts:
        raise InputError("num_workers=[]: must be one number or more")
    device = find_device(config.device)
    precision = resolve_precision(config.precision, device)
    source = open_source(config.data, "train", config)
    with torch_seeded(0):
        model = build_model(config)
    described = model.config
    reading = config.reading(source, described.in_chans)
    transform = PretrainTransform(described.img_size, reading, scale=config.crop_scale, hflip=config.hflip)
    dataset = TrainDataset(
        source,
        transform,
        config.seed,
        min_size=described.patch_size,
        num_patches=described.grid_size[0] * described.grid_size[1],
        make_masks=described.planner(described.unit(device)),
    )
    bytes_per_image = _bytes_per_image(source)
    speeds = {workers: _images_per_second(dataset, workers, config) for workers in counts}
    step = step_images_per_second(model, config.batch_size, device, precision) if given is None else given
    loaders = [
        LoaderSpeed(
            num_workers=workers,
            images_per_second=round(speed, 2),
            per_worker=round(speed / max(1, workers), 2),
            per_core=round(speed / min(max(1, workers), available_cores()), 2),
            megabytes_per_second=round(speed / config.repeats * bytes_per_image / 1e6, 3),
            wait_share=round(max(0.0, 1 - speed / step), 4),
        )
        for workers, speed in speeds.items()
    ]
    return DataResult(
        data=config.data,
        images=len(source),
        bytes_per_image=round(bytes_per_image),
        step_images_per_second=round(step, 2),
        step_measured=given is None,
        loaders=loaders,
        machine=describe_machine(device) | {"precision": precision},
    )


def show_bench_data(result: DataResult, console: Console) -> None:
    """Print what :func:`bench_data` found."""
    size = result.bytes_per_image
    stored = f"{size / 1e3:,.1f} kB an image" if size else "in memory"
    console.print(f"{result.data}: {result.images:,} images, {stored}", highlight=False)
    how = "measured here" if result.step_measured else "as given"
    console.print(f"the training step: {result.step_images_per_second:,} images/s, {how}", highlight=False)
    table = Table()
    for heading in ("workers", "images/s", "per worker", "per core", "MB/s read", "step waits"):
        table.add_column(heading, justify="right")
    for row in result.loaders:
        table.add_row(
            str(row.num_workers),
            *(f"{speed:,.1f}" for speed in (row.images_per_second, row.per_worker, row.per_core)),
            f"{row.megabytes_per_second:,.2f}",
            f"{row.wait_share:.0%}",
        )
    console.print(table)


def _worker_counts() -> tuple[int, ...]:
    """Powers of two up to the number of cores, and that."""
    cores = available_cores()
    return (*(1 << power for power in range((cores - 1).bit_length())), cores)


def _bytes_per_image(source: Source) -> float:
    """Mean length of the files of images spread over the data set, unreadable ones left out."""
    sample = spread(source, WEIGHED)
    sizes = []
    for index in range(len(sample)):
        try:
            sizes.append(sample.open(index).num_bytes)
        except UnreadableImage:
            continue
    return statistics.fmean(sizes) if sizes else 0.0


def _images_per_second(dataset: TrainDataset, num_workers: int, config: BenchDataConfig) -> float:
    """The loader's speed once what it had prepared at the start is used up."""
    sampler = ResumableBatchSampler(len(dataset), config.batch_size, config.seed, repeats=config.repeats)
    loader = make_train_loader(dataset, sampler, num_workers=num_workers, prefetch_factor=_PREFETCH)
    batches = iter(loader)
    for _ in islice(batches, max(1, num_workers * _PREFETCH)):
        pass
    begin, made = time.perf_counter(), 0
    while made < max(1, num_workers) or time.perf_counter() - begin < config.seconds:
        next(batches)
        made += 1
    return made * config.batch_size / (time.perf_counter() - begin)
