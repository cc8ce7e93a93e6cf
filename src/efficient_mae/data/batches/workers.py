"""What is said when a loader's worker process dies or hangs: which one, at which image.

Each worker notes the image that it opens in memory that it shares with the process that waits for it.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from types import FrameType
from typing import Any

from torch.utils.data._utils import signal_handling

from efficient_mae.data.sources.registry import Source
from efficient_mae.errors import WorkerFailure

# PyTorch's: raises if one of this process' workers has died.
_raise_of_the_dead = signal_handling._error_if_any_worker_fails  # pyright: ignore[reportPrivateImportUsage]

_IDLE = -1
# What usually lies behind a signal.
_CAUSES = {
    "SIGKILL": "; the system does so when memory runs out: fewer num_workers need less",
    "SIGBUS": "; /dev/shm may be full: give it more room (docker run --shm-size), or take fewer num_workers",
    "SIGSEGV": "; a decoder may have failed on the image: remove it if it happens again",
}
# Seconds until the system has told of the death of a worker whose connection broke.
_MOMENT = 5.0


class WorkerTable:
    """Which image each worker of a loader is at."""

    def __init__(self, source: Source, num_workers: int, advice: str = "") -> None:
        """
        Args:
            advice: for where data are only slow, if there is any.
        """
        self._source, self._advice = source, advice
        self.images: Any = RawArray("q", [_IDLE] * num_workers)

    def failure(self, error: Exception, workers: Sequence[BaseProcess]) -> WorkerFailure | None:
        """Why there is no batch, and None if that isn't for the workers' sake. Afterwards there are no workers.

        Args:
            error: what waiting for it raised.
            workers: the loader's, in order.
        """
        timeout = re.search(r"DataLoader timed out after ([\d.]+) seconds", str(error))
        if not timeout:
            ended = connection.wait([worker.sentinel for worker in workers], _MOMENT)
            for worker in workers:
                if worker.sentinel in ended:
                    worker.join()  # a process closes its files a moment before it can be asked how it ended
        dead = [(number, worker) for number, worker in enumerate(workers) if worker.exitcode is not None]
        if dead:
            message = f"{self._describe(*dead[0])} {_ending(dead[0][1].exitcode or 0)}"
        elif timeout:
            where = ", ".join(self._describe(*item) for item in enumerate(workers))
            message = (
                f"no batch came for {float(timeout[1]):g} seconds: {where}; {self._advice}see that they can be read"
            )
        else:
            return None
        for worker in workers:
            worker.kill()  # one that hangs may heed nothing else, and would keep this process from ending
            worker.join(1)
        return WorkerFailure(message)

    def _describe(self, number: int, worker: BaseProcess) -> str:
        index = self.images[number]
        at = f"at {self._source.sample_name(index)}" if index != _IDLE else "between two batches"
        return f"data worker {number} (process {worker.pid}, {at})"


def _ending(exitcode: int) -> str:
    if exitcode >= 0:
        return f"ended by itself, with status {exitcode}"
    name = signal.Signals(-exitcode).name if -exitcode in set(signal.Signals) else f"signal {-exitcode}"
    return f"was ended by {name}{_CAUSES.get(name, '')}"


# In a worker: its loader's table of images and its own number.
_own: tuple[Any, int] | None = None


def enter_worker(images: Any, number: int) -> None:
    """Say, in a worker, that it is one: its loader's :attr:`WorkerTable.images`, its number."""
    global _own
    _own = images, number


def note_image(index: int = _IDLE) -> None:
    """Note, if this is a worker, that it is at an image, or, without one, that its batch is made."""
    if _own is not None:
        images, number = _own
        images[number] = index


@contextmanager
def waiting_for_workers() -> Iterator[None]:
    """Within alone, the death of a worker is raised: what died before, at once."""
    before = signal.getsignal(signal.SIGCHLD)

    def tell(number: int, frame: FrameType | None) -> None:
        _raise_of_the_dead()
        if callable(before):
            before(number, frame)

    # Python lets the main thread alone hear of it, and can't put back what other code than Python's has set.
    hears = threading.current_thread() is threading.main_thread() and before is not None
    try:
        if hears:
            signal.signal(signal.SIGCHLD, tell)
        _raise_of_the_dead()
        yield
    finally:
        if hears:
            signal.signal(signal.SIGCHLD, before)


@contextmanager
def no_lasting_handler() -> Iterator[None]:
    """Within, PyTorch starts workers without setting its own handler of their death.

    It would stay for good, and raise wherever the main process happens to be, be it in the middle of a checkpoint.
    """
    before = signal_handling._SIGCHLD_handler_set
    signal_handling._SIGCHLD_handler_set = True
    try:
        yield
    finally:
        signal_handling._SIGCHLD_handler_set = before
