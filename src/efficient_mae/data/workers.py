"""What is said when a loader's worker process dies or hangs: which one, at which image.

Each worker notes the image that it opens in memory that it shares with the process that waits for it.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import RawArray
from types import FrameType
from typing import Any
from weakref import WeakSet

from efficient_mae.data.sources import Source

# A worker's share of the table: its process id, and the image that it is at.
_CELLS = 2
_IDLE = -1
# What usually lies behind a signal, by the name that PyTorch gives it.
_CAUSES = {
    "Killed": "; the system does so when memory runs out: fewer num_workers need less",
    "Bus error": "; /dev/shm may be full: give it more room (docker run --shm-size), or take fewer num_workers",
    "Segmentation fault": "; a decoder may have failed on the image: remove it if it happens again",
}


class WorkerFailure(RuntimeError):  # noqa: N818 - it is the worker's, not the code's
    """A loader's worker process died, or gave no batch in time; the message is one line."""


class WorkerTable:
    """Which image each worker of a loader is at."""

    def __init__(self, source: Source, num_workers: int) -> None:
        self._source = source
        self.cells: Any = RawArray("q", [_IDLE] * (_CELLS * num_workers))
        _tables.add(self)

    def failure(self, error: RuntimeError) -> WorkerFailure | None:
        """What an error of PyTorch's says of this loader's workers; None if it is about something else."""
        message = f"{error} {error.__cause__ or ''}"
        if timeout := re.search(r"DataLoader timed out after ([\d.]+) seconds", message):
            where = ", ".join(map(self._describe, range(len(self.cells) // _CELLS)))
            return WorkerFailure(
                f"no batch came for {float(timeout[1]):g} seconds: {where}; where data are as slow as that, raise "
                "data_timeout, and else see that they can be read"
            )
        killed = re.search(r"DataLoader worker \(pid (\d+)\) is killed by signal: ([^.]+)\.", message)
        ended = killed or re.search(r"DataLoader worker \(pid(?:\(s\))? (\d+)", message)
        processes = self.cells[::_CELLS]
        if not ended or int(ended[1]) not in processes:
            return None
        how = f"was ended by a signal ({killed[2]}){_CAUSES.get(killed[2], '')}" if killed else "ended by itself"
        return WorkerFailure(f"{self._describe(processes.index(int(ended[1])))} {how}")

    def end_workers(self) -> None:
        """Kill the workers: one that hangs may heed nothing else, and would keep this process from ending."""
        own = set(self.cells[::_CELLS])
        for process in multiprocessing.active_children():
            if process.pid in own:
                process.kill()
                process.join(1)

    def _describe(self, number: int) -> str:
        process, index = self.cells[_CELLS * number : _CELLS * (number + 1)]
        at = f"at {self._source.sample_name(index)}" if index != _IDLE else "between two batches"
        return f"data worker {number} (process {process}, {at})"


# Of the loaders that are in use.
_tables: WeakSet[WorkerTable] = WeakSet()
# In a worker: its loader's cells and its own place among them.
_own: tuple[Any, int] | None = None


def worker_failure(error: RuntimeError) -> WorkerFailure | None:
    """What an error of PyTorch's says of any loader's workers; None if it is about something else."""
    return next((failure for table in _tables if (failure := table.failure(error))), None)


def enter_worker(cells: Any, number: int, process: int) -> None:
    """Say, in a worker, that it is one: the cells of its loader's table, its number, its process id."""
    global _own
    _own = cells, _CELLS * number
    cells[_CELLS * number] = process


def note_image(index: int = _IDLE) -> None:
    """Note, if this is a worker, that it is at an image, or, without one, that its batch is made."""
    if _own is not None:
        cells, place = _own
        cells[place + 1] = index


@contextmanager
def waiting_for_workers() -> Iterator[None]:
    """Within alone, the death of a worker is raised: what died before, at once.

    PyTorch would raise it wherever the main process happens to be, be it in the middle of a checkpoint.
    """
    global _is_waiting
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler) and not isinstance(handler, _Listener):
        handler = _Listener(handler)
        if threading.current_thread() is threading.main_thread():  # which alone hears of it
            signal.signal(signal.SIGCHLD, handler)
    _is_waiting = True
    try:
        if isinstance(handler, _Listener):
            handler(signal.SIGCHLD, None)
        yield
    finally:
        _is_waiting = False


_is_waiting = False


class _Listener:
    """A handler of the death of children that acts while a batch is awaited."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self._handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if _is_waiting:
            self._handler(number, frame)
