"""Asked to stop: by whoever lends the machine (SIGTERM, SIGUSR1) or by Ctrl-C; or to write what is due by the clock.

All processes stop, and write, after the same step. A signal may reach one alone, and no two clocks are the same, so
they tell each other, once a step, on the host: the answer of one step is taken at the next, when it has long arrived,
and no device is waited for.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from efficient_mae.engine.machine.distributed import Processes

# Windows knows no SIGUSR1.
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]


class Agreed(NamedTuple):
    """What all processes do after the step that comes.

    Attributes:
        stop: the signal by which they stop; 0 for none.
        row: write a row of the log.
        checkpoint: write a checkpoint.
    """

    stop: int = 0
    row: bool = False
    checkpoint: bool = False


class StopRequests:
    """Signals that ask this run to stop.

    Args:
        processes: that train together.
    """

    def __init__(self, processes: Processes):
        self._processes = processes
        self._received = 0
        self._asked: tuple[dist.Work, Tensor] | None = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Within, a signal is noted and the program goes on, but for a second Ctrl-C, which is KeyboardInterrupt.

        Only in the main thread, for Python lets no other handle signals. One that is ignored stays so.
        """
        before = {}
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in _SIGNALS}
            before = {number: held for number, held in handlers.items() if held not in (None, signal.SIG_IGN)}
        for number in before:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, held in before.items():
                signal.signal(number, held)

    @property
    def lag(self) -> int:
        """Steps after which all know what one has asked for."""
        return 0 if self._processes.world_size == 1 else 1

    def agreed(self, row: bool = False, checkpoint: bool = False) -> Agreed:
        """What all processes now know that they are to do; every process calls this once a step.

        Args:
            row: this process asks for a row of the log; the main one's word counts.
            checkpoint: likewise for a checkpoint.

        Raises:
            RuntimeError: another process has ended.
        """
        asked = (self._received, *(bool(one) and self._processes.is_main for one in (row, checkpoint)))
        if self._processes.world_size == 1:
            return Agreed(*asked)
        before, number = self._asked, torch.tensor(asked)
        work = dist.all_reduce(number, dist.ReduceOp.MAX, async_op=True)
        self._asked = None if work is None else (work, number)
        if before is None:
            return Agreed()
        work, number = before
        work.wait()
        signal_number, *due = number.tolist()
        return Agreed(signal_number, *map(bool, due))

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number
