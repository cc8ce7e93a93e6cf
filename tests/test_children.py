"""Whatever this software starts ends within seconds of its parent, however that dies: here it is killed."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import Process, survivors
from tests.tasks.conftest import ENVIRONMENT, TINY, emae, last_row, write_images

ROOT = Path(__file__).parents[1]
PATIENCE = 10.0


class Started:
    """A command whose standard output goes through a pipe, and which all that it starts can be told by.

    Args:
        temporary: folder for its temporary files.
    """

    def __init__(self, command: list[str], temporary: Path):
        self._mark, self.temporary = f"EMAE_TEST={uuid.uuid4()}", temporary
        environment = ENVIRONMENT | dict([self._mark.split("=")]) | {"TMPDIR": str(temporary)}
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, **output)

    def others(self, patience: float = 0.0) -> list[Process]:
        """What it has started and runs."""
        mark = self._mark.encode()
        return survivors(lambda one: mark in one.environment and one.pid != self.process.pid, patience)

    def assert_gone(self) -> None:
        """Killed, it leaves no process, its standard output is closed, no shared memory has a name, and
        multiprocessing's folders are gone."""
        others = self.others()
        assert others, "there was nothing that could have been left"
        pids = [self.process.pid, *(one.pid for one in others)]
        held = {path for pid in pids for path in segments(pid)}
        self.process.kill()
        began = time.monotonic()
        self.process.communicate(timeout=PATIENCE)  # to the end of the pipe
        assert self.others(PATIENCE) == [] and time.monotonic() - began < PATIENCE
        while left := {
            *(path for path in held if path.exists()),
            *(path for pid in pids for path in Path("/dev/shm").glob(f"torch_{pid}_*")),
            *self.temporary.glob("pymp-*"),
        }:
            assert time.monotonic() - began < PATIENCE, left
            time.sleep(0.05)


def segments(pid: int) -> set[Path]:
    """Shared memory with a name that a process has mapped."""
    mapped = (line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/dev/shm/" in line)
    return {path for path in map(Path, mapped) if path.exists()}


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Of a path that is short enough for a socket's."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def started() -> Iterator[list[Started]]:
    """Kills what a test that failed has left."""
    commands: list[Started] = []
    yield commands
    for command in commands:
        for process in command.others():
            os.kill(process.pid, signal.SIGKILL)


def start(started: list[Started], command: list[str], temporary: Path) -> Started:
    started.append(Started(command, temporary))
    return started[-1]


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_whose_queue_is_full(started: list[Started], temporary: Path, method: str):
    command = start(started, [sys.executable, "-m", "tests.parents", "load", method], temporary)
    assert command.process.stdout.readline() == b"full\n"
    assert len({socket.parent for socket in temporary.glob("pymp-*/listener-*")}) == 1
    command.assert_gone()


def test_a_worker_that_leaves_in_good_order(started: list[Started], temporary: Path):
    command = start(started, [sys.executable, "-m", "tests.parents", "leave"], temporary)
    assert command.process.stdout.readline() == b"full\n" and list(temporary.glob("pymp-*"))
    command.assert_gone()


def test_a_process_of_a_pool(started: list[Started], temporary: Path):
    command = start(started, [sys.executable, "-m", "tests.parents", "compute"], temporary)
    assert command.process.stdout.readline() == b"full\n"
    command.assert_gone()


def test_a_program_and_what_it_has_started(started: list[Started], temporary: Path, tmp_path: Path):
    out, folder = tmp_path / "run", write_images(tmp_path / "images", 40)
    settings = {"data": folder, "out": out, "epochs": 2000, "batch_size": 8, "log_every": 1, **TINY}
    settings["checkpoint_every"] = 100_000  # one that is there was made at the end
    line = emae("pretrain", **settings)
    command = start(started, [sys.executable, "-m", "tests.parents", "run", *line], temporary)
    wait_for_steps(out)
    command.assert_gone()
    assert max(out.glob("checkpoints/step-*"))  # it stopped in good order


def test_processes_of_torchrun(started: list[Started], temporary: Path, tmp_path: Path):
    out, folder = tmp_path / "run", write_images(tmp_path / "images", 40)
    settings = {"data": folder, "out": out, "epochs": 2000, "batch_size": 8, "log_every": 1, **TINY}
    command = start(started, emae("pretrain", processes=2, **settings), temporary)
    wait_for_steps(out)
    command.assert_gone()


def wait_for_steps(out: Path) -> None:
    deadline = time.monotonic() + 120
    while last_row(out) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
