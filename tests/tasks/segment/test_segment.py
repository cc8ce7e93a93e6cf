"""emae segment from its flags to its files: it learns, resumes to the bit, predicts and reports."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.data import normalize
from efficient_mae.tasks.segment import run as run_module
from efficient_mae.tasks.segment.config import SegmentConfig
from efficient_mae.tasks.segment.model import load_segmenter
from efficient_mae.tasks.segment.run import segment

from ..labelled import stop_after_checkpoints
from .mapped import CLASSES, SMALL, write_mapped

QUICK = {**SMALL, "epochs": 2, "base_lr": 0.06, "layer_decay": 1.0, "eval_every": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mapped(tmp_path_factory.mktemp("mapped") / "data")


def config(data: Path, out: Path, **settings) -> SegmentConfig:
    return SegmentConfig(data=str(data), out=str(out), **QUICK | settings)


def rows(run: Path) -> list[dict]:
    timings = {"images_per_second", "data_wait"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in timings} for line in lines]


@pytest.fixture(scope="module")
def learned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "learned"
    given = {**QUICK, "from_scratch": "true", "epochs": 12, "reduce_zero_label": "true", "photometric": "false"}
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    assert main(["segment", "--data", str(data), "--out", str(out), *flags]) == 0
    return out


def by_hand(run: Path, data: Path, maps: Path) -> np.ndarray:
    """Confusion of label maps that were predicted, pixel by pixel."""
    confusion = np.zeros((3, 3), int)
    for file in sorted((data / "annotations" / "validation").glob("*.png")):
        truth, found = np.asarray(Image.open(file)), np.asarray(Image.open(maps / file.name))
        assert truth.shape == found.shape
        for one, other in zip(truth[truth > 0].tolist(), found[truth > 0].tolist(), strict=True):
            confusion[one - 1, other - 1] += 1
    return confusion


def test_it_learns_predicts_and_reports(learned: Path, data: Path, tmp_path: Path, capsys):
    result = json.loads((learned / "results.json").read_text())
    # Of canvas alone IoU would be 0.8 / 3 in the mean, and accuracy 1 / 3.
    assert result["miou"] > 0.45 and result["macc"] > 0.5 and result["classes"] == list(CLASSES)
    capsys.readouterr()
    flags = ["--weights", str(learned), "--data", str(data), "--part", "test", "--out", str(tmp_path / "maps")]
    assert main(["predict", *flags, "--device", "cpu", "--precision", "fp32", "--num_workers", "0", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["images"] == 6 and said["classes"] == list(CLASSES) and said["first_label"] == 1
    confusion = by_hand(learned, data, tmp_path / "maps")
    assert result["confusion"] == confusion.tolist()
    right, union = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    assert result["miou"] == pytest.approx((right / union).mean(), abs=1e-6)
    assert result["macc"] == pytest.approx((right / confusion.sum(1)).mean(), abs=1e-6)
    assert result["pixel_accuracy"] == pytest.approx(right.sum() / confusion.sum(), abs=1e-6)
    page = (learned / "report.html").read_text()
    assert f"{100 * result['miou']:.1f}%" in page and "stripes" in page and page.count("data:image/png") == 2
    for name in ("confusion.png", "figures/predictions.png"):
        assert Image.open(learned / name).size > (200, 200)
    (learned / "report.html").unlink()
    assert main(["report", "--run", str(learned)]) == 0 and (learned / "report.html").is_file()


def test_predictions_go_on_and_are_of_one_model(learned: Path, data: Path, tmp_path: Path, capsys):
    flags = [
        "--weights",
        str(learned),
        "--data",
        str(data / "images" / "validation"),
        "--out",
        str(tmp_path / "maps"),
    ]
    quiet = ["--device", "cpu", "--num_workers", "0"]
    assert main(["predict", *flags, *quiet]) == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "maps").iterdir()}
    (tmp_path / "maps" / "003.png").unlink()
    assert main(["predict", *flags, *quiet]) == 0
    assert {file.name: file.read_bytes() for file in (tmp_path / "maps").iterdir()} == before
    assert "going on after 5 of 6 images" in capsys.readouterr().err
    assert main(["predict", *flags, *quiet, "--batch_size", "7"]) == 2
    assert "was begun otherwise" in capsys.readouterr().err
    assert main(["predict", *flags[:-1], str(data), *quiet]) == 2
    assert "holds something else" in capsys.readouterr().err


def test_its_encoder_is_weights_like_any_other(learned: Path):
    encoder, trained = emae.load(learned), load_file(learned / "trained.safetensors")
    assert all(torch.equal(value, trained[f"encoder.{name}"]) for name, value in encoder.state_dict().items())
    assert len(encoder.blocks) == 2 and encoder.img_size == (32, 32)
    model = load_segmenter(learned)
    last = load_file(max((learned / "checkpoints").iterdir()) / "model.safetensors")
    assert all(torch.equal(value, last[name]) for name, value in model.model.state_dict().items())


def test_interrupted_and_resumed_is_bit_identical(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = {"checkpoint_every": 2, "accum_iter": 2, "drop_path": 0.5, "dropout": 0.5, "batch_size": 4}
    alone, cut = config(data, tmp_path / "alone", **settings), config(data, tmp_path / "cut", **settings)
    segment(alone)
    stop_after_checkpoints(monkeypatch, 2)
    with pytest.raises(InterruptedError):
        segment(cut)
    monkeypatch.undo()
    torch.rand(3)
    segment(dataclasses.replace(cut, num_workers=1))
    last = max(Path(alone.out, "checkpoints").iterdir()).relative_to(alone.out)
    for file in (last / "model.safetensors", last / "optimizer.safetensors", "trained.safetensors", "results.json"):
        assert (Path(alone.out) / file).read_bytes() == (Path(cut.out) / file).read_bytes(), file
    assert rows(Path(alone.out)) == rows(Path(cut.out))


def test_relative_positions_are_learned_and_loaded(data: Path, tmp_path: Path):
    segment(config(data, tmp_path / "run", relative_positions=True, epochs=1))
    model = load_segmenter(tmp_path / "run").model
    assert all(block.attn.relative_position_bias_table.abs().sum() > 0 for block in model.encoder.blocks)
    with pytest.raises(ValueError, match="its encoder has relative positions, which none here has"):
        emae.load(tmp_path / "run")


def test_several_seeds(data: Path, tmp_path: Path):
    result = segment(config(data, tmp_path / "run", seeds=2, epochs=1))
    values = [json.loads((tmp_path / "run" / f"seed-{n}" / "results.json").read_text())["miou"] for n in (0, 1)]
    assert result.miou.values == values and result.miou.mean == pytest.approx(np.mean(values))


def test_from_trained_weights_of_another_size(learned: Path, data: Path, tmp_path: Path):
    settings = {"weights": str(learned), "from_scratch": False, "model": None, "depth": None, "in_chans": None}
    segment(config(data, tmp_path / "run", **settings, img_size=48, epochs=1, base_lr=1e-12))
    grown, old = emae.load(tmp_path / "run").state_dict(), emae.load(learned).state_dict()
    assert grown["pos_embed"].shape[1] == 37 and old["pos_embed"].shape[1] == 17
    torch.testing.assert_close(grown["blocks.1.mlp.fc1.weight"], old["blocks.1.mlp.fc1.weight"], atol=1e-6, rtol=0)


def test_a_step_that_is_not_finite_is_skipped_and_replayed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    def infinite(images: torch.Tensor, mean, std) -> torch.Tensor:
        """Of a crop that is all white, but for rounding."""
        white = (images > 250).flatten(1).all(dim=1)[:, None, None, None]
        return torch.where(white, torch.inf, normalize(images, mean, std))

    monkeypatch.setattr(run_module, "normalize", infinite)
    shutil.copytree(data, tmp_path / "data")
    Image.new("RGB", (40, 48), "white").save(tmp_path / "data" / "images" / "training" / "009.png")
    Image.new("L", (40, 48), 1).save(tmp_path / "data" / "annotations" / "training" / "009.png")
    given = {"photometric": False, "resize_range": (3.0, 3.0), "epochs": 1, "checkpoint_every": 1}
    segment(config(tmp_path / "data", tmp_path / "run", **given))
    (skipped,) = (json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines())
    last = load_file(max((tmp_path / "run" / "checkpoints").iterdir()) / "model.safetensors")
    assert all(value.isfinite().all() for value in last.values())  # batch norm's averages too
    found = emae.replay(run=str(tmp_path / "run"), step=skipped["step"])
    assert found.reproduced and found.module is not None
    assert (found.module.name, found.module.input_is_finite) == ("encoder.patch_embed.proj", False)
    # By the statistics that they share, the whole micro-batch is spoilt.
    assert "009.png" in {Path(one.name).name for one in found.samples if isinstance(one.loss, str)}


def damaged(data: Path, out: Path, kind: str) -> Path:
    """A copy of the data of which the label map of one training image is wrong."""
    shutil.copytree(data, out)
    file = out / "annotations" / "training" / "004.png"
    labels = np.array(Image.open(file))
    if kind == "outside":
        labels[5, 7] = 9
        Image.fromarray(labels).save(file)
    elif kind == "missing":
        file.unlink()
    elif kind == "size":
        Image.fromarray(labels[:-1]).save(file)
    elif kind == "colours":
        Image.fromarray(labels).convert("RGB").save(file)
    elif kind == "torn":
        file.write_bytes(file.read_bytes()[:60])
    return out


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("outside", "label 9 at x 7, y 5, outside the 3 classes, which are 1 to 3"),
        ("missing", "its label map .*004.png: No such file or directory"),
        ("size", "is 40 x 47 pixels, and the image is 40 x 48"),
        ("colours", "RGB pixels: a label map has a palette or is grey"),
        ("torn", "its label map .*004.png: "),
    ],
)
def test_a_label_map_that_is_wrong_is_named_and_passed_over(data: Path, tmp_path: Path, kind: str, what: str, capsys):
    segment(config(damaged(data, tmp_path / "data", kind), tmp_path / "run", epochs=1))
    ((name, reason),) = json.loads((tmp_path / "run" / "damaged.json").read_text())
    assert name.endswith("images/training/004.png")
    assert re.search(what, reason) and "\n" not in reason
    assert f"skipped {name}" in capsys.readouterr().err


def test_many_wrong_maps_are_refused(data: Path, tmp_path: Path):
    shutil.copytree(data, tmp_path / "data")
    for number in range(3):
        (tmp_path / "data" / "annotations" / "training" / f"{number:03}.png").unlink()
    with pytest.raises(ValueError, match=r"3 of 24 images have no label map, the first .*000.png: there is no .*000"):
        segment(config(tmp_path / "data", tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    # Twelve of each label are one too many: it was forgotten that 0 is none.
    with pytest.raises(ValueError, match=r"label 3 at .* where 0 stands for no class: --reduce_zero_label true"):
        segment(config(data, tmp_path / "run", reduce_zero_label=False))


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"from_scratch": False, "model": None, "depth": None}, "either --weights PATH or --from scratch"),
        ({"batch_size": 4, "accum_iter": 4}, "a micro-batch has 1 image, of which batch norm can take no statistics"),
        ({"in_chans": 4}, "photometric=true: works on 1 or 3 channels, not 4"),
        ({"resize_range": (2.0, 0.5)}, "the first number must not exceed the second"),
        ({"scales": ()}, "must be one factor at least"),
        ({"img_size": 8}, "1 x 1 patches: UPerNet halves them"),
        ({"ignore_index": 2}, "ignore_index=2: is the number of the class 'disc'"),
        ({"classes": "/nowhere.txt"}, "classes=/nowhere.txt: no such file"),
        ({"data": "/nowhere"}, "data=/nowhere: no such folder"),
        ({"val_data": "/nowhere"}, "val_data=/nowhere: no such folder"),
        ({"class_share": 0.0}, "class_share=0.0"),
        ({"stride": 1.5}, "stride=1.5"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    data: Path, tmp_path: Path, settings: dict, what: str
):
    with pytest.raises(ValueError, match=what):
        segment(dataclasses.replace(config(data, tmp_path / "run"), **settings))
    assert not (tmp_path / "run").exists()
