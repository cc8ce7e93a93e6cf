"""What a run was made with: machine, device and versions."""

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    "efficient-mae",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "transformers",
    "datasets",
    "stable-pretraining",
)

# This process' control groups, and where their files lie.
_GROUP = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, device and versions, as plain values."""
    return {
        "platform": platform.platform(),
        "processor": _processor_name(),
        "cores": available_cores(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: found for name in _PACKAGES if (found := _version(name))},
    }


def keep_freed_memory() -> None:
    """Have glibc keep what a training step frees for the next one; nothing elsewhere.

    By default it gives large blocks back to the system, which hands them out again page by page: on a CPU that costs
    a step a tenth of its time and more. Not where the address space is limited: a heap that keeps all of it leaves
    no pages for other uses, such as the code that oneDNN compiles.

    It is for good, so the command line alone calls it, and any program that does nothing but train may.
    """
    libc = _glibc()
    if libc is None or address_space_limit() is not None:
        return
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, -1)
    libc.mallopt(m_top_pad, 64 << 20)


def address_space_limit() -> int | None:
    """Bytes of addresses that this process may have (ulimit -v); None where that isn't limited or known."""
    if sys.platform != "linux":
        return None
    import resource  # not on every system

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def release_freed_memory() -> int:
    """Give the pages that :func:`keep_freed_memory` kept back to the system.

    Returns:
        Bytes of address space that remain this process' own and unused; 0 if that isn't known.
    """
    libc = _glibc()
    if libc is None:
        return 0
    libc.malloc_trim(0)
    if not hasattr(libc, "mallinfo2"):  # before glibc 2.33
        return 0
    libc.mallinfo2.restype = _MallocInfo
    return libc.mallinfo2().fordblks


class _MallocInfo(ctypes.Structure):
    """struct mallinfo2 of malloc.h."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL("libc.so.6") if platform.libc_ver()[0] == "glibc" else None


def usual_workers(device: torch.device) -> int:
    """Processes that read images for one that trains on this device, unless told otherwise."""
    return 1 if device.type == "cpu" else min(12, available_cores())


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def control_groups(*names: str, controller: str = "") -> Iterator[tuple[str, ...]]:
    """What the files of these names say in each of this process' control groups that has them all.

    Containers and batch systems such as Slurm limit memory and processors by them. From its own to the root, of
    version 2 (cgroups(7)), or of version 1 where a controller is named; none on other systems.
    """
    for line in _lines(_GROUP):
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        root = _GROUPS / controllers
        own = root / path.removeprefix("/")
        for group in (own, *own.parents):
            files = [group / name for name in names]
            if group.is_relative_to(root) and all(file.is_file() for file in files):
                yield tuple(file.read_text().strip() for file in files)


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in _lines(info) if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
