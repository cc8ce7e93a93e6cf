"""Runs that stop, or go back to the last good checkpoint, where steps in a row can't be taken."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from torch._guards import detect_fake_mode

from efficient_mae.cli import main
from efficient_mae.data import ResumableBatchSampler
from efficient_mae.errors import DivergedError
from efficient_mae.tasks import pretrain

from .conftest import TINY, flags
from .white import (
    SCHEDULE,
    STEPS,
    bad,
    config,
    lines,
    replayed,
    steps_with,
    stopped_after,
    weights,
    whites_that_are_infinite,
    write_with_white,
)

# Two white images: with this seed they hold up batches 5 and 6, and 11 and 12, in a row, and others alone.
TWO = {"seed": 11, "max_skipped_steps": 2, "log_every": 100}
WHITES = {5, 18}


@pytest.fixture(scope="module", autouse=True)
def poison() -> Iterator[None]:
    with whites_that_are_infinite():
        yield


@pytest.fixture(scope="module")
def two_white(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert list(steps_with(WHITES, 11, 24)) == [1, 5, 6, 8, 11, 12, 17, 19, 24]
    return write_with_white(tmp_path_factory.mktemp("two") / "images", *WHITES)


def test_so_many_in_a_row_stop_the_run(two_white: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["pretrain", *flags(data=two_white, out=tmp_path, **(TINY | {"num_workers": 0} | SCHEDULE | TWO))]
    for _ in range(2):  # the same command comes to the same end
        assert main(command) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("emae: 2 steps in a row, from 5 on, had a loss or a gradient that is not finite")
        assert f"the last good checkpoint is {tmp_path / 'checkpoints' / 'step-00000004'};" in said
        assert said.endswith(f"emae replay --run {tmp_path} --step 5")
        assert [row["step"] for row in lines(tmp_path / "skipped.jsonl")] == [1, 5, 6]
    # Of a run that has been told to stop later, the steps in a row are counted on over its checkpoints.
    pretrain.pretrain(config(two_white, tmp_path, **TWO | {"max_skipped_steps": 3}))
    assert (tmp_path / "encoder.safetensors").exists()


@pytest.fixture(scope="module")
def gone_back(two_white: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """A run that went back twice, and which images its steps saw."""
    seen = []

    def noting(self, model, batch):
        if not detect_fake_mode():  # where memory is counted nothing is trained
            seen.append(batch.indices.tolist())
        return weighted_sum(self, model, batch)

    weighted_sum = pretrain.MethodObjective.weighted_sum
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain.MethodObjective, "weighted_sum", noting)
        out = tmp_path_factory.mktemp("runs") / "gone-back"
        return pretrain.pretrain(config(two_white, out, **TWO, rollbacks=2)), seen


def test_going_back_passes_over_what_did_harm(gone_back: tuple[Path, list[list[int]]]):
    run, seen = gone_back
    # Steps 1 to 6, from 4 on again, to 10, and from 8 on again: each time with what comes next.
    batches = islice(ResumableBatchSampler(40, 8, 11), 24)
    assert seen == [[index for _, index in pairs] for pairs in batches]
    assert json.loads((run / "rollbacks.json").read_text()) == [{"step": 4, "batches": 2}, {"step": 8, "batches": 2}]
    rows = [(row["step"], row["rollbacks"]) for row in lines(run / "skipped.jsonl")]
    assert rows == [(1, 0), (5, 0), (6, 0), (6, 1), (9, 1), (10, 1), (13, 2), (15, 2), (20, 2)]
    assert [row["step"] for row in lines(run / "metrics.jsonl")] == [*range(1, STEPS + 1)]


def test_going_back_survives_being_killed(gone_back: tuple[Path, list[list[int]]], two_white: Path, tmp_path: Path):
    settings = config(two_white, tmp_path / "run", **TWO, rollbacks=2)
    for checkpoints in (2, 2, 1):  # before it goes back, just before the second time, and after
        stopped_after(checkpoints, settings)
    pretrain.pretrain(settings)
    run = gone_back[0]
    assert weights(tmp_path / "run") == weights(run)
    for name in ("skipped.jsonl", "metrics.jsonl", "rollbacks.json"):
        assert lines_or_text(tmp_path / "run" / name) == lines_or_text(run / name)


def lines_or_text(file: Path) -> str | list[dict]:
    return lines(file) if file.suffix == ".jsonl" else file.read_text()


@pytest.mark.parametrize(("step", "batch"), [(5, 5), (6, 8), (20, 24)])
def test_what_a_run_went_back_over_can_be_replayed(
    gone_back: tuple[Path, list[list[int]]], step: int, batch: int, capsys: pytest.CaptureFixture[str]
):
    run, seen = gone_back
    result = replayed(capsys, "--run", str(run), "--step", str(step))
    assert [sample["index"] for sample in result["samples"]] == seen[batch - 1]
    white = [f"{index:03}.png" for index in seen[batch - 1] if index in WHITES]
    assert result["reproduced"] and bad(result) == white != []


def test_it_goes_back_no_more_often_than_it_may(two_white: Path, tmp_path: Path):
    with pytest.raises(DivergedError, match="from 9 on"):
        pretrain.pretrain(config(two_white, tmp_path, **TWO, rollbacks=1))
