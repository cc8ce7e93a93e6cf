"""Table 5's metrics and Table 6's schedules as settings of a pre-training run."""

import json
from pathlib import Path

import pytest
import torch

import efficient_mae as emae
from efficient_mae.data import open_source
from efficient_mae.engine.machine.distributed import join_processes
from efficient_mae.tasks.pretrain import PretrainRun, pretrain
from efficient_mae.tasks.pretrain_config import PretrainConfig, build_model, resolve

from .conftest import TINY
from .labelled import stop_after_checkpoints


def config(data: Path, out: Path, **settings) -> PretrainConfig:
    small = {**TINY, "num_workers": 0, "epochs": 4, "batch_size": 8, "checkpoint_every": 7, "panel_every": 4}
    return PretrainConfig(data=str(data), out=str(out), **(small | settings))


def test_a_curriculum_resumes_where_it_was(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = {"schedule": "curriculum", "beta": None, "mask_ratio": 0.8}
    alone = pretrain(config(images, tmp_path / "alone", **settings))
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        stop_after_checkpoints(patch, 1)
        pretrain(config(images, tmp_path / "stopped", **settings))
    again = pretrain(config(images, tmp_path / "stopped", **settings, num_workers=2))
    assert (again / "encoder.safetensors").read_bytes() == (alone / "encoder.safetensors").read_bytes()


def test_a_curriculum_predicts_more_from_epoch_to_epoch(images: Path, tmp_path: Path):
    settings = config(images, tmp_path / "a", schedule="curriculum", beta=None)
    source = open_source(str(images))
    with join_processes("cpu") as processes:
        resolved = resolve(settings, len(source), processes.device)
        dataset = PretrainRun(resolved, source, build_model(resolved), processes).dataset()
    counts = [
        len(dataset.__getitems__([(epoch, index) for index in range(40)]).masks.value.ids_predict)
        for epoch in range(4)
    ]
    assert counts == sorted(counts) and len(set(counts)) == 4 and counts[-1] == 40 * 12


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "normalise", "mask_ratio": 0.8},
        {"schedule": "threshold"},
        {"difficulty": "visible_neighbours", "beta": None},
    ],
)
def test_a_run_goes_by_its_objective(images: Path, tmp_path: Path, settings: dict):
    run = pretrain(config(images, tmp_path / "a", epochs=1, log_every=1, **settings))
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses and all(0 < loss < 10 for loss in losses)
    loaded = emae.load(str(run))
    assert {name: getattr(loaded.config, name) for name in settings} == settings
    assert (run / "figures" / "panel-epoch-0001.png").is_file()
    assert torch.isfinite(loaded(torch.zeros(2, 1, 16, 16)).loss)
