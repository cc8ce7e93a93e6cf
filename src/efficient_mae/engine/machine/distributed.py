"""Processes and devices: one process alone, or the several that torchrun or Slurm start."""

import atexit
import gc
import itertools
import os
import re
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, rendezvous  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from efficient_mae.engine.machine import spokesman
from efficient_mae.engine.machine.launcher import as_torchrun_says, launch_environment, place
from efficient_mae.errors import InputError, LostProcessError

# How long all wait for the last to start, and on GPUs for another, whose process may be waiting for images, drawing,
# judging or writing; on CPUs that is half an hour, gloo's own. Of one that has died the host hears at its next step.
TIMEOUT = timedelta(minutes=10)
# How long another host may be out of reach: longer than it takes to plug a cable in again. TCP tries to reach it at
# growing intervals, so that up to a minute more passes before it is given up.
OUT_OF_REACH = timedelta(minutes=2)

PRECISIONS = ("auto", "bf16", "fp32")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together, some of them on its machine."""

    rank: int
    world_size: int
    device: torch.device
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and speaks to the user."""
        return self.rank == 0

    @cached_property
    def mesh(self) -> DeviceMesh:
        """All processes in a row, for tensors of which each holds a part."""
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        atexit.register(_end_threads, mesh)
        return mesh

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, on each of them; in place."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def gather(self, value: Any) -> list[Any]:
        """Every process' value, in order of rank, on each of them."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all processes, on the host alone: a GPU goes on with its work."""
        if self.world_size > 1:
            dist.all_reduce(torch.zeros(()))


def _end_threads(mesh: DeviceMesh) -> None:
    """Let go of what a mesh communicates by, so that its threads have ended before Python does.

    DTensor's caches keep a mesh for good, and it would keep gloo's threads. One of them that lets go of a tensor when
    Python is at its end aborts the process, after all is done (https://github.com/pytorch/pytorch/issues/190489).
    """
    getattr(mesh, "_pg_registry", {}).clear()
    gc.collect()


# A program that runs by itself, on the host.
ALONE = Processes(0, 1, torch.device("cpu"))


def find_device(name: str, local_rank: int = 0, local_world_size: int = 1) -> torch.device:
    """The device of this name; `auto` takes a GPU if there is one.

    Args:
        name: as the user gave it.
        local_rank: of this process among those on its machine; each takes a GPU of its own.
        local_world_size: their number.

    Raises:
        InputError: no such device here, or not one for each process.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device={name!r}: not a device name; try auto, cpu, cuda or cuda:0") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise InputError(f"device={name!r}: only cpu and cuda are supported")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.index is not None and local_world_size > 1:
        raise InputError(f"device={name!r}: {local_world_size} processes cannot share one GPU; use --device cuda")
    if local_world_size > max(1, count):
        raise InputError(
            f"device={name!r}: {local_world_size} processes were started on this machine, which has "
            f"{count} CUDA devices; start at most as many (torchrun --nproc_per_node), or use --device cpu"
        )
    index = local_rank if device.index is None else device.index
    if index >= count:
        raise InputError(f"device={name!r}: this machine has {count} CUDA devices; use --device cpu or auto")
    return torch.device("cuda", index)


# Times that this process has joined others: the same for all of them.
_JOINED = itertools.count()


@cache
def _store(on_one_machine: bool) -> Store:
    """What the processes tell each other their addresses by; the same for as long as this one lives.

    torchrun lends its own store, where addresses from before a restart still lie
    (https://github.com/pytorch/pytorch/issues/167288). On one machine all have restarted as often, and so find those
    of their own time; machines may differ in that.
    """
    with as_torchrun_says():
        store = next(rendezvous("env://", timeout=TIMEOUT))[0]
    if on_one_machine:
        store = PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    return store


@contextmanager
def _hosts_watched() -> Iterator[None]:
    """On Linux, connections that are opened within end when the other host is silent for :data:`OUT_OF_REACH`.

    One that is gone, or that a cut cable keeps away, doesn't say so, and gloo waits for it as for a process that is
    at work. Here the systems ask each other, so that a process may take the time that it needs.
    """
    if sys.platform != "linux":
        yield
        return
    before = _sockets()
    yield
    seconds = int(OUT_OF_REACH.total_seconds())
    for descriptor, _ in _sockets() - before:
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
                    connection.setsockopt(socket.IPPROTO_TCP, option, max(1, seconds // 12))
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * seconds)


def _sockets() -> set[tuple[int, int]]:
    """Descriptors of this process' sockets, and which sockets they are."""
    found = set()
    for descriptor in Path("/dev/fd").iterdir():
        with suppress(OSError):  # closed meanwhile, as the one that lists them
            status = os.fstat(int(descriptor.name))
            if stat.S_ISSOCK(status.st_mode):
                found.add((int(descriptor.name), status.st_ino))
    return found


@contextmanager
def join_processes(device_name: str) -> Iterator[Processes]:
    """Join the processes that torchrun or srun started, or stand alone; leave them at the end.

    Raises:
        InputError: no such device here, or not one for each process.
        LostProcessError: another process didn't come, or ended while this one was at work, or its host is out of
            reach.
    """
    rank, local_rank, world_size = place()
    local_world_size = int(launch_environment().get("LOCAL_WORLD_SIZE", "1"))
    device = find_device(device_name, local_rank, local_world_size)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if world_size == 1:
            yield Processes(0, 1, device)
            return
        with _joined(Processes(rank, world_size, device, local_world_size)) as processes:
            yield processes


@contextmanager
def _joined(processes: Processes) -> Iterator[Processes]:
    rank, world_size, device = processes.rank, processes.world_size, processes.device
    try:
        with _hosts_watched():
            store = _store(processes.local_world_size == world_size)
            spokesman.meet(store, rank, world_size)
            # A name of this time's own: those who joined before have left their addresses.
            store = PrefixStore(f"joined {next(_JOINED)}", store)
            shared = {"store": store, "rank": rank, "world_size": world_size}
            if device.type == "cuda":
                # What is on the host, objects among it, travels by gloo: NCCL would take it through the GPU.
                dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device, timeout=TIMEOUT, **shared)
            else:
                dist.init_process_group("gloo", **shared)
    except RuntimeError as error:
        if not _is_of_another(error):
            raise
        way = "; on each host, GLOO_SOCKET_IFNAME=eth0 names the device to use" if "/gloo/" in str(error) else ""
        raise LostProcessError(f"cannot join the other processes: {_reason(error)}{way}") from error
    lost = False
    try:
        yield processes
    except RuntimeError as error:
        lost = _is_of_another(error)
        if not lost:
            raise
        raise LostProcessError(f"process {rank} of {world_size} lost another: {_reason(error)}") from error
    finally:
        # NCCL would first wait for what the lost one doesn't send.
        if not (lost and device.type == "cuda"):
            dist.destroy_process_group()


def _reason(error: RuntimeError) -> str:
    """What it says first, without the place in gloo's sources where it was noticed."""
    return re.sub(r"\[\S+/gloo/\S+\] ", "", str(error)).split(". ")[0].rstrip(".")


def _is_of_another(error: RuntimeError) -> bool:
    """Whether this is what a collective says when a process that takes part in it has ended."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def resolve_precision(name: str, device: torch.device) -> str:
    """`bf16` or `fp32`; `auto` takes bf16 where the hardware computes in it.

    Raises:
        InputError: not one of :data:`PRECISIONS`.
    """
    if name not in PRECISIONS:
        raise InputError(f"precision={name!r}: must be one of {', '.join(PRECISIONS)}")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch 2.11 has none
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which a model computes in this precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
