"""Devices, and how processes find each other."""

import os
import socket
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from efficient_mae.engine.machine import distributed
from efficient_mae.engine.machine.distributed import find_device, join_processes
from efficient_mae.errors import LostProcessError
from tests.engine.machine.test_launcher import STEP
from tests.processes import free_port, spawn


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
def test_each_process_has_a_gpu_of_its_own():
    assert find_device("auto", 1, 2) == find_device("cuda", 1, 2) == torch.device("cuda", 1)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    assert find_device("cpu", 3, 4) == torch.device("cpu")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("name", "processes", "what"),
    [
        ("cuda", 3, "'cuda': 3 processes were started on this machine, which has 2 CUDA devices"),
        ("auto", 3, "start at most as many"),
        ("cuda:1", 2, "'cuda:1': 2 processes cannot share one GPU; use --device cuda"),
        ("cuda:2", 1, "'cuda:2': this machine has 2 CUDA devices"),
        ("mps", 1, "only cpu and cuda are supported"),
        ("gpu", 1, "not a device name"),
    ],
)
def test_a_device_that_is_not_there(name: str, processes: int, what: str):
    for local_rank in range(processes):
        with pytest.raises(ValueError, match=what):
            find_device(name, local_rank, processes)


def test_no_gpu_at_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="has 0 CUDA devices"):
        find_device("cuda")
    with pytest.raises(ValueError, match="has 0 CUDA devices"):
        find_device("cuda", 1, 2)


def test_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_processes("cpu") as processes:
        assert processes.is_main and processes.world_size == 1 and processes.gather(3) == [3]
        processes.barrier()


def in_a_step(rank: int, port: int, results) -> None:
    """As srun starts a process: without anything that torchrun sets."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        del os.environ[name]
    os.environ |= STEP | {
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank), "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": str(port),
    }  # fmt: skip
    before = dict(os.environ)
    with join_processes("cpu") as processes:
        total = processes.sum(torch.tensor([float(rank + 1)])).item()
        processes.barrier()
        results[rank] = processes.rank, processes.world_size, processes.gather(f"process {rank}"), total
        assert os.environ == before


def test_processes_that_srun_started_find_each_other():
    with mp.Manager() as manager:
        shared = manager.dict()
        spawn(2, in_a_step, free_port(), shared)
        found = dict(shared)
    assert found == {rank: (rank, 2, ["process 0", "process 1"], 3.0) for rank in range(2)}


def join_again_and_again(rank: int, results) -> None:
    for number in range(3):
        with join_processes("cpu") as processes:
            results[rank, number] = processes.gather(rank + 10 * number)


def test_processes_may_join_again():
    with mp.Manager() as manager:
        shared = manager.dict()
        spawn(2, join_again_and_again, shared)
        found = dict(shared)
    assert found == {(rank, number): [10 * number, 10 * number + 1] for rank in range(2) for number in range(3)}


def limits_of_silence() -> dict[int, int]:
    """Milliseconds after which each TCP socket of this process gives up its other end, 0 for TCP's own limit."""
    found = {}
    for descriptor in Path("/dev/fd").iterdir():
        with suppress(OSError), socket.socket(fileno=os.dup(int(descriptor.name))) as held:
            if held.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == socket.IPPROTO_TCP:
                asks = held.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                limit = held.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                found[os.fstat(held.fileno()).st_ino] = limit if asks else 0
    return found


def wait_for_one_that_is_busy(rank: int, results) -> None:
    distributed.OUT_OF_REACH = timedelta(seconds=1)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        own = limits_of_silence()
        with join_processes("cpu") as processes:
            joined = limits_of_silence()
            if rank == 1:
                time.sleep(4)  # as one may that draws, judges or writes
            # More than the system takes in for a process that doesn't read.
            total = processes.sum(torch.ones(2**24))
            results[rank] = total.unique().tolist(), own, joined


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
def test_a_silent_host_is_given_up_and_a_busy_process_is_not():
    """And the program's own connections stay as they are. Links are cut in tests/hosts."""
    with mp.Manager() as manager:
        shared = manager.dict()
        spawn(2, wait_for_one_that_is_busy, shared)
        found = dict(shared)
    for total, own, joined in found.values():
        assert total == [2.0]
        assert len(own) >= 2 and {joined[number] for number in own} == set(own.values()) == {0}
        assert 1000 in joined.values()


def test_a_first_process_that_does_not_come_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distributed, "TIMEOUT", timedelta(seconds=1))
    environment = {
        "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LostProcessError, match=r"^cannot join the other processes: .*127\.0\.0\.1.*[^.\n]$"):
        join_processes("cpu").__enter__()
