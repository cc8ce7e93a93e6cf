"""Processes that end with the one that started them, however that ends: a process that is killed tells nobody."""

import ctypes
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize, get_temp_dir

# Seconds between two looks at the main process.
_INTERVAL = 0.25


def share_temporary_folder() -> str | None:
    """Make the folder in which multiprocessing keeps sockets (`pymp-*`), for this process and those that it starts.

    They would make one each, and whoever is killed leaves his; this one goes when this process ends in good order.

    Returns:
        The folder, to be given to :func:`end_with_main_process`; None where it is that of a process above this one.
    """
    folder = get_temp_dir()
    return folder if multiprocessing.parent_process() is None else None


def end_with_main_process(folder: str | None = None) -> None:
    """In a process of multiprocessing's, by whatever method it was started: end once the main process has.

    Whatever it is doing then: it may be waiting, for ever, to hand over a result that nobody takes.

    Args:
        folder: of the main process, to be removed where it was killed.
    """
    started = _Started(os.getppid(), multiprocessing.parent_process(), folder)
    threading.Thread(target=started.watch, daemon=True).start()
    # One that sees by itself that it is alone may end, in good order, between two looks.
    Finalize(None, started.clear, exitpriority=-100)


@dataclass(frozen=True)
class _Started:
    """This process, as it was started: the parent is the main process or a fork server, which ends with it."""

    parent: int
    main: BaseProcess | None
    folder: str | None

    def is_alone(self) -> bool:
        return os.getppid() != self.parent or not (self.main is None or self.main.is_alive())

    def watch(self) -> None:
        while not self.is_alone():
            time.sleep(_INTERVAL)
        self.clear()
        os._exit(1)

    def clear(self) -> None:
        if self.folder is not None and self.is_alone():
            shutil.rmtree(self.folder, ignore_errors=True)


def stop_with_parent() -> None:
    """Have this process sent SIGTERM when its parent ends, be it any program; on Linux alone."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # sys/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def stopping_with_this_process(command: Sequence[str]) -> list[str]:
    """The command line of a program, extended so that it is sent SIGTERM when this process ends; on Linux alone."""
    watching = [sys.executable, "-m", __name__, str(os.getpid())] if sys.platform == "linux" else []
    return [*watching, *command]


if __name__ == "__main__":
    stop_with_parent()
    if os.getppid() == int(sys.argv[1]):  # else it ended before anything could be said
        os.execvp(sys.argv[2], sys.argv[2:])
