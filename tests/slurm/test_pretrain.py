"""docs/slurm/pretrain.sbatch under a Slurm that runs: warned and requeued, cancelled, short of memory, two tasks."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from efficient_mae.engine.storage.checkpoint import find_checkpoints, step_of
from tests.tasks.conftest import TINY, assert_same_result, emae, last_row, rows, run, write_images

from .cluster import Cluster, missing, slurm_cluster

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(missing() is not None, reason=str(missing()))]

BATCH = Path(__file__).parents[2] / "docs" / "slurm" / "pretrain.sbatch"
# What is another number or name here. Slurm looks at the time every 30 seconds: its warning comes 30 to 60 after the
# start.
SMALLER = {
    "--nodes=8": "--nodes=1", "--ntasks-per-node=8": "--ntasks-per-node={tasks}",
    "--gpus-per-node=8": "--gpus-per-node=0", "--cpus-per-task=12": "--cpus-per-task=1",
    "--time=24:00:00": "--time={minutes}", "USR1@180": "USR1@60",
    "--config pretrain_large16_800": "--config {config}", "--checkpoint_every 200": "--checkpoint_every 4",
}  # fmt: skip
# One epoch of the bundled images.
SETTINGS = TINY | {"epochs": 1, "warmup_epochs": 0, "batch_size": 64, "log_every": 2, "panel_every": 50}
TOTAL_STEPS = 156
DATA = "fashion-mnist-sample"

# `emae`, whose disk takes a second to flush a file while there is one called $SLOW_DISK: 39 checkpoints of 7 files
# would take minutes, so a run doesn't end before Slurm's warning, however fast the machine is.
_EMAE = """#!{python}
import os, sys, time
from efficient_mae.cli import main

flush, slow = os.fsync, os.environ["SLOW_DISK"]
os.fsync = lambda descriptor: (time.sleep(os.path.exists(slow)), flush(descriptor))[1]
sys.exit(main())
"""


@pytest.fixture(scope="module", params=["linuxproc", "cgroup"])
def slurm(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    if lacks := missing(request.param):
        pytest.skip(lacks)
    with slurm_cluster(request.param) as cluster:
        program = cluster.folder / "bin" / "emae"
        program.parent.mkdir()
        program.write_text(_EMAE.format(python=sys.executable))
        program.chmod(0o755)
        yield cluster


class Job:
    """The script, submitted.

    Args:
        out: of the run; what the job says lies beside it.
        settings: of the run, but for those in the script.
        tasks: processes.
        minutes: that it may take.
        memory: megabytes.
        slow: whether the disk is, until :meth:`quicken`.
    """

    def __init__(
        self,
        slurm: Cluster,
        out: Path,
        settings: dict,
        data: str = DATA,
        tasks: int = 1,
        minutes: int = 20,
        memory: int = 2000,
        slow: bool = False,
    ):
        self._slurm, self._slow = slurm, out.with_suffix(".slow")
        if slow:
            self._slow.touch()
        config, script = out.with_suffix(".yaml"), out.with_suffix(".sbatch")
        config.write_text(yaml.safe_dump(settings))
        text = BATCH.read_text()
        for theirs, ours in SMALLER.items():
            assert text.count(theirs) == 1
            text = text.replace(theirs, ours.format(tasks=tasks, minutes=minutes, config=config))
        script.write_text(text)
        environment = slurm.environment | {
            "PATH": f"{slurm.folder}/bin:{slurm.environment['PATH']}", "DATA": data, "OUT": str(out),
            "SLOW_DISK": str(self._slow), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self._id = slurm.ask(
            "sbatch", "--parsable", f"--chdir={out.parent}", f"--mem={memory}", str(script), environment=environment
        )
        self._log = out.parent / f"emae-{self._id}.log"

    def quicken(self) -> None:
        """From now on the disk is as it is."""
        self._slow.unlink()

    @property
    def said(self) -> str:
        """By the script and all that it started."""
        return self._log.read_text() if self._log.exists() else ""

    def shown(self, name: str) -> str:
        """A property, as scontrol names and shows it."""
        shown = self._slurm.ask("scontrol", "--oneliner", "show", "job", self._id)
        return re.search(rf"\b{name}=(\S*)", shown)[1]

    def cancel(self) -> None:
        self._slurm.ask("scancel", self._id)

    def await_that(self, condition: Callable[[], bool], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.2)

    def end(self) -> str:
        """Wait until it has ended and none of its processes is left, nor of those that read images; its state."""
        self.await_that(lambda: self.shown("JobState") not in {"PENDING", "RUNNING", "COMPLETING"}, 900)
        self.await_that(lambda: not self._slurm.processes(f"SLURM_JOB_ID={self._id}"), 60)
        return self.shown("JobState")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run left alone ends with."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    done = run(emae("pretrain", data=DATA, out=out, checkpoint_every=4, **SETTINGS))
    assert done.returncode == 0, done.stderr
    return out


def test_warned_requeued_resumed_and_finished(slurm: Cluster, alone: Path, tmp_path: Path):
    out = tmp_path / "run"
    job = Job(slurm, out, SETTINGS, minutes=2, slow=True)
    job.await_that(lambda: "emae: stopped by SIGUSR1" in job.said)
    job.quicken()
    assert (job.end(), job.shown("ExitCode")) == ("COMPLETED", "0:0"), job.said
    # Where the machine is busy there may be more than one warning, some of them while the program still starts.
    stops = re.findall(r"^emae: stopped by SIGUSR1; step (\d+) is saved", job.said, re.MULTILINE)
    early = job.said.count("User defined signal 1")
    assert len(stops) == job.said.count("Exited with exit code 75") == int(job.shown("Restarts")) - early
    assert re.findall(r"^resuming .* after step (\d+) of", job.said, re.MULTILINE) == stops
    assert "attempt" not in job.said
    assert_same_result(out, alone)


def test_cancelled(slurm: Cluster, alone: Path, tmp_path: Path):
    out = tmp_path / "run"
    job = Job(slurm, out, SETTINGS, slow=True)
    job.await_that(lambda: last_row(out) >= 6)
    job.cancel()
    assert (job.end(), job.shown("Restarts")) == ("CANCELLED", "0"), job.said
    step = step_of(find_checkpoints(out / "checkpoints")[-1])
    assert 6 <= step <= last_row(out) < TOTAL_STEPS
    assert f"emae: stopped by SIGTERM; step {step} is saved, and the same command again resumes after it" in job.said
    job.quicken()
    again = Job(slurm, out, SETTINGS)
    assert again.end() == "COMPLETED" and f"after step {step} of {TOTAL_STEPS}" in again.said, again.said
    assert_same_result(out, alone)


# Of these images, micro-batches of 8 take little beside PyTorch itself, and 256 at once a gigabyte more.
LARGE = TINY | {
    "img_size": 64, "decoder_depth": 8, "epochs": 5, "warmup_epochs": 0, "batch_size": 256, "log_every": 1,
    "panel_every": 50,
}  # fmt: skip
MEGABYTES = 1200


def test_killed_for_its_memory(slurm: Cluster, tmp_path: Path):
    images, out = str(write_images(tmp_path / "images", 256)), tmp_path / "run"

    def submit(out: Path, accum_iter: int) -> Job:
        return Job(slurm, out, LARGE | {"accum_iter": accum_iter}, images, memory=MEGABYTES)

    alone, job = submit(tmp_path / "alone", 32), submit(out, 32)
    job.await_that(lambda: last_row(out) >= 1)
    job.cancel()
    assert job.end() == "CANCELLED", job.said
    (before,) = find_checkpoints(out / "checkpoints")
    large = submit(out, 1)
    assert large.end() in {"FAILED", "OUT_OF_MEMORY"}, large.said
    # A limit of its control group the run sees itself, and doesn't begin; one that Slurm watches over it doesn't.
    refused = "emae: batch_size=256: micro-batches of 256 images take" in large.said
    assert refused or re.search("Out Of Memory|exceeded memory limit", large.said), large.said
    assert refused or f"after step {step_of(before)} of {LARGE['epochs']}" in large.said
    assert find_checkpoints(out / "checkpoints") == [before]
    smaller = submit(out, 32)
    assert smaller.end() == alone.end() == "COMPLETED", smaller.said
    assert_same_result(out, tmp_path / "alone")


def test_two_tasks(slurm: Cluster, tmp_path: Path):
    out, expected = tmp_path / "run", tmp_path / "torchrun"
    job = Job(slurm, out, SETTINGS, tasks=2)
    done = run(emae("pretrain", processes=2, data=DATA, out=expected, checkpoint_every=4, **SETTINGS))
    assert done.returncode == 0, done.stderr
    assert job.end() == "COMPLETED", job.said
    assert_same_result(out, expected)
    assert rows(out) == rows(expected)
