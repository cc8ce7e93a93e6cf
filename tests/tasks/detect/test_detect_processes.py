"""Two processes that learn to detect: they share the images and the judgement, replicated or sharded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from efficient_mae.tasks.detect.config import DetectConfig
from efficient_mae.tasks.detect.run import detect
from efficient_mae.tasks.predict import predict
from efficient_mae.tasks.predict_config import PredictConfig
from tests.processes import spawn

from .conftest import write_coco
from .test_detect import QUICK, average_precision


def in_process(rank: int, jobs: list[DetectConfig]) -> None:
    for settings in jobs:
        detect(settings)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco") / "data", train=8, val=3)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    common = {**QUICK, "drop_path": 0.0}
    ddp = DetectConfig(data=str(data), out=str(folder / "ddp"), **common)
    fsdp = DetectConfig(data=str(data), out=str(folder / "fsdp"), parallel="fsdp", **common)
    spawn(2, in_process, [ddp, fsdp])
    return folder


def test_both_judge_one_model_on_all_images(runs: Path, data: Path, tmp_path: Path):
    result = json.loads((runs / "ddp" / "results.json").read_text())
    assert result["test_images"] == 3
    out = tmp_path / "found.json"
    given = {"part": "test", "device": "cpu", "precision": "fp32", "num_workers": 0, "batch_size": 1}
    predict(PredictConfig(weights=str(runs / "ddp"), data=str(data), out=str(out), **given))
    found = json.loads(out.read_text())
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        assert result[name]["ap"] == pytest.approx(average_precision(data, found, kind), abs=1e-3)


def test_sharded_it_is_the_same_run(runs: Path):
    replicated, sharded = (load_file(runs / name / "trained.safetensors") for name in ("ddp", "fsdp"))
    assert replicated.keys() == sharded.keys()
    for name, value in replicated.items():
        torch.testing.assert_close(value, sharded[name], rtol=1e-3, atol=1e-3, msg=name)
