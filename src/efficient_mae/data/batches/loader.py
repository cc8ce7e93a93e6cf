"""Makes batches, the same for any number of workers. Letters: B images, R crops of an image, L patches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from efficient_mae.children import end_with_main_process, share_temporary_folder
from efficient_mae.data.batches.batch import EvalBatch, TrainBatch
from efficient_mae.data.batches.datasets import EvalDataset, TrainDataset
from efficient_mae.data.batches.order import ResumableBatchSampler
from efficient_mae.data.batches.worker_signals import leave_signals_to_the_main_process
from efficient_mae.data.batches.workers import (
    WorkerTable,
    enter_worker,
    no_lasting_handler,
    note_image,
    waiting_for_workers,
)
from efficient_mae.data.images.transforms import EvalTransform
from efficient_mae.data.sources.registry import Source
from efficient_mae.errors import InputError, WorkerFailure

# Seconds without a batch after which something hangs: a file server that is gone, most often.
DATA_TIMEOUT = 600.0


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
    return _loader(dataset, batch_sampler, num_workers, pin_memory, prefetch_factor, multiprocessing_context, timeout)


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
    return load_in_order(EvalDataset(source, transform, min_size=min_size), batch_size, num_workers, pin_memory)


def load_in_order(
    dataset: EvalDataset, batch_size: int, num_workers: int = 0, pin_memory: bool = False
) -> DataLoader[Any]:
    """A loader of all that a data set makes batches of, in order; may be iterated over again."""
    batches = BatchSampler(SequentialSampler(range(len(dataset))), batch_size, drop_last=False)
    return _loader(dataset, batches, num_workers, pin_memory)


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
        with no_lasting_handler():
            batches = super().__iter__()
        while (batch := self._next(batches)) is not None:
            if isinstance(batch, WorkerFailure):
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
        # A worker that dies while it hands over a batch breaks a connection.
        except (RuntimeError, OSError, EOFError) as error:
            workers = getattr(batches, "_workers", ())
            failure = self._table.failure(error, workers) if workers else None
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
    is_training = isinstance(dataset, TrainDataset)
    advice = "where data are as slow as that, raise data_timeout, and else " if is_training else ""
    table = WorkerTable(dataset.source, num_workers, advice)
    workers: dict[str, Any] = {}
    if num_workers:
        if multiprocessing_context is None and sys.platform == "linux":
            multiprocessing_context = "fork"
        workers = {
            "persistent_workers": True,
            "prefetch_factor": prefetch_factor,
            "multiprocessing_context": multiprocessing_context,
            "worker_init_fn": partial(_start_worker, table.images, share_temporary_folder()),
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


def _start_worker(images: Any, folder: str | None, number: int) -> None:
    leave_signals_to_the_main_process()  # before there is a thread, which would hear them
    end_with_main_process(folder)
    enter_worker(images, number)
    torch.set_num_threads(1)


def _as_is(batch: Any) -> Any:
    return batch
