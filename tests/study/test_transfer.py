"""Table 10: encoders pre-trained, and not, on scenes, then carried to segmentation and detection."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy.stats import ttest_rel

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.data.sources.choice import ANY
from efficient_mae.study.cells import CELLS
from efficient_mae.study.costs import training_flops
from efficient_mae.study.presets import PRESETS
from efficient_mae.study.results.collect import collect_rows
from efficient_mae.study.results.transferred import Gain, add_differences, gains_in_words
from efficient_mae.study.runs import Place, plan_runs
from efficient_mae.study.studies import STUDIES
from efficient_mae.study.transfer import SIZED, open_transfer
from efficient_mae.tasks.detect.config import DetectConfig
from efficient_mae.tasks.segment.config import SegmentConfig
from tests.tasks.conftest import flags, write_images

from .conftest import Study

SCRATCH, MAE, OURS = "transfer-scratch", "transfer-mae", "transfer-efficient-mae"
FIGURES = {
    "miou": ("segment", "miou"), "macc": ("segment", "macc"), "box_ap": ("detect", "box", "ap"),
    "mask_ap": ("detect", "mask", "ap"),
}  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "scenes"
    emae.scenes(out=str(out), train=8, val=2, size=32, objects=(1, 3))
    return out


def told(cell: Path, judge: str, *keys: str) -> float:
    found = json.loads((cell / "seed-0" / judge / "results.json").read_text())
    for key in keys:
        found = found[key]
    return found


def test_the_same_model_is_judged_pretrained_and_from_scratch(scenes: Path, tmp_path: Path, study: Study):
    out = tmp_path / "s"
    status, result = study("table10", data=scenes, out=out)
    assert status == 0 and not result["failed"], result.get("complaints", "")[-3500:]
    rows = {row["cell"]: row for row in result["rows"]}
    assert [*rows] == [SCRATCH, MAE, OURS] and rows[OURS]["paper"]["box_ap"] == 50.0
    assert not rows[SCRATCH]["paper"] and "differences" not in rows[SCRATCH]
    cells = {name: out / "cells" / name for name in rows}
    for name, (judge, *keys) in FIGURES.items():
        scratch = told(cells[SCRATCH], judge, *keys)
        for cell, folder in cells.items():
            figure = told(folder, judge, *keys)
            assert rows[cell]["measured"][name] == {"mean": figure, "values": [figure]}
            if cell != SCRATCH:
                assert rows[cell]["differences"][name]["mean"] == pytest.approx(figure - scratch)
    for judge, data in (("segment", "ade20k"), ("detect", "coco")):
        runs = {cell: folder / "seed-0" / judge for cell, folder in cells.items()}
        settings = {cell: yaml.safe_load((run / "config.yaml").read_text()) for cell, run in runs.items()}
        assert settings[SCRATCH]["weights"] == str(cells[SCRATCH] / "seed-0" / "untrained.safetensors")
        assert settings[MAE]["weights"] == str(cells[MAE] / "seed-0" / "pretrain")
        start = {"weights", "out"}
        shared = [{key: one[key] for key in one if key not in start} for one in settings.values()]
        assert shared[0] == shared[1] == shared[2] and shared[0]["data"] == str(scenes / data)
        shapes = [{name: value.shape for name, value in emae.load(run).state_dict().items()} for run in runs.values()]
        assert shapes[0] == shapes[1] == shapes[2] and len(shapes[0]) > 10
    assert not (cells[SCRATCH] / "seed-0" / "pretrain").exists()
    pretraining = yaml.safe_load((cells[OURS] / "seed-0" / "pretrain" / "config.yaml").read_text())
    assert pretraining["data"] == str(scenes / "coco" / "train2017"), "no held-out image is among them"
    table = (out / "table10" / "table.md").read_text()
    assert "box AP, difference to from scratch" in table and "ADE20K and COCO, with ViT-B/16" in table
    assert "Fashion" not in table and (out / "table10" / "figure.png").stat().st_size > 1000
    with (out / "table10" / "table.csv").open() as file:
        assert [line["mIoU, paper (%)"] for line in csv.DictReader(file)] == ["", "48.1", "48.0"]

    before = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*") if path.is_file()}
    assert study("table10", data=scenes, out=out)[0] == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}


def collected(out: Path, miou: dict[str, list[float]], macc: float | None) -> tuple[list[dict[str, Any]], list[Gain]]:
    """Rows and gains of runs with this mean IoU by cell and seed, and such a part of it as mean accuracy."""
    preset, table = PRESETS["cpu"], STUDIES["table10"]
    for cell, values in miou.items():
        for seed, value in enumerate(values):
            run = out / "cells" / cell / f"seed-{seed}"
            (run / "segment").mkdir(parents=True)
            (run / "pretrain").mkdir()
            judged = {"miou": value, "macc": macc and macc * value}
            (run / "segment" / "results.json").write_text(json.dumps(judged))
            (run / "pretrain" / "metrics.jsonl").write_text('{"epoch": 1.0, "loss": 0.5}')
            for command in ("segment",) if cell == SCRATCH else ("pretrain", "segment"):
                (run / f"{command}.json").write_text("[]")
    rows = collect_rows(table, preset, out, range(3))
    return rows, add_differences(rows, table, preset, out, range(3))


def test_differences_are_taken_seed_by_seed_from_scratch(tmp_path: Path):
    miou = {SCRATCH: [0.25, 0.5], MAE: [0.5, 0.625], OURS: [0.75]}
    (first, mae, ours), gains = collected(tmp_path, miou, macc=2 / 3)
    assert first["measured"]["seeds"] == [0, 1] and "loss" not in first["measured"] and "differences" not in first
    assert mae["differences"]["miou"]["values"] == [0.25, 0.125] and mae["measured"]["loss"]["mean"] == 0.5
    # Student's t with 1 degree of freedom: 12.706 x 0.125 / 2.
    assert mae["differences"]["miou"]["half_width"] == pytest.approx(0.794, abs=1e-3)
    assert ours["differences"]["macc"]["mean"] == pytest.approx(1 / 3) and "box_ap" not in ours["differences"]
    # Of one seed nothing can be told. Both figures have the same p, 0.2, as one is two thirds of the other.
    assert [(gain.row, gain.than, gain.figure) for gain in gains] == [
        ("MAE, 0.75", "from scratch", "miou"),
        ("MAE, 0.75", "from scratch", "macc"),
    ]
    p = ttest_rel(miou[MAE], miou[SCRATCH]).pvalue
    assert [gain.p for gain in gains] == pytest.approx([p, p])
    assert [gain.p_holm for gain in gains] == pytest.approx([2 * p, 2 * p])


def test_gains_over_the_first_row_are_corrected_and_others_told(tmp_path: Path):
    miou = {SCRATCH: [0.1, 0.2, 0.1], MAE: [0.2, 0.35, 0.2], OURS: [0.3, 0.35, 0.5]}
    _, gains = collected(tmp_path, miou, macc=None)
    p = [ttest_rel(miou[one], miou[other]).pvalue for one, other in ((MAE, SCRATCH), (OURS, SCRATCH), (OURS, MAE))]
    assert [gain.p for gain in gains] == pytest.approx(p)
    assert p[0] < p[1] and [gain.p_holm for gain in gains] == [pytest.approx(2 * p[0]), pytest.approx(p[1]), None]
    told = gains_in_words(gains)
    assert "| Efficient MAE, 0.85 less MAE, 0.75 | mIoU | +13.33 (-" in told and "for the 2 differences" in told


def test_no_difference_at_all_is_no_surprise(tmp_path: Path):
    (_, mae, _), gains = collected(tmp_path, {cell: [0.25, 0.5] for cell in (SCRATCH, MAE, OURS)}, macc=None)
    assert mae["differences"]["miou"]["mean"] == 0
    assert [(gain.p, gain.p_holm) for gain in gains] == [(1, 1), (1, 1), (1, None)]


def test_settings_are_those_of_the_commands():
    for preset in (PRESETS[name] for name in SIZED):
        for cell in STUDIES["table10"].cells(preset.is_paper):
            segment, detect = (preset.settings(judge, cell) for judge in ("segment", "detect"))
            assert SegmentConfig(
                data="d", out="o", weights="w", **segment
            ).reduce_zero_label  # as scenes and ADE20K have it
            assert DetectConfig(data="d", out="o", weights="w", **detect).img_size


def test_the_papers_preset_takes_table_3s_encoders_to_the_published_recipes(tmp_path: Path):
    place = Place(tmp_path, "i", ANY, "d", "cpu")
    preset, table = PRESETS["paper"], STUDIES["table10"]
    scratch, mae, ours = plan_runs(table.cells(paper=True), preset, [0], table.judges, place)
    assert [run.folder.parent.name for run in (mae, ours)] == ["mae-base16-1600", "efficient-mae-base16-800"]
    (first, segment), (second, detect) = scratch.commands
    assert (first, second) == ("segment", "detect")
    assert scratch.untrained is not None and scratch.untrained["model"] == "mae_vit_base_patch16"
    assert f"--weights {scratch.folder / 'untrained.safetensors'}" in " ".join(segment)
    assert "--data d/ade20k" in " ".join(segment) and "--data d/coco" in " ".join(detect)
    assert "--img_size 1024" in " ".join(detect) and "--relative_positions true" in " ".join(segment)


def test_costs_are_those_counted_at_the_published_sizes():
    steps = Path(__file__).parents[2] / "benchmarks" / "results" / "transfer_steps.json"
    counted = json.loads(steps.read_text())["counted"]
    preset, cell = PRESETS["paper"], CELLS["scratch-base16"]
    for judge, images in (("segment", 20_210), ("detect", 117_266)):
        epochs = preset.settings(judge, cell)["epochs"]
        gmacs = training_flops(preset, cell, 1000, judges=[judge]) / 6e9 / images / epochs
        assert gmacs == pytest.approx(counted[f"{judge} ViT-B/16"]["gmacs"], rel=0.02)


def test_folders_of_the_papers_preset(scenes: Path, tmp_path: Path):
    for name in ("ade20k", "coco"):
        (tmp_path / name).symlink_to(scenes / name)
    judges = {"segment": {"reduce_zero_label": True}, "detect": {}}
    with pytest.raises(ValueError, match=r"no .*imagenet; table10 takes a folder that holds ade20k, coco, imagenet"):
        open_transfer(str(tmp_path), ANY, judges, is_paper=True)
    write_images(tmp_path / "imagenet", 4)
    assert open_transfer(str(tmp_path), ANY, judges, is_paper=True) == str(tmp_path / "imagenet")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "ade20k; table10 takes a folder that holds what emae scenes writes"),
        ({"preset": "gpu"}, "preset=gpu: table10 has no sizes for it; it has for smoke, cpu, paper"),
        ({"only": "transfer-swin"}, "no cell of table10"),
    ],
)
def test_what_the_user_can_mend(given: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    images, out = write_images(tmp_path / "images", 4), tmp_path / "s"
    assert main(["study", "table10", *flags(**{"preset": "smoke", "data": images, "out": out} | given)]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1 and not out.exists()


def test_damaged_annotations_are_named_before_anything_is_run(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "ade20k").symlink_to(scenes / "ade20k")
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "annotations" / "instances_train2017.json").write_text('{"images": [')
    assert main(["study", "table10", "--preset", "smoke", *flags(data=tmp_path, out=tmp_path / "s")]) == 2
    error = capsys.readouterr().err
    assert "instances_" in error and len(error.splitlines()) == 1 and not (tmp_path / "s").exists()
