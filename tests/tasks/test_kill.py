"""A run that is killed at any moment, and started again by the same command, is the run that was left alone."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.forks import ForkServer

from .conftest import assert_same_result, flags, last_row, rows, short_run

# Seconds that the disk takes to flush a file in runs that are killed while they write.
SLOW_DISK = 0.02

# What is there only while it is being written.
CHECKPOINT, ENCODER = "checkpoints/.partial-step-*", ".partial-encoder*"


class Killer:
    """Starts a command again and again, and kills it each time.

    Attributes:
        caught: how often a step, a checkpoint or an export was under way, as seen when all was dead.
    """

    def __init__(self, server: ForkServer, command: list[str], out: Path, processes: int, seed: int):
        self._server, self._command, self._out, self._processes = server, command, out, processes
        self._random = random.Random(seed)
        self.caught: Counter[str] = Counter()

    def kill_when(self, condition: Callable[[], bool], within: float = 0.0, slow_disk: float = 0.0) -> None:
        """Start, wait until the condition holds and up to `within` seconds more, and kill; nothing is left.

        Half of the time the workers are killed too, else they have to end by themselves.
        """
        run = self._server.start(self._command, self._processes, slow_disk)
        deadline = time.monotonic() + 120
        while not condition():
            assert not run.ended() and time.monotonic() < deadline, run.wait()
            time.sleep(0.005)
        time.sleep(self._random.uniform(0, within))
        if self._random.random() < 0.5:
            run.signal(signal.SIGKILL)
        else:
            run.kill()
        ended = run.wait()
        assert all(one.status == -signal.SIGKILL for one in ended), ended

    def at_a_random_time(self, before: int) -> None:
        """Wherever that is, reading the command, loading, training; but before that many steps are done."""
        moment, has_trained = time.monotonic() + self._random.uniform(0, 1.0), self._has_trained(6)
        self.kill_when(lambda: time.monotonic() >= moment or has_trained() or last_row(self._out) >= before)
        self.caught["anything"] += 1

    def in_a_step(self) -> None:
        """When it has done some steps itself, at a random moment."""
        self.kill_when(self._has_trained(self._random.randint(1, 6)), within=0.05)
        self.caught["anything" if any(self._out.glob(CHECKPOINT)) else "step"] += 1

    def _has_trained(self, steps: int) -> Callable[[], bool]:
        """Whether a command that will be started now has done so many steps."""
        lowest = last_row(self._out)

        def has_trained() -> bool:
            nonlocal lowest
            step = last_row(self._out)
            lowest = min(lowest, step)  # a run first drops the rows beyond its checkpoint
            return step >= lowest + steps

        return has_trained

    def in_a_checkpoint(self) -> None:
        """While one is being written, at a random moment: its files take 7 flushes."""
        self.while_there_is("checkpoint", CHECKPOINT, 6 * SLOW_DISK, SLOW_DISK)

    def in_the_export(self) -> None:
        """While the encoder is being written."""
        self.while_there_is("export", ENCODER, SLOW_DISK / 2, 2 * SLOW_DISK)

    def while_there_is(self, kind: str, pattern: str, within: float, slow_disk: float) -> None:
        """While there is a file of this pattern, which the command makes."""

        def written() -> set[tuple[Path, int]]:
            found = set()
            for path in (one for top in self._out.glob(pattern) for one in (top, *top.rglob("*"))):
                with suppress(FileNotFoundError):
                    if path.is_file():  # a folder changes too when it is cleared
                        found.add((path, path.stat().st_ctime_ns))
            return found

        left = written()  # by the kill before, and none of this run's

        def is_being_written() -> bool:
            return not written() <= left

        self.kill_when(is_being_written, within, slow_disk)
        self.caught[kind if any(self._out.glob(pattern)) else "anything"] += 1


@pytest.mark.parametrize("processes", [1, 2], ids=["1 process", "2 processes"])
@pytest.mark.parametrize(
    ("kills", "epochs"),
    [(8, 10), *(pytest.param(kills, epochs, marks=pytest.mark.slow) for kills, epochs in ((30, 24), (200, 120)))],
    ids=["8", "30", "200"],
)
def test_killed_and_resumed_is_bit_identical(
    server: ForkServer,
    alone: Callable[..., Path],
    images: Path,
    tmp_path: Path,
    kills: int,
    epochs: int,
    processes: int,
):
    expected, out, total_steps = alone(processes, epochs=epochs), tmp_path / "killed", epochs * 5
    command = short_run(images, out, epochs=epochs)
    killer = Killer(server, command, out, processes, seed=kills + processes)
    for number in range(kills):
        if number >= 0.75 * kills:
            killer.in_the_export()  # comes once, at the end, so nothing else can follow
        elif last_row(out) > total_steps - 24 or number % 3 == 0:
            killer.at_a_random_time(before=total_steps - 3)
        elif number % 3 == 1:
            killer.in_a_checkpoint()
        else:
            killer.in_a_step()
    assert killer.caught.total() == kills
    assert {kind for kind, count in killer.caught.items() if count >= kills // 8} >= {"step", "checkpoint", "export"}

    (last, *_) = server.start(command, processes).wait()
    assert last.status == 0, last.stderr
    assert_same_result(out, expected)
    assert rows(out) == rows(expected)
    assert [row["step"] for row in rows(expected)][-1] == total_steps

    (again, *_) = server.start(command, processes).wait()
    assert again.status == 0 and "is finished" in again.stderr


def test_an_export_that_is_killed_leaves_nothing_of_its_name(
    server: ForkServer, alone: Callable[..., Path], tmp_path: Path
):
    arguments = ["export", *flags(weights=alone(1), format="timm")]
    (done,) = server.start([*arguments, *flags(out=tmp_path / "alone")]).wait()
    assert done.status == 0, done.stderr
    out = tmp_path / "killed"
    killer = Killer(server, [*arguments, *flags(out=out)], tmp_path, processes=1, seed=0)
    for _ in range(3):
        killer.while_there_is("export", ".partial-killed/.partial-*", within=0.01, slow_disk=0.3)
        assert not out.exists()
    assert killer.caught == {"export": 3}
    (done,) = server.start([*arguments, *flags(out=out)]).wait()
    assert done.status == 0, done.stderr
    assert {file.name: file.read_bytes() for file in out.iterdir()} == {
        file.name: file.read_bytes() for file in (tmp_path / "alone").iterdir()
    }
    assert not list(tmp_path.glob(".partial-*"))
