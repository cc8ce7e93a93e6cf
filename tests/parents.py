"""Programs that start others, for tests that kill them; each imports no more than it needs.

python -m tests.parents load METHOD | leave | compute | run COMMAND ...
"""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

from efficient_mae import children
from efficient_mae.children import end_with_main_process, stopping_with_this_process


class Noise:
    """What is made of a batch, as little as can be."""

    def __init__(self, noise, epoch: int):
        self.noise = noise


class Full:
    """The same, larger than a pipe holds."""

    def __init__(self, noise, epoch: int):
        self.noise, self.more = noise, os.urandom(1 << 20)


def load(method: str) -> None:
    """Have a worker wait to hand over batches that nobody takes."""
    loader = batches_of(Full, method)
    next(loader)
    time.sleep(2)  # time enough to fill the queue
    print("full", flush=True)
    time.sleep(600)


def leave() -> None:
    """Take a worker's batches as they come: left alone, it ends in good order, before another thread of it looks."""
    children._INTERVAL = 600
    for number, _ in enumerate(batches_of(Noise, "fork")):
        if number == 0:
            print("full", flush=True)
        time.sleep(0.05)


def batches_of(make_masks: Callable, method: str) -> Iterator:
    """An epoch of those of a worker that is started by this method."""
    from efficient_mae.data import (
        PretrainTransform,
        Reading,
        ResumableBatchSampler,
        TrainDataset,
        make_train_loader,
        open_source,
    )

    source = open_source("fashion-mnist-sample")
    data = TrainDataset(source, PretrainTransform((8, 8), Reading(1)), 0, num_patches=4, make_masks=make_masks)
    batches = ResumableBatchSampler(len(source), 16, 0)
    return iter(make_train_loader(data, batches, num_workers=1, multiprocessing_context=method))


def compute() -> None:
    """Have a process compute what nobody will take."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_main_process) as pool:
        pool.submit(os.getpid).result()
        pool.submit(time.sleep, 600)
        print("full", flush=True)
        time.sleep(600)


def run(*command: str) -> None:
    """Run a program that is to stop with this one."""
    subprocess.run(stopping_with_this_process(command))


if __name__ == "__main__":
    {"load": load, "leave": leave, "compute": compute, "run": run}[sys.argv[1]](*sys.argv[2:])
