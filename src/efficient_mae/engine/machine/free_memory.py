"""Memory that a process may still take."""

import gc
import mmap
import re
import sys
from pathlib import Path

import torch

from efficient_mae.engine.machine.facts import address_space_limit, control_groups, release_freed_memory


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


def _kilobytes(file: str, name: str) -> int | None:
    """What a file of Linux' says in kilobytes, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(file).read_text(), re.MULTILINE)
    return None if found is None else int(found[1]) * 1024


# Of control groups: the most that a group may use, what it uses, and how its statistics call files that were read,
# which count as used until others need their place; by controller, which version 2 doesn't name.
_MEMORY_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def _group_memory() -> int:
    """Bytes that containers and batch systems leave to this process; more than there are where they set no limit."""
    free = [sys.maxsize]
    for controller, (limit, usage, name) in _MEMORY_FILES.items():
        for most, used, parts in control_groups(limit, usage, "memory.stat", controller=controller):
            if most.isdecimal():
                read = re.search(rf"^{name} (\d+)", parts, re.MULTILINE)
                free.append(int(most) - int(used) + (0 if read is None else int(read[1])))
    return max(0, min(free))
