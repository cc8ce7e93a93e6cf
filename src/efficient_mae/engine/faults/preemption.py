"""Asked to stop: by whoever lends the machine (SIGTERM, SIGUSR1) or by Ctrl-C.

All processes stop after the same step. A signal may reach one alone, so they tell each other, once a step, on the
host: the answer of one step is taken at the next, when it has long arrived, and no device is waited for.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

from efficient_mae.engine.machine.distributed import Processes

# Windows knows no SIGUSR1.
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]


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

    def agreed(self) -> int:
        """The signal by which all processes now know that they are to stop; 0 for none.

        Every process calls this once a step. One alone hears of a signal at once, several at the call after the next.

        Raises:
            RuntimeError: another process has ended.
        """
        if self._processes.world_size == 1:
            return self._received
        before, number = self._asked, torch.tensor(self._received)
        work = dist.all_reduce(number, dist.ReduceOp.MAX, async_op=True)
        self._asked = None if work is None else (work, number)
        if before is None:
            return 0
        work, number = before
        work.wait()
        return int(number)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number
