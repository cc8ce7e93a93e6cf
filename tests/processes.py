"""Several processes that train together, without the seconds that torchrun takes to start."""

import os
import socket
from collections.abc import Callable

import torch
import torch.multiprocessing as mp


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


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
