"""Memory that a process may still take, and how it is kept from taking more."""

import gc
import mmap
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from efficient_mae.engine.machine import address_space_limit, control_groups, release_freed_memory

# Share of the free memory that a process may take which is refused more: the rest is for files that it reads.
_OF_FREE = 0.97


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process could still allocate; None where the system doesn't say."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    unused = release_freed_memory()
    if sys.platform != "linux":
        return None
    available = _kilobytes("/proc/meminfo", "MemAvailable")
    if available is None:
        return None
    free, limit = min(available, _group_memory()), address_space_limit()
    if limit is None:
        return free
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    return max(0, min(free, limit - used + unused))


@contextmanager
def refusing_more_than_is_free() -> Iterator[None]:
    """Within, this process' allocations fail where there is no free memory for them; on Linux alone.

    Without, they succeed; then the machine grinds to a halt, and kills a process.
    """
    free = free_memory(torch.device("cpu"))
    used = _kilobytes("/proc/self/status", "VmData") if free is not None else None
    if free is None or used is None:
        yield
        return
    import resource  # not on every system

    before, limit = resource.getrlimit(resource.RLIMIT_DATA), used + int(free * _OF_FREE)
    if before[0] != resource.RLIM_INFINITY:
        limit = min(limit, before[0])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _kilobytes(file: str, name: str) -> int | None:
    """What a file of Linux' says in kilobytes, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(file).read_text(), re.MULTILINE)
    return None if found is None else int(found[1]) * 1024


def _group_memory() -> int:
    """Bytes that containers and batch systems leave to this process; more than there are where they set no limit."""
    free = [sys.maxsize]
    for most, used, parts in control_groups("memory.max", "memory.current", "memory.stat"):
        if most.isdecimal():
            # Files that were read count as used, until others need their place.
            read = re.search(r"^inactive_file (\d+)", parts, re.MULTILINE)
            free.append(int(most) - int(used) + (0 if read is None else int(read[1])))
    return max(0, min(free))
