"""Makes batches, the same for any number of workers. Letters: B images, R crops of an image, L patches."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from efficient_mae.data.batch import EvalBatch, TrainBatch
from efficient_mae.data.decode import OpenedImage, UnreadableImage
from efficient_mae.data.order import ResumableBatchSampler, sample_rng
from efficient_mae.data.sources import Source
from efficient_mae.data.transforms import EvalTransform
from efficient_mae.data.workers import (
    WorkerFailure,
    WorkerTable,
    enter_worker,
    note_image,
    waiting_for_workers,
    worker_failure,
)
from efficient_mae.errors import InputError

T = TypeVar("T")


@runtime_checkable
class TrainTransform(Protocol):
    """From an image to pixels, the same for the same random numbers."""

    def crops(self, image: OpenedImage, rngs: Collection[np.random.Generator]) -> UInt8[Tensor, "R C H W"]:
        """A crop for each generator, of an image that is decoded once; raises UnreadableImage if it's damaged."""
        ...


# So many unreadable images one after another mean that the data set as a whole is not what it should be.
LONGEST_DAMAGE = 100
# Seconds without a batch after which something hangs: a file server that is gone, most often.
DATA_TIMEOUT = 600.0


class TrainDataset(Dataset[TrainBatch]):
    """Makes training batches of (epoch, index) pairs.

    The crop and the mask of a pair are functions of (seed, epoch, index). The masks of a batch are made here, in
    the worker, at once: so their lengths are known on the host and training never waits for the device to tell.
    """

    def __init__(
        self,
        source: Source,
        transform: TrainTransform,
        seed: int,
        *,
        min_size: int = 1,
        num_patches: int | None = None,
        make_masks: Callable[[Float32[Tensor, "B L"], int], Any] | None = None,
    ) -> None:
        """
        Args:
            min_size: an image with a side shorter than this, in pixels, counts as unreadable (the patch size).
            num_patches: L, random numbers in [0, 1) that an image's mask is made of; goes with `make_masks`.
            make_masks: from the random numbers of a batch and the epoch that it belongs to, to its masks: any object
                that can be sent between processes.
        """
        if (num_patches is None) != (make_masks is None):
            raise ValueError("num_patches and make_masks go together: give both or neither")
        self.source = source
        self.transform = transform
        self.seed = seed
        self.min_size = min_size
        self.num_patches = num_patches
        self.make_masks = make_masks

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, pair: tuple[int, int]) -> TrainBatch:
        return self.__getitems__([pair])

    def __getitems__(self, pairs: Sequence[tuple[int, int]]) -> TrainBatch:
        """The batch of these (epoch, index) pairs; an image that stands in several in a row is decoded once.

        Raises:
            InputError: an image and the 100 that follow it are all unreadable.
        """
        crops, indices = [], []
        damaged: dict[str, str] = {}
        for index, group in groupby(pairs, key=lambda pair: pair[1]):
            epochs = [epoch for epoch, _ in group]
            made, used = self.first_readable(index, damaged, partial(self.crop, index, epochs))
            crops.append(made)
            indices += [used] * len(epochs)
        labels = _labels(self.source, indices)
        facts = {"indices": torch.tensor(indices), "labels": labels, "damaged": list(damaged.items())}
        return self.batch(crops, masks=self._masks(pairs), **facts)

    def crop(self, index: int, epochs: Sequence[int], image: OpenedImage) -> Any:
        """What the image gives to a batch: its crop in each of these epochs; raises UnreadableImage.

        Args:
            index: the number that was asked for: the image itself may be the one that replaces it.
        """
        return self.transform.crops(image, self.rngs(index, epochs))

    def rngs(self, index: int, epochs: Sequence[int]) -> list[np.random.Generator]:
        """The random numbers of an image's crop in each of these epochs."""
        return [sample_rng(self.seed, epoch, index, "crop") for epoch in epochs]

    def batch(self, crops: list[Any], **facts: Any) -> TrainBatch:
        """The batch of what :meth:`crop` made and what else is known of it."""
        return TrainBatch(images=torch.cat(crops), **facts)

    def first_readable(self, index: int, damaged: dict[str, str], read: Callable[[OpenedImage], T]) -> tuple[T, int]:
        """What `read` makes of the image at `index` or the next after it that can be read, and its number.

        Args:
            damaged: filled with the reason, by name, of every unreadable image on the way.
            read: decodes the image; raises UnreadableImage where it cannot.

        Raises:
            InputError: this image and the 100 that follow it are all unreadable.
        """
        looked_at = min(LONGEST_DAMAGE + 1, len(self.source))
        for step in range(looked_at):
            candidate = (index + step) % len(self.source)
            try:
                return read(_open(self.source, candidate, self.min_size)), candidate
            except UnreadableImage as error:
                damaged[error.name] = error.reason
        name = self.source.sample_name(index)
        raise InputError(
            f"data={self.source.name}: no readable image among {looked_at} of {len(self.source)} looked at; "
            f"{name}: {damaged[name]}"
        )

    def _masks(self, pairs: Sequence[tuple[int, int]]) -> Any:
        if self.make_masks is None or self.num_patches is None:
            return None
        noise = torch.empty(len(pairs), self.num_patches)
        for row, (epoch, index) in zip(noise.numpy(), pairs, strict=True):
            sample_rng(self.seed, epoch, index, "mask").random(out=row, dtype=row.dtype)
        return self.make_masks(noise, pairs[0][0])  # a batch never reaches into the next epoch


class EvalDataset(Dataset[EvalBatch]):
    """Makes evaluation batches of indices; arguments as for TrainDataset."""

    def __init__(self, source: Source, transform: EvalTransform, *, min_size: int = 1) -> None:
        self.source = source
        self.transform = transform
        self.min_size = min_size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> EvalBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> EvalBatch:
        """The batch of these images; a smaller one, down to none, where some are unreadable."""
        images, used = [], []
        damaged: dict[str, str] = {}
        for index in indices:
            try:
                images.append(self.transform(_open(self.source, index, self.min_size).decode().image))
                used.append(index)
            except UnreadableImage as error:
                damaged[error.name] = error.reason
        nothing = torch.empty((0, *self.transform.shape), dtype=torch.uint8)
        return EvalBatch(
            images=torch.stack(images) if images else nothing,
            indices=torch.tensor(used, dtype=torch.int64),
            labels=_labels(self.source, used),
            damaged=list(damaged.items()),
        )


def make_train_loader(
    dataset: TrainDataset,
    batch_sampler: ResumableBatchSampler,
    *,
    num_workers: int = 0,
    prefetch_factor: int = 2,
    pin_memory: bool = False,
    multiprocessing_context: str | None = None,
    timeout: float = DATA_TIMEOUT,
) -> DataLoader[TrainBatch]:
    """An endless loader of the sampler's batches, in its order whatever the number of workers.

    Args:
        num_workers: processes that read images; 0 reads them in this one.
        prefetch_factor: batches that each worker keeps ready.
        pin_memory: hand over batches in page-locked memory, for asynchronous copies to a GPU.
        multiprocessing_context: how workers are started; on Linux by fork unless given, which shares the source's
            memory with them.
        timeout: seconds to wait for a batch of the workers; 0 waits for ever.

    Iterating raises WorkerFailure when a worker dies or no batch comes in time.
    """
    return _loader(
        dataset, batch_sampler, num_workers, pin_memory, prefetch_factor, multiprocessing_context, timeout
    )


def make_eval_loader(
    source: Source,
    transform: EvalTransform,
    batch_size: int,
    num_workers: int = 0,
    *,
    min_size: int = 1,
    pin_memory: bool = False,
) -> DataLoader[EvalBatch]:
    """A loader of all readable images of a source, in order; may be iterated over again."""
    batches = BatchSampler(SequentialSampler(range(len(source))), batch_size, drop_last=False)
    return _loader(EvalDataset(source, transform, min_size=min_size), batches, num_workers, pin_memory)


B = TypeVar("B", bound=EvalBatch)


class _ErrorsAsValues(Dataset[B], Generic[B]):
    """Returns an InputError in place of the batch: raised in a worker, it would arrive as a page of traceback."""

    def __init__(self, dataset: TrainDataset | EvalDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: Any) -> Any:
        return self.__getitems__([index])

    def __getitems__(self, indices: Any) -> Any:
        try:
            return self.dataset.__getitems__(indices)
        except InputError as error:
            return error
        finally:
            note_image()


class _Loader(DataLoader[B]):
    def __init__(self, table: WorkerTable, *arguments: Any, **options: Any) -> None:
        self._table = table
        super().__init__(*arguments, **options)

    def __iter__(self) -> Iterator[B]:  # pyright: ignore[reportIncompatibleMethodOverride]
        batches = super().__iter__()
        while (batch := self._next(batches)) is not None:
            if isinstance(batch, WorkerFailure):
                self._table.end_workers()
                raise WorkerFailure(str(batch))
            if isinstance(batch, InputError):
                # A new one: `batch` itself would keep this frame and the workers alive, in a circle.
                raise InputError(str(batch))
            yield batch

    def _next(self, batches: Iterator[B]) -> Any:
        """The next batch or what stands for it: None at the end, the reason why there is none."""
        try:
            with waiting_for_workers():
                return next(batches, None)
        except RuntimeError as error:
            failure = worker_failure(error)
            if failure is None:
                raise
            return failure


def _loader(
    dataset: TrainDataset | EvalDataset,
    batch_sampler: Any,
    num_workers: int,
    pin_memory: bool,
    prefetch_factor: int = 2,
    multiprocessing_context: str | None = None,
    timeout: float = DATA_TIMEOUT,
) -> _Loader[Any]:
    table = WorkerTable(dataset.source, num_workers)
    workers: dict[str, Any] = {}
    if num_workers:
        if multiprocessing_context is None and sys.platform == "linux":
            multiprocessing_context = "fork"
        workers = {
            "persistent_workers": True,
            "prefetch_factor": prefetch_factor,
            "multiprocessing_context": multiprocessing_context,
            "worker_init_fn": partial(_start_worker, table.cells),
            "timeout": timeout,
        }
    return _Loader(
        table,
        _ErrorsAsValues(dataset),
        batch_sampler=batch_sampler,
        num_workers=num_workers,
        pin_memory=pin_memory,
        collate_fn=_as_is,
        # DataLoader draws a number when it starts; from its own generator it leaves the run's alone.
        generator=torch.Generator(),
        **workers,
    )


def _start_worker(cells: Any, number: int) -> None:
    enter_worker(cells, number, os.getpid())
    torch.set_num_threads(1)
    # Ctrl-C reaches every process of the terminal; the main one decides what becomes of it, and needs its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_is(batch: Any) -> Any:
    return batch


def _open(source: Source, index: int, min_size: int) -> OpenedImage:
    """An image of sufficient size; raises UnreadableImage."""
    note_image(index)
    image = source.open(index)
    if min(image.size) < min_size:
        width, height = image.size
        reason = f"{width} x {height} pixels, smaller than a patch of {min_size}"
        raise UnreadableImage(source.sample_name(index), reason)
    return image


def _labels(source: Source, indices: Sequence[int]) -> Int64[Tensor, " B"] | None:
    if source.classes is None:
        return None
    labels = [source.label(index) for index in indices]
    return torch.tensor([-1 if label is None else label for label in labels], dtype=torch.int64)
