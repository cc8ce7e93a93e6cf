"""Several processes that train together, without the seconds that torchrun takes to start."""

import os
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress

import torch
import torch.multiprocessing as mp


def free_port() -> int:
    """One of those that Linux gives to no connection by itself, so that none takes it before it is used."""
    while True:
        port = 15_000 + secrets.randbelow(17_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def spawn(world_size: int, function: Callable, *arguments) -> None:
    """Call `function(rank, *arguments)` in processes for which all is set that torchrun sets."""
    mp.spawn(_start, (world_size, free_port(), function, arguments), nprocs=world_size)


def _start(rank: int, world_size: int, port: int, function: Callable, arguments: tuple) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    function(rank, *arguments)
