"""Signals in a process that reads images."""

import multiprocessing
import os
import signal
import sys
import threading


def leave_signals_to_the_main_process() -> None:
    """In a worker: it ends when its main process says so, whoever else sends a signal.

    Ctrl-C, Slurm and torchrun signal a whole group of processes. The main one decides what becomes of it, and needs
    its workers until it has.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere nobody tells who sent a signal
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        main = multiprocessing.parent_process()  # not the process' own parent, where that is a fork server
        threading.Thread(target=_end_when_told, args=(main.pid if main else os.getppid(),), daemon=True).start()


def _end_when_told(main: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main:
        pass
    os._exit(0)
