"""Runs that are asked to stop, and runs that lose one of their processes."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from efficient_mae.engine.storage.checkpoint import find_checkpoints, step_of
from tests.forks import ForkServer, Run

from .conftest import (
    ENVIRONMENT,
    TOTAL_STEPS,
    assert_same_result,
    emae,
    flags,
    last_row,
    rows,
    short_run,
)
from .labelled import write_labelled


def await_rows(run: Run, out: Path, step: int) -> None:
    await_that(run, lambda: last_row(out) >= step)


def await_that(run: Run, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert not run.ended() and time.monotonic() < deadline, run.wait()
        time.sleep(0.005)


def last_line(stderr: str) -> str:
    return stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("number", "status", "name"),
    [(signal.SIGTERM, 75, "SIGTERM"), (signal.SIGUSR1, 75, "SIGUSR1"), (signal.SIGINT, 130, "Ctrl-C")],
)
def test_a_signal_saves_and_leaves(
    server: ForkServer, alone: Callable[..., Path], images: Path, tmp_path: Path, number: int, status: int, name: str
):
    """It reaches the processes that read images too, as those of Slurm, torchrun and a terminal do."""
    out, arguments = tmp_path / "run", short_run(images, tmp_path / "run")
    run = server.start(arguments)
    await_rows(run, out, 6)
    run.signal(number)
    (ended,) = run.wait()
    assert ended.status == status, ended.stderr
    step = step_of(find_checkpoints(out / "checkpoints")[-1])
    assert 6 <= step <= last_row(out) < TOTAL_STEPS
    assert last_line(ended.stderr) == (
        f"emae: stopped by {name}; step {step} is saved, and the same command again resumes after it"
    )
    (ended,) = server.start(arguments).wait()
    assert ended.status == 0 and f"after step {step} of {TOTAL_STEPS}" in ended.stderr
    assert_same_result(out, alone(1))
    # The mean loss of a row is over the steps since the last; one ends where the run stopped.
    apart = [[row for row in rows(run) if not step <= row["step"] <= step + 3] for run in (out, alone(1))]
    assert apart[0] == apart[1] and len(apart[0]) > 20


def test_a_second_run_is_kept_out(server: ForkServer, alone: Callable[..., Path], images: Path, tmp_path: Path):
    """As when a job is begun again while its first processes live; of what was killed nothing keeps it out."""
    out, arguments = tmp_path / "run", short_run(images, tmp_path / "run")
    run = server.start(arguments)
    await_rows(run, out, 6)
    (second,) = server.start(arguments).wait()
    assert second.status == 2 and not run.ended()
    assert last_line(second.stderr).startswith(f"emae: out={out}: process {run.pids[0]} of ")
    assert last_line(second.stderr).endswith(" is at work in it; name another")
    run.kill()
    run.wait()
    (third,) = server.start(arguments).wait()
    assert third.status == 0, third.stderr
    assert_same_result(out, alone(1))


def test_a_signal_to_one_process_stops_all_at_the_same_step(
    server: ForkServer, alone: Callable[..., Path], images: Path, tmp_path: Path
):
    out, arguments = tmp_path / "run", short_run(images, tmp_path / "run")
    run = server.start(arguments, 2)
    await_rows(run, out, 6)
    run.signal(signal.SIGUSR1, rank=1)
    ended = run.wait()
    assert [one.status for one in ended] == [75, 75], ended
    assert [one.stderr.count("emae: stopped by SIGUSR1") for one in ended] in ([1, 0], [0, 1]), ended
    assert all(one.status == 0 for one in server.start(arguments, 2).wait())
    assert_same_result(out, alone(2))


def test_ctrl_c_twice_leaves_at_once(server: ForkServer, images: Path, tmp_path: Path):
    out = tmp_path / "run"
    run = server.start(short_run(images, out, checkpoint_every=1000), slow_disk=1.0)
    await_rows(run, out, 3)
    run.signal(signal.SIGINT)
    await_that(run, lambda: any(out.glob("checkpoints/.partial-*")))
    run.signal(signal.SIGINT)
    (ended,) = run.wait()
    assert ended.status == 130
    assert last_line(ended.stderr) == "emae: interrupted; the same command again resumes from the last checkpoint"
    assert not find_checkpoints(out / "checkpoints")


def test_every_task_stops_so(server: ForkServer, tmp_path: Path):
    data, out = write_labelled(tmp_path / "data"), tmp_path / "run"
    arguments = [
        "finetune", "--from", "scratch",
        *flags(data=data, out=out, model="mae_vit_tiny_patch4", img_size=16, in_chans=1, depth=1, epochs=40,
               batch_size=8, auto_augment="null", log_every=2, num_workers=0, precision="fp32", eval_every=40),
    ]  # fmt: skip
    run = server.start(arguments)
    await_rows(run, out, 4)
    run.signal(signal.SIGTERM)
    (ended,) = run.wait()
    assert ended.status == 75, ended.stderr
    assert re.search(r"stopped by SIGTERM; step \d+ is saved", last_line(ended.stderr))
    assert len(find_checkpoints(out / "checkpoints")) == 1


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_dies_ends_the_other_which_says_why(
    server: ForkServer, images: Path, tmp_path: Path, killed: int
):
    run = server.start(short_run(images, tmp_path / "run"), 2)
    await_rows(run, tmp_path / "run", 3)
    run.signal(signal.SIGKILL, rank=killed)
    ended = run.wait(timeout=60)
    left = ended[1 - killed]
    assert ended[killed].status == -signal.SIGKILL and left.status == 1
    assert f"emae: process {1 - killed} of 2 lost another: " in last_line(left.stderr)
    assert "Traceback" not in left.stderr
    assert "by peer" in left.stderr or "Broken pipe" in left.stderr


def test_torchrun_starts_again_after_a_process_has_died(alone: Callable[..., Path], images: Path, tmp_path: Path):
    out = tmp_path / "run"
    command = emae(*short_run(images, out), processes=2, restarts=3)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    deadline = time.monotonic() + 120
    while last_row(out) < 9:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [
        pid for pid in sorted(map(int, children)) if str(out).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 0, said
    assert re.search(rf"resuming {re.escape(str(out))} after step \d+ of {TOTAL_STEPS}", said.replace("\n", " "))
    assert_same_result(out, alone(2))
    assert rows(out) == rows(alone(2))


BATCH = Path(__file__).parents[2] / "docs" / "slurm" / "pretrain.sbatch"


@pytest.mark.parametrize(
    ("statuses", "ends", "requeued"),
    [
        ([0], 0, False), ([75], 0, True), ([2], 2, False), ([137, 1, 75], 0, True), ([1, 1, 1, 1], 1, False),
        ([138], 0, True), ([143], 0, True), (["cancelled"], 143, False),
    ],
    ids=[
        "done", "preempted", "to be mended", "crashed, then preempted", "crashes", "warned while it started",
        "ended while it started", "cancelled",
    ],
)  # fmt: skip
def test_the_slurm_script_understands_the_exit_status(tmp_path: Path, statuses: list, ends: int, requeued: bool):
    (tmp_path / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    programs = {
        "srun": 'status=$(head -n 1 statuses); sed -i 1d statuses; echo "$@" >> started\n'
        # scancel signals the script and the step, which saves.
        '[ "$status" = cancelled ] && kill -TERM $PPID && sleep 0.2 && echo saved && exit 75; exit "$status"',
        "scontrol": 'echo "$@" >> asked',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{ENVIRONMENT['PATH']}", "SLURM_JOB_ID": "7", "DATA": "/d", "OUT": "/o"}
    done = subprocess.run(["bash", BATCH], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, (tmp_path / "statuses").read_text()) == (ends, ""), done.stderr
    assert done.stdout == ("saved\n" if statuses == ["cancelled"] else "")
    asked = (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""
    assert asked == ("requeue 7\n" if requeued else "")
    assert len((tmp_path / "started").read_text().splitlines()) == len(statuses)
