"""Scenes of 13 bands of 16 bits, from pre-training to a fine-tuned classifier, through the command line alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import timm
import torch
import yaml
from PIL import Image

from efficient_mae.cli import main

from .conftest import TINY, flags

BANDS = 13


def write_scenes(root: Path, side: int) -> Path:
    """Two classes, which their infrared tells apart."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for bright, label in ((500, "bare"), (4000, "green")):
            (root / part / label).mkdir(parents=True)
            for number in range(count):
                scene = rng.integers(0, 3000, (side, side, BANDS)).astype(np.uint16)
                scene[..., 7] += bright
                file = root / part / label / f"{number}.tif"
                tifffile.imwrite(file, scene, tile=(64, 64), photometric="minisblack", planarconfig="contig")
    return root


@pytest.mark.parametrize("side", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_all_the_way(side: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data, run = write_scenes(tmp_path / "scenes", side), tmp_path / "run"
    small = {**TINY, "in_chans": BANDS, "device": "cpu", "num_workers": 0, "epochs": 1, "batch_size": 4}
    measured = {"value_range": "measure", "mean": "measure", "std": "measure", "show_bands": "[4,3,2]"}
    assert main(["pretrain", *flags(data=data, out=run, **small, **measured)]) == 0
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert [len(settings[name]) for name in ("value_range", "mean", "std")] == [2 * BANDS, BANDS, BANDS]
    (panel,) = (run / "figures").glob("panel-*.png")
    assert Image.open(panel).mode.startswith("RGB") and (run / "report.html").is_file()
    capsys.readouterr()
    out = tmp_path / "export"
    assert main(["export", *flags(weights=run, out=out), "--json"]) == 0
    assert "model.safetensors" in json.loads(capsys.readouterr().out)["files"]
    vit = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert vit(torch.zeros(1, BANDS, 16, 16)).shape[0] == 1
    tune = {"device": "cpu", "num_workers": 0, "epochs": 1, "batch_size": 4, "precision": "fp32"}
    tuned = flags(weights=run, data=data, out=tmp_path / "tuned", auto_augment="null", **tune)
    assert main(["finetune", *tuned]) == 0
    assert json.loads((tmp_path / "tuned" / "results.json").read_text())["test_images"] == 4
