"""Two processes that learn to segment: they share the images, the judgement, and batch norm's averages."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from efficient_mae.tasks.predict import predict
from efficient_mae.tasks.predict_config import PredictConfig
from efficient_mae.tasks.segment.config import SegmentConfig
from efficient_mae.tasks.segment.run import segment
from tests.processes import spawn

from .mapped import SMALL, write_mapped


def in_process(rank: int, jobs: list[SegmentConfig]) -> None:
    for settings in jobs:
        segment(settings)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mapped(tmp_path_factory.mktemp("mapped") / "data", 16, 5)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    common = {**SMALL, "epochs": 1, "base_lr": 0.06, "photometric": False}
    ddp = SegmentConfig(data=str(data), out=str(folder / "ddp"), **common)
    fsdp = SegmentConfig(data=str(data), out=str(folder / "fsdp"), parallel="fsdp", **common)
    spawn(2, in_process, [ddp, fsdp])
    return folder


def test_both_judge_one_model_on_all_images(runs: Path, data: Path, tmp_path: Path):
    result = json.loads((runs / "ddp" / "results.json").read_text())
    assert result["test_images"] == 5
    predict(
        PredictConfig(
            weights=str(runs / "ddp"), data=str(data), part="test", out=str(tmp_path / "maps"), device="cpu",
            precision="fp32", num_workers=0,
        )
    )  # fmt: skip
    confusion = np.zeros((3, 3), int)
    for file in sorted((data / "annotations" / "validation").glob("*.png")):
        truth, found = np.asarray(Image.open(file)), np.asarray(Image.open(tmp_path / "maps" / file.name))
        np.add.at(confusion, (truth[truth > 0] - 1, found[truth > 0] - 1), 1)
    # Windows are computed one, two or more at a time: a tie between classes may fall otherwise.
    assert np.abs(confusion - np.array(result["confusion"])).sum() <= 4


def test_sharded_it_is_the_same_run(runs: Path):
    replicated, sharded = (load_file(runs / name / "trained.safetensors") for name in ("ddp", "fsdp"))
    assert replicated.keys() == sharded.keys()
    for name, value in replicated.items():
        torch.testing.assert_close(value, sharded[name], rtol=1e-3, atol=1e-4, msg=name)
