"""Processes that end with the one that started them, however that ends: a process that is killed tells nobody."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess

# Seconds between two looks at the main process.
_INTERVAL = 0.25


def end_with_main_process() -> None:
    """In a process of multiprocessing's, by whatever method it was started: end once the main process has.

    Whatever it is doing then: it may be waiting, for ever, to hand over a result that nobody takes.
    """
    threading.Thread(target=_watch, args=(os.getppid(), multiprocessing.parent_process()), daemon=True).start()


def _watch(parent: int, main: BaseProcess | None) -> None:
    # The parent is the main process or a fork server, which ends with it.
    while os.getppid() == parent and (main is None or main.is_alive()):
        time.sleep(_INTERVAL)
    os._exit(1)


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
