"""Peak memory of a training step."""

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch

from efficient_mae.bench.contenders import Contender
from efficient_mae.children import end_with_main_process
from efficient_mae.console import say
from efficient_mae.engine.machine.facts import keep_freed_memory
from efficient_mae.engine.machine.free_memory import free_memory
from efficient_mae.engine.machine.memory import is_out_of_memory

# The contender of a number, from 0; None if there are fewer. It may be sent to another process.
Make = Callable[[int], Contender | None]


def device_peak(contender: Contender, device: torch.device) -> float:
    """Peak memory of a step on a GPU, with this contender's own weights and optimiser state; 1e9 bytes."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    contender()
    grown = torch.cuda.max_memory_allocated(device) - before
    return round((contender.static_bytes + grown) / 1e9, 4)


def host_peaks(make: Make) -> dict[str, float]:
    """The same on a CPU, of every contender; none where the system doesn't tell."""
    if sys.platform != "linux":
        return {}
    peaks: dict[str, float] = {}
    while found := host_peak(make, len(peaks)):
        name, peak = found
        peaks[name] = peak
        say(f"peak memory of {name}: {peak:.2f} GB")
    return peaks


def host_peak(make: Make, number: int) -> tuple[str, float] | None:
    """Peak memory of a step on a CPU, which keeps no record of it: two steps in a process of their own.

    Returns:
        The contender's name, and by how much the process' resident peak rose, in 1e9 bytes; None if there are fewer.

    Raises:
        MemoryError: the steps do not fit.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_main_process) as process:
        try:
            return process.submit(_resident_peak, make, number).result()
        except BrokenProcessPool:  # other processes took memory too, and the system killed this one
            raise MemoryError("a step's process was killed") from None
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise MemoryError(str(error)) from None
            raise


def _resident_peak(make: Make, number: int) -> tuple[str, float] | None:
    """What :func:`host_peak` returns, of this process."""
    import resource  # not on every system

    keep_freed_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    contender, free = make(number), free_memory(torch.device("cpu"))
    if contender is None:
        return None
    if free is not None and contender.counted_bytes > free:
        raise MemoryError("a step takes more than is free")
    contender()
    contender()
    return contender.name, round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e9, 4)
