"""emae detect from its flags to its files: it learns, resumes to the bit, predicts and reports."""

import contextlib
import dataclasses
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.data import normalize
from efficient_mae.engine.machine.distributed import ALONE
from efficient_mae.engine.machine.memory import BatchMemory
from efficient_mae.engine.machine.step_memory import hollow
from efficient_mae.tasks.detect import predict as predict_module
from efficient_mae.tasks.detect import run as run_module
from efficient_mae.tasks.detect.config import DetectConfig
from efficient_mae.tasks.detect.run import detect

from ..labelled import stop_after_checkpoints
from .conftest import write_coco

QUICK = {
    "from_scratch": True, "model": "mae_vit_tiny_patch8", "depth": 1, "img_size": 64, "width": 16, "proposals": 16,
    "window_size": 3, "global_blocks": 0, "epochs": 1, "batch_size": 4, "base_lr": 0.02, "jitter": (0.8, 1.2),
    "precision": "fp32", "num_workers": 0, "log_every": 1, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco") / "data", train=8, val=3)


def config(data: Path, out: Path, **settings) -> DetectConfig:
    return DetectConfig(data=str(data), out=str(out), **QUICK | settings)


def rows(run: Path) -> list[dict]:
    timings = {"images_per_second", "data_wait"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in timings} for line in lines]


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    given = {**QUICK, "from_scratch": "true", "jitter": "[0.8,1.2]"}
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    assert main(["detect", "--data", str(data), "--out", str(out), *flags]) == 0
    return out


def average_precision(data: Path, results: list[dict], kind: str) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(data / "annotations" / "instances_val2017.json"))
        own = "bbox" if kind == "bbox" else "segmentation"
        kept = ("image_id", "category_id", "score", own)
        guess = truth.loadRes([{name: one[name] for name in kept} for one in results])
        judge = COCOeval(truth, guess, kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[0])


def test_it_predicts_and_reports(run: Path, data: Path, tmp_path: Path, capsys):
    result = json.loads((run / "results.json").read_text())
    assert result["classes"] == ["square", "disc"] and (result["train_images"], result["test_images"]) == (8, 3)
    capsys.readouterr()
    flags = ["--weights", str(run), "--out", str(tmp_path / "found.json"), "--device", "cpu", "--num_workers", "0"]
    flags += ["--precision", "fp32"]
    assert main(["predict", *flags, "--data", str(data), "--part", "test", "--json"]) == 0
    said, found = json.loads(capsys.readouterr().out), json.loads((tmp_path / "found.json").read_text())
    assert said["images"] == 3 and said["objects"] == len(found) > 0 and said["classes"] == ["square", "disc"]
    assert {one["category_id"] for one in found} <= {3, 7} and {one["image_id"] for one in found} <= {100, 101, 102}
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        assert result[name]["ap"] == pytest.approx(average_precision(data, found, kind), abs=1e-5)
    flags[3] = str(tmp_path / "folder.json")
    assert main(["predict", *flags, "--data", str(data / "val2017")]) == 0
    numbered = json.loads((tmp_path / "folder.json").read_text())
    assert {one["image_id"] for one in numbered} <= {1, 2, 3} and len(numbered) == len(found)
    assert main(["predict", *flags, "--data", str(data / "val2017")]) == 2
    flags[3] = str(tmp_path / "found.csv")
    assert main(["predict", *flags, "--data", str(data)]) == 2
    assert "must end in .json" in capsys.readouterr().err
    page = (run / "report.html").read_text()
    assert "AP of masks" in page and "disc" in page and page.count("data:image/png") == 1
    assert Image.open(run / "figures" / "predictions.png").size > (200, 200)
    (run / "report.html").unlink()
    assert main(["report", "--run", str(run)]) == 0 and (run / "report.html").is_file()


def test_predictions_broken_off_go_on_to_the_same_bits(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "val2017" / "000001.png").write_text("no image")
    flags = ["--weights", str(run), "--part", "test", "--device", "cpu", "--num_workers", "0", "--precision", "fp32"]
    flags += ["--batch_size", "1"]

    def predicted(out: str, *others: str) -> int:
        return main(["predict", *flags, "--data", str(tmp_path / "data"), "--out", str(tmp_path / out), *others])

    assert predicted("alone.json") == 0
    real, calls = predict_module.find, []

    def breaking(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedError
        return real(*arguments)

    monkeypatch.setattr(predict_module, "find", breaking)
    with pytest.raises(InterruptedError):
        emae.predict(
            weights=run, data=tmp_path / "data", part="test", out=tmp_path / "cut.json", batch_size=1, num_workers=0,
            device="cpu", precision="fp32",
        )  # fmt: skip
    work = tmp_path / ".partial-cut.json"
    with (work / "batches.jsonl").open("ab") as stream:
        stream.write(b'{"images": 3, "objects": [[2, {"cate')
    assert not (tmp_path / "cut.json").exists()
    assert predicted("cut.json", "--batch_size", "3") == 2
    assert (
        "was begun otherwise: batch_size 1 there, 3 here; remove it, or name another out" in capsys.readouterr().err
    )
    assert predicted("cut.json", "--json", "--top", "3") == 0  # which is of classes of images alone
    said = capsys.readouterr()
    assert "going on after 2 of 3 images" in said.err and len(calls) == 4
    result = json.loads(said.out)
    assert result["images"] == 2 and [Path(name).name for name, _ in result["unreadable"]] == ["000001.png"]
    assert (tmp_path / "cut.json").read_bytes() == (tmp_path / "alone.json").read_bytes()
    found = json.loads((tmp_path / "cut.json").read_text())
    assert len(found) == result["objects"] and {one["image_id"] for one in found} == {100, 102}
    assert not work.exists()


def test_its_encoder_is_weights_like_any_other(run: Path, data: Path, tmp_path: Path):
    encoder, trained = emae.load(run), load_file(run / "trained.safetensors")
    assert all(torch.equal(value, trained[f"encoder.{name}"]) for name, value in encoder.state_dict().items())
    # Its positions are of the images that it was pre-trained on, whatever it detects in.
    assert encoder.img_size == (224, 224)
    given = {"weights": str(run), "from_scratch": False, "model": None, "depth": None, "base_lr": 1e-12}
    detect(config(data, tmp_path / "again", **given))
    again = emae.load(tmp_path / "again").state_dict()
    name = "blocks.0.mlp.fc1.weight"
    torch.testing.assert_close(again[name], encoder.state_dict()[name], atol=1e-6, rtol=0)


def test_interrupted_and_resumed_is_bit_identical(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = {"checkpoint_every": 1, "drop_path": 0.5, "epochs": 2, "eval_every": 2}
    alone, cut = config(data, tmp_path / "alone", **settings), config(data, tmp_path / "cut", **settings)
    detect(alone)
    stop_after_checkpoints(monkeypatch, 1)
    with pytest.raises(InterruptedError):
        detect(cut)
    monkeypatch.undo()
    torch.rand(3)
    detect(dataclasses.replace(cut, num_workers=1))
    last = max(Path(alone.out, "checkpoints").iterdir()).relative_to(alone.out)
    for file in (last / "model.safetensors", last / "optimizer.safetensors", "trained.safetensors", "results.json"):
        assert (Path(alone.out) / file).read_bytes() == (Path(cut.out) / file).read_bytes(), file
    assert rows(Path(alone.out)) == rows(Path(cut.out))


def test_the_rate_falls_to_a_tenth_and_a_hundredth(data: Path, tmp_path: Path):
    made = run_module.DetectRun.make(config(data, tmp_path / "run", lr_drops=(0.5, 0.75)), ALONE)
    assert [made.fall(progress) for progress in (0, 0.49, 0.5, 0.75, 1)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])


def test_each_layer_learns_at_a_share_of_the_next_ones_rate(data: Path, tmp_path: Path):
    """As in detectron2, relative positions at that of their block."""
    made = run_module.DetectRun.make(config(data, tmp_path / "run", depth=3), ALONE)
    groups = made.build_optimizer().param_groups
    names = {id(one): name for name, one in made.model.named_parameters()}
    rates = {names[id(one)]: group["lr_scale"] for group in groups for one in group["params"]}
    assert rates.keys() == {name for name, one in made.model.named_parameters() if one.requires_grad}
    for name, rate in rates.items():
        if name.startswith(("encoder.patch_embed", "encoder.pos_embed")):
            layers = 4
        elif block := re.search(r"blocks\.(\d)\.", name):
            layers = 3 - int(block[1])
        else:
            layers = 0
        assert rate == pytest.approx(0.7**layers), name


def test_a_step_that_is_not_finite_is_skipped_and_replayed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def infinite(images: torch.Tensor, mean, std) -> torch.Tensor:
        """Of a crop that has a green corner."""
        green = (images[:, 1, :4, :4] == 255).flatten(1).all(dim=1)[:, None, None, None]
        return torch.where(green, torch.inf, normalize(images, mean, std))

    monkeypatch.setattr(run_module, "normalize", infinite)
    shutil.copytree(data, tmp_path / "data")
    file = tmp_path / "data" / "train2017" / "000003.png"
    Image.new("RGB", Image.open(file).size, (0, 255, 0)).save(file)
    detect(config(tmp_path / "data", tmp_path / "run", checkpoint_every=1, jitter=(1.0, 1.0)))
    (skipped,) = (json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines())
    found = emae.replay(run=str(tmp_path / "run"), step=skipped["step"])
    assert found.reproduced and found.module is not None
    assert [Path(one.name).name for one in found.samples if isinstance(one.loss, str)] == ["000003.png"]


def test_what_a_step_takes_is_counted_before_the_first(data: Path, tmp_path: Path):
    made = run_module.DetectRun.make(config(data, tmp_path / "run"), ALONE)
    plain = hollow(made.model, torch.device("meta"))
    step = made.prepare()
    memory = BatchMemory(made.config, ALONE, step.optimizer, plain, step.objective, made.dataset())
    few, many = memory.needed(2), memory.needed(6)
    assert 2**20 < few < many < 2**33


def test_several_seeds(data: Path, tmp_path: Path):
    result = detect(config(data, tmp_path / "run", seeds=2))
    values = [json.loads((tmp_path / "run" / f"seed-{n}" / "results.json").read_text())["box"]["ap"] for n in (0, 1)]
    assert result.box_ap.values == values


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"from_scratch": False, "model": None, "depth": None}, "either --weights PATH or --from scratch"),
        ({"img_size": 72}, r"img_size=\[72, 72\]: must be multiples of 32"),
        ({"jitter": (2.0, 0.5)}, "the first number must be at most the second"),
        ({"data": "/nowhere"}, "data=/nowhere: no such folder"),
        ({"train_images": "/nowhere"}, "train_images=/nowhere: no such folder"),
        ({"train_annotations": "/nowhere.json"}, "train_annotations=/nowhere.json: no such file"),
        ({"lr_drops": (1.5,)}, "lr_drops"),
        ({"proposals": 0}, "proposals=0"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    data: Path, tmp_path: Path, settings: dict, what: str
):
    with pytest.raises(ValueError, match=what):
        detect(dataclasses.replace(config(data, tmp_path / "run"), **settings))
    assert not (tmp_path / "run").exists()


def test_without_the_library_it_is_said_what_to_install(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core", None)
    with pytest.raises(ValueError, match=r"need faster-coco-eval: pip install 'efficient-mae\[detect\]'"):
        detect(config(data, tmp_path / "run"))
