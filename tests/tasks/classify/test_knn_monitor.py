import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from efficient_mae.report.report import write_report
from efficient_mae.tasks.classify.knn import KnnConfig, knn
from efficient_mae.tasks.pretrain import pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig

from ..conftest import TINY
from ..labelled import write_labelled


def test_it_is_logged_and_agrees_with_the_command(tmp_path: Path):
    data = write_labelled(tmp_path / "data")
    settings = {**TINY, "num_workers": 0, "batch_size": 40, "epochs": 5, "log_every": 4}
    run = pretrain(PretrainConfig(data=str(data), out=str(tmp_path / "run"), knn_every=2, **settings))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {row["epoch"]: row["knn"] for row in rows if "knn" in row}
    assert list(found) == [2, 4, 5]
    assert found[5] == pytest.approx(knn(KnnConfig(weights=str(run), num_workers=0)).accuracy.trained)
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("knn")] == [
        (int(epoch) * 3, pytest.approx(value)) for epoch, value in found.items()
    ]
    assert write_report(run).stat().st_size > 10_000
    # What is learned is what is learned without it.
    plain = pretrain(PretrainConfig(data=str(data), out=str(tmp_path / "plain"), **settings))
    assert (plain / "encoder.safetensors").read_bytes() == (run / "encoder.safetensors").read_bytes()


def test_unlabelled_data_are_refused_at_the_start(images: Path, tmp_path: Path):
    settings = {**TINY, "batch_size": 8, "epochs": 1, "data": str(images), "out": str(tmp_path / "run")}
    with pytest.raises(ValueError, match="knn_every needs labels and a held-out part .* has no labels"):
        pretrain(PretrainConfig(**settings, knn_every=1))
    with pytest.raises(ValueError, match="knn_every=0: must be at least 1"):
        pretrain(PretrainConfig(**settings, knn_every=0))
    assert not (tmp_path / "run").exists()
