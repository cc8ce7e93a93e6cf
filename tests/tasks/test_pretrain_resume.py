"""A run that is killed and started again is the run that was left alone."""

import json
from pathlib import Path

import pytest

from efficient_mae.engine.checkpoint import find_checkpoints, step_of

from .conftest import TINY, emae, kill_when, run

# 43 images in batches of 8: 5 steps an epoch, so a checkpoint every 7 steps lies in mid-epoch but for every fifth.
SCHEDULE = {
    "epochs": 60,
    "batch_size": 8,
    "warmup_epochs": 2,
    "checkpoint_every": 7,
    "log_every": 3,
    "panel_every": 60,
}
TOTAL_STEPS = 300
TIMINGS = {"images_per_second", "data_wait"}


def steps_done(out: Path) -> int:
    checkpoints = find_checkpoints(out / "checkpoints")
    return step_of(checkpoints[-1]) if checkpoints else 0


def metrics(out: Path) -> list[dict]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows]


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_resumed_is_bit_identical(images: Path, tmp_path: Path, processes: int):
    settings = {"data": images, **TINY, **SCHEDULE, "accum_iter": 2}
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    done = run(emae("pretrain", processes=processes, out=alone, **settings))
    assert done.returncode == 0, done.stderr

    command = emae("pretrain", processes=processes, out=killed, **settings)
    kill_when(command, killed, lambda: steps_done(killed) >= 7)
    first = steps_done(killed)
    kill_when(command, killed, lambda: steps_done(killed) >= first + 35)
    second = steps_done(killed)
    assert 7 <= first < second < TOTAL_STEPS
    last = run(command)
    assert last.returncode == 0, last.stderr
    assert f"after step {second} of {TOTAL_STEPS}" in last.stderr

    for file in ("model.safetensors", "optimizer.safetensors", "state.json"):
        name = f"checkpoints/step-{TOTAL_STEPS:08d}/{file}"
        assert (killed / name).read_bytes() == (alone / name).read_bytes(), file
    assert (killed / "encoder.safetensors").read_bytes() == (alone / "encoder.safetensors").read_bytes()
    assert metrics(killed) == metrics(alone)
    assert [row["step"] for row in metrics(alone)][-1] == TOTAL_STEPS

    again = run(command)
    assert again.returncode == 0 and "is finished" in again.stderr
