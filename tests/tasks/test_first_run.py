"""What a run says and writes from its first step on."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from efficient_mae.engine import logging, timetable
from efficient_mae.engine.logging import ProgressDisplay
from efficient_mae.tasks.pretrain import pretrain

from .conftest import rows, write_images
from .test_pretrain import config, stop_at_checkpoint


def test_a_short_run_has_a_row_for_each_step(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = pretrain(config(images, tmp_path / "run", epochs=2, batch_size=14, log_every=20))
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4, 5, 6]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("step ")] == [f"{step}/6" for step in range(1, 7)]


def test_the_bar_speaks_at_once(monkeypatch: pytest.MonkeyPatch):
    """Also that of a run which is resumed long before its next row."""
    monkeypatch.setattr(logging, "console", Console(force_terminal=True, file=open("/dev/null", "w")))  # noqa
    display = ProgressDisplay(100, 50, True, lambda: 1.0)
    said = lambda: display._bar.tasks[0].description  # noqa: E731
    assert said() == "starting"
    display.advance(51)
    assert said() == "step 51/100"
    display.report({"step": 60, "epoch": 1.0, "loss": 0.5, "images_per_second": 7.0, "data_wait": 0.0})
    display.advance(61)
    assert said().startswith("step 60/100  epoch 1.00  loss 0.5000  7 images/s  waiting for data 0%")
    display.close()


def test_a_notebook_has_one_line_that_is_written_over(monkeypatch: pytest.MonkeyPatch, capsys):
    """As its output shows text: a carriage return leads to the begin of the line, which is then written over."""
    monkeypatch.setattr(logging, "console", Console(force_jupyter=True))
    display = ProgressDisplay(100_000, 0, True, lambda: 1.0)
    for step in range(1, 1001):
        rate = 10_000.0 if step == 1 else 7.0  # the first line is the longest
        display.report({"step": step, "epoch": 1.0, "loss": 0.5, "images_per_second": rate, "data_wait": 0.0})
    display.close()
    shown = [""]
    for part in re.split("([\r\n])", capsys.readouterr().err):
        if part == "\n":
            shown.append("")
        elif part != "\r":
            shown[-1] = part + shown[-1][len(part) :]
    (line,) = filter(None, shown)
    assert line.rstrip() == "step 1000/100000  epoch 1.00  loss 0.5000  7 images/s  waiting for data 0%  ETA 0:01:39"


def test_what_an_epoch_leaves_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_images(tmp_path / "data", 30)
    pretrain(config(data, tmp_path / "a", epochs=1))
    assert "an epoch's 3 steps of 8 leave out 6 of 30 images, others each time" in capsys.readouterr().err
    pretrain(config(data, tmp_path / "b", epochs=1, batch_size=10))
    assert "leave out" not in capsys.readouterr().err


def test_without_a_checkpoint_it_is_said_that_there_is_nothing_to_resume(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    settings = config(images, tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_at_checkpoint(patch, 1)
        with pytest.raises(InterruptedError):
            pretrain(settings)
    assert "nothing to resume" not in capsys.readouterr().err
    pretrain(settings)
    said = " ".join(capsys.readouterr().err.split())
    assert f"{tmp_path / 'run'} holds no checkpoint, so there is nothing to resume: from step 0" in said


def test_checkpoints_by_the_clock(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As many as there is time for, and the run ends as it would without them."""
    settings = config(images, tmp_path / "a", epochs=2, keep_checkpoints=99)
    alone = pretrain(settings)
    often = pretrain(dataclasses.replace(settings, out=str(tmp_path / "b"), checkpoint_minutes=1e-9))
    assert [path.name[-2:] for path in sorted((often / "checkpoints").iterdir())] == [f"{n:02}" for n in range(1, 11)]
    monkeypatch.setattr(timetable, "EPOCH_SECONDS", 0.0)
    epochs = pretrain(dataclasses.replace(settings, out=str(tmp_path / "c")))
    assert [path.name[-2:] for path in sorted((epochs / "checkpoints").iterdir())] == ["05", "10"]
    for run in (often, epochs):
        assert (run / "encoder.safetensors").read_bytes() == (alone / "encoder.safetensors").read_bytes()


def test_rows_by_the_clock(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timetable, "ROW_SECONDS", 0.0)
    run = pretrain(config(images, tmp_path / "run", epochs=2, log_every=2))
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()] == list(range(1, 11))
