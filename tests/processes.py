"""Several processes that train together, without the seconds that torchrun takes to start."""

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import NamedTuple

import torch
import torch.multiprocessing as mp


def free_port() -> int:
    """One of those that Linux gives to no connection by itself, so that none takes it before it is used."""
    while True:
        port = 15_000 + secrets.randbelow(17_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


class Process(NamedTuple):
    """One that runs now."""

    pid: int
    group: int
    command: str
    environment: bytes


def survivors(of_ours: Callable[[Process], bool], patience: float = 10.0) -> list[Process]:
    """The processes of a kind that haven't ended of themselves after so many seconds."""
    deadline = time.monotonic() + patience
    while (left := list(filter(of_ours, _processes()))) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def _processes() -> Iterator[Process]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            # proc(5): the name in brackets may hold anything; then the state, the parent, the group.
            state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if state not in "ZX":
                yield Process(int(folder.name), int(group), command, (folder / "environ").read_bytes())


def imported() -> BaseContext:
    """A context of multiprocessing's that is told all that `spawn` is told, and whose processes start at once."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["tests.imported"])
    return context


def spawn(world_size: int, function: Callable, *arguments) -> None:
    """Call `function(rank, *arguments)` in processes for which all is set that torchrun sets."""
    start = (_start, (world_size, free_port(), function, arguments))
    mp.start_processes(*start, nprocs=world_size, start_method=imported().get_start_method())


def _start(rank: int, world_size: int, port: int, function: Callable, arguments: tuple) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    function(rank, *arguments)
