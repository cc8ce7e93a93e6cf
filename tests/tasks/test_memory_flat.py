"""Host memory stays where it is while a run goes on; benchmarks/memory.py gives the slope of 5,000 steps."""

import gc
import multiprocessing
import signal
import time
from pathlib import Path

import pytest

from efficient_mae.engine.logging import read_metrics
from efficient_mae.tasks.classify.linear_probe import LinearProbeConfig, LinearProbeRun, linear_probe
from tests.forks import ForkServer

from .conftest import TINY, flags, write_images
from .labelled import QUICK, SMALL_ENCODER, write_labelled

# What a batch takes: 16 grey images of 64 x 64 pixels, as floats. A leak of one a step is 31 MB between the readings.
BATCH, SIDE = 16, 64
LEAK = BATCH * SIDE**2 * 4


def family(pid: int) -> list[int]:
    """A process and its children."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def held(pid: int) -> int:
    """Bytes of a process and of its children that a leak adds to: anonymous pages, and parts of shared memory."""
    total = 0
    for process in family(pid):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Anonymous:", "Pss_Shmem:")))
    return total


def test_a_run_that_is_done_leaves_nothing(tmp_path: Path):
    """Neither itself nor its workers: not even until memory is looked through for what refers to itself."""
    gc.disable()
    try:
        linear_probe(
            LinearProbeConfig(
                data=str(write_labelled(tmp_path / "data")), out=str(tmp_path / "run"),
                **SMALL_ENCODER | QUICK | {"num_workers": 1, "epochs": 1},
            )
        )  # fmt: skip
        assert multiprocessing.active_children() == []
        assert not [one for one in gc.get_objects() if type(one) is LinearProbeRun]
    finally:
        gc.enable()


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the kernel doesn't tell")
def test_memory_is_flat(server: ForkServer, tmp_path: Path):
    write_images(tmp_path / "data", 128)
    (tmp_path / "data" / "005.webp").write_text("no image")
    settings = TINY | {"model": "mae_vit_tiny_patch16", "img_size": SIDE, "batch_size": BATCH, "epochs": 1000}
    settings |= {"data": tmp_path / "data", "out": tmp_path / "run", "log_every": 5, "panel_every": 1000}
    run = server.start(["pretrain", *flags(**settings)])
    readings: dict[int, int] = {}
    while max(readings, default=0) < 220:
        time.sleep(0.1)
        assert not run.ended(), run.wait()
        rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
        if rows:
            readings[rows[-1]["step"]] = held(run.pids[0])
    run.signal(signal.SIGKILL)
    run.wait()
    early = [value for step, value in readings.items() if 40 <= step <= 80]
    late = [value for step, value in readings.items() if step >= 200]
    assert early and late
    assert min(late) - max(early) < 60 * LEAK  # of 120 steps at least
