"""What is said when a loader's worker process dies or hangs: which one, at which image.

Each worker notes the image that it opens in memory that it shares with the process that waits for it.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import RawArray
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


class WorkerFailure(RuntimeError):
    """A loader's worker process died, or gave no batch in time; the message is one line."""


class WorkerTable:
    """Which image each worker of a loader is at."""

    def __init__(self, source: Source, num_workers: int) -> None:
        self._source = source
        self.cells: Any = RawArray("q", [_IDLE] * (_CELLS * num_workers))
        _tables.add(self)

    def failure(self, error: RuntimeError) -> WorkerFailure | None:
        """What an error of PyTorch's says of this loader's workers, said better; None if it is about something else."""
        message = str(error)
        if match := re.search(r"DataLoader timed out after ([\d.]+) seconds", message):
            where = ", ".join(map(self._describe, range(len(self.cells) // _CELLS)))
            return WorkerFailure(
                f"no batch came for {float(match[1]):g} seconds: {where}; where data are as slow as that, raise "
                "data_timeout, and else see that they can be read"
            )
        if match := re.search(r"DataLoader worker \(pid(?:\(s\))? (\d+).*?\) (.*)", message, re.DOTALL):
            numbers = [n for n in range(len(self.cells) // _CELLS) if self.cells[_CELLS * n] == int(match[1])]
            if numbers:
                killed = re.match(r"is killed by signal: ([^.]+)\.", match[2])
                how = f"was ended by a signal ({killed[1]})" if killed else "ended by itself"
                return WorkerFailure(
                    f"{self._describe(numbers[0])} {how}{_CAUSES.get(killed[1], '') if killed else ''}"
                )
        return None

    def end_workers(self) -> None:
        """Kill the workers: one that hangs may heed nothing else, and would keep this process from ending."""
        own = set(self.cells[::_CELLS])
        with _deaths_unheard():
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


def worker_failure(error: BaseException) -> WorkerFailure | None:
    """What an error says of any loader's workers; None if it is about something else.

    PyTorch raises the death of a worker wherever the main process happens to be.
    """
    if isinstance(error, WorkerFailure):
        return error
    if not isinstance(error, RuntimeError):
        return None
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
def _deaths_unheard() -> Iterator[None]:
    """Within, PyTorch doesn't raise the death of a worker."""
    if threading.current_thread() is not threading.main_thread():  # which alone hears of it
        yield
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)
