"""Processes and devices: one process alone, or the several that torchrun or Slurm start."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from efficient_mae.errors import InputError

PRECISIONS = ("auto", "bf16", "fp32")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and speaks to the user."""
        return self.rank == 0

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


# A program that runs by itself, on the host.
ALONE = Processes(0, 1, torch.device("cpu"))


def find_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of this name; `auto` takes a GPU if there is one.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device={name!r}: not a device name; try auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = local_rank if device.index is None else device.index
        if index >= count:
            raise InputError(f"device={name!r}: this machine has {count} CUDA devices; use --device cpu or auto")
        return torch.device("cuda", index)
    if device.type != "cpu":
        raise InputError(f"device={name!r}: only cpu and cuda are supported")
    return device


@contextmanager
def join_processes(device_name: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, or stand alone; leave them at the end."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    device = find_device(device_name, int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size == 1:
        yield Processes(0, 1, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), world_size, device)
    finally:
        dist.destroy_process_group()


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
