"""`emae study` as a user runs it, at the smoke preset."""

import csv
import json
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.data.sources.choice import ANY
from efficient_mae.engine.logging import read_metrics
from efficient_mae.errors import InputError
from efficient_mae.interop import load_whole
from efficient_mae.study import runs, speeds
from efficient_mae.study.cells import CELLS, Cell
from efficient_mae.study.command import show_study
from efficient_mae.study.presets import PRESETS, Preset
from efficient_mae.study.studies import STUDIES
from tests.tasks.conftest import flags, write_images
from tests.tasks.labelled import write_labelled

from .conftest import Study


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("data"), train=16, test=6)


def test_runs_have_processes_of_their_own_and_fail_alone(tmp_path: Path):
    def run_of(name: str, model: str) -> runs.CellRun:
        command = ("info", ("--model", model, "--depth", "1", "--decoder_depth", "1"))
        return runs.CellRun(name, 0, tmp_path / name, (command,))

    good, bad = run_of("mae-0.75", "mae_vit_tiny_patch16"), run_of("mae-0.85", "mae_vit_tinny_patch16")
    failed = runs.run_all([good, bad], jobs=2)
    assert [*failed] == ["mae-0.85 seed 0"] and "did you mean mae_vit_tiny_patch16?" in failed["mae-0.85 seed 0"]
    # What has no run directory keeps what it says of itself.
    assert json.loads((good.folder / "info" / "results.json").read_text())["cost"]["gmacs"] > 0
    assert good.is_done() and not bad.is_done()


def test_a_table_with_a_failing_cell_resumes(data: Path, tmp_path: Path, study: Study):
    out = tmp_path / "studies"
    settings = {"data": data, "out": out, "only": "gamma-2,gamma-0.4"}
    assert study("fig4", out=out)[0] == 0
    obstacle = out / "cells" / "gamma-0.4" / "seed-0" / "pretrain" / "letter.txt"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("Dear")
    status, result = study("table7", **settings)
    assert status == 1 and [*result["failed"]] == ["gamma-0.4 seed 0"]

    run = out / "cells" / "gamma-2" / "seed-0"
    assert {path.name for path in run.iterdir()} == {
        "pretrain",
        "probe",
        "pretrain.json",
        "probe.json",
        "probe.safetensors",
        "log.txt",
    }
    assert result == json.loads((out / "table7" / "results.json").read_text()) | {"written": str(out / "table7")}
    rows = {row["cell"]: row for row in result["rows"]}
    judged = json.loads((run / "probe" / "results.json").read_text())
    assert (judged["labels"], judged["subsets"], judged["test_images"]) == (32, 2, 18)
    assert [row["width"] for row in judged["encoders"]] == [192]  # the first cell has the others beside it
    assert (
        rows["gamma-2"]["measured"]["probe"]["mean"]
        == judged["encoders"][0]["judgements"]["ridge"]["accuracy"]["mean"]
    )
    assert rows["gamma-0.4"]["measured"] == {} and rows["gamma-0.8"]["paper"]["top1"] == 84.6
    assert {"command", "date", "machine", "preset", "seeds"} <= result.keys()

    obstacle.unlink()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    status, result = study("table7", **settings)
    assert status == 0 and not result["failed"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert "Failed" not in (out / "table7" / "table.md").read_text()
    assert (out / "table7" / "figure.png").stat().st_size > 1000
    with (out / "table7" / "table.csv").open() as file:
        assert {line["cell"] for line in csv.DictReader(file) if line["ridge regression here"]} == {
            "gamma-2",
            "gamma-0.4",
        }

    # As in version control, figures and records stay and weights don't: what is judged is not run again, and of what
    # isn't no other run's weights are judged under its name.
    pretrained = run / "pretrain"
    for path in pretrained.iterdir():
        if path.name != "metrics.jsonl":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert study("table7", **settings)[0] == 0 and [*pretrained.iterdir()] == [pretrained / "metrics.jsonl"]
    (run / "probe.json").unlink()
    (run.parent / "seed-0-old").mkdir()  # not a seed's
    status, result = study("table7", **settings)
    assert status == 1 and [*result["failed"]] == ["gamma-2 seed 0"]
    assert result["failed"]["gamma-2 seed 0"].startswith(f"{run}: its weights were not kept")
    assert [*pretrained.iterdir()] == [pretrained / "metrics.jsonl"]
    shutil.rmtree(run)
    assert study("table7", **settings)[0] == 0 and (pretrained / "encoder.safetensors").is_file()
    # Pictures look at the weights themselves.
    assert study("fig3", data=data, out=out)[0] == 0
    for path in (out / "cells" / "mae-0.90" / "seed-0" / "pretrain").iterdir():
        if path.name != "metrics.jsonl":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    status, refused = study("fig3", data=data, out=out)
    assert status == 2 and "mae-0.90/seed-0: its weights were not kept" in refused["complaints"]


def test_a_directory_that_was_moved_is_known_and_shows_all_it_has(
    data: Path, tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch
):
    settings = {"data": data, "only": "gamma-2"}
    assert study("table7", **settings, out=tmp_path / "s", seeds=2)[0] == 0
    (tmp_path / "s").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "moved" / "cells").rglob("*")}
    status, result = study("table7", **settings, out="moved", device="cpu")  # this preset runs one seed
    assert status == 0 and written == {path: path.stat().st_mtime_ns for path in written}
    row = next(row for row in result["rows"] if row["cell"] == "gamma-2")
    assert result["seeds"] == row["measured"]["seeds"] == [0, 1]
    # Nothing is run, and no data are needed, to write it once more.
    monkeypatch.chdir("moved")
    assert study("table7", **settings, out=".")[0] == 0
    monkeypatch.chdir("..")
    assert written == {path: path.stat().st_mtime_ns for path in written}
    status, again = study("table7", out="moved", only="none", seeds=1)
    assert status == 0 and written == {path: path.stat().st_mtime_ns for path in written}
    assert (again["seeds"], again["data"]) == ([0], str(data))
    assert study("table7", **settings | {"only": "nine"}, out="moved")[0] == 2


def test_methods_are_compared_for_equal_epochs_and_equal_time(
    data: Path, tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch
):
    out, seconds = tmp_path / "s", {"mae-0.75": 10.0, "beit": 4.2}

    def timed(cell: Cell, preset: Preset, place: runs.Place, *_) -> dict[str, float]:
        assert place.out == out and cell.as_long_as is None
        return {"seconds": seconds[preset.directory(cell)], "memory": 0.5}

    monkeypatch.setattr(speeds, "time_epoch", timed)
    arguments = {"data": data, "out": out, "only": "mae,beit,mae-same-time,beit-same-time"}
    status, result = study("table3", **arguments)
    assert status == 0 and not result["failed"], result.get("complaints", "")[-3500:]
    # At this preset's own rate MAE's cell is that of other tables.
    cells = {path.name for path in (out / "cells").iterdir()}
    assert cells == {"mae-0.75", "beit", "tokenizer", "beit-same-time"}
    rows = {row["cell"]: row["measured"] for row in result["rows"] if row["cell"]}
    assert len(rows) == 18 and rows["cae"] == {}
    assert (rows["beit"]["epochs"], rows["beit-same-time"]["epochs"]) == (1, 2.38)
    assert rows["mae"] == rows["mae-same-time"] and rows["beit-same-time"]["minutes"] == 4.2 / 60
    beit, judges = out / "cells" / "beit" / "seed-0", ("finetune", "linear-probe", "knn")
    judged = {judge: json.loads((beit / judge / "results.json").read_text()) for judge in judges}
    assert rows["beit"]["top1"]["mean"] == judged["finetune"]["top1"]
    assert rows["beit"]["linear_probe"]["mean"] == judged["linear-probe"]["top1"]
    assert rows["beit"]["knn_untrained"]["mean"] == judged["knn"]["accuracy"]["untrained"]
    assert judged["knn"]["train_images"] == 32  # the preset's few labels
    assert load_whole(beit / "pretrain").config.vocab_size == 16  # of the tokenizer that was trained for it
    table = (out / "table3" / "table.md").read_text()
    assert "k-NN, raw pixels" in table and "minutes an epoch here" in table

    shutil.rmtree(out / "cells" / "tokenizer" / "seed-0" / "tokenizer")  # nothing needs it any more
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*") if path.is_file()}
    assert study("table3", **arguments)[0] == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}

    # On a day when all takes twice as long, what is new is timed beside the budget, in the seconds that this had.
    held = json.loads((out / "speeds.json").read_text())
    seconds |= {"mae-0.75": 20.0, "simmim": 16.0}
    cell = CELLS["simmim-same-time"]
    place = runs.Place(out, str(data), ANY, None, "cpu")
    assert speeds.measure_speeds([CELLS["beit-same-time"], cell], PRESETS["smoke"], place, jobs=1) == {}
    found = json.loads((out / "speeds.json").read_text())
    assert found.pop("simmim") == {"seconds": 8.0, "memory": 0.5, "rounds": [8.0, 8.0]} and found == held


def test_what_fails_beforehand_stops_only_what_needs_it(
    data: Path, tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch
):
    def timed(cell: Cell, preset: Preset, *_) -> dict[str, float]:
        if preset.directory(cell) == "simmim":
            raise InputError("it was slow")
        return {"seconds": 1.0, "memory": 0.5}

    monkeypatch.setattr(speeds, "time_epoch", timed)
    out = tmp_path / "s"
    stray = out / "cells" / "tokenizer" / "seed-0" / "tokenizer" / "letter.txt"
    assert study("fig4", out=out)[0] == 0
    stray.parent.mkdir(parents=True)
    stray.write_text("Dear")
    status, result = study("table3", data=data, out=out, only="beit,mae,simmim-same-time,mae-same-time")
    assert status == 1 and [*result["failed"]] == ["tokenizer seed 0", "simmim"]
    rows = {row["cell"]: row["measured"] for row in result["rows"] if row["cell"]}
    assert "top1" in rows["mae"] and rows["mae"] == rows["mae-same-time"]
    assert rows["beit"] == rows["simmim-same-time"] == {}


def test_an_error_between_runs_ends_the_study(tmp_path: Path):
    command = ("info", ("--model", "mae_vit_tiny_patch16", "--depth", "1", "--decoder_depth", "1"))
    several = [runs.CellRun("a", seed, tmp_path / f"{seed}", (command,)) for seed in range(4)]

    def full(_: dict[str, str]) -> None:
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        runs.run_all(several, jobs=1, after_seed=full)
    assert several[0].is_done() and not several[-1].is_done()


def test_an_epoch_is_timed_in_a_process_of_its_own(data: Path, tmp_path: Path):
    place = runs.Place(tmp_path, str(data), ANY, None, "cpu")
    begin = time.perf_counter()
    found = speeds.time_epoch(CELLS["simmim"], PRESETS["smoke"], place, tmp_path / "run", jobs=1)
    assert 0 < found["seconds"] < time.perf_counter() - begin
    assert 0.05 < found["memory"] < 8


def test_the_first_steps_of_a_long_epoch_tell_how_long_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(speeds, "_STEPS", 10)
    place = runs.Place(tmp_path, "fashion-mnist-sample", ANY, None, "cpu")
    found = speeds.time_epoch(CELLS["mae-0.75"], PRESETS["smoke"], place, tmp_path / "run", jobs=1)
    rows = [row for row in read_metrics(tmp_path / "run" / "pretrain" / "metrics.jsonl") if "loss" in row]
    assert 10 < len(rows) < 600, "10,000 images in batches of 16 are 625 steps"
    speed = np.median([row["images_per_second"] for row in rows[len(rows) // 2 :] if "images_per_second" in row])
    assert found["seconds"] == pytest.approx(10_000 / speed, rel=1e-4) and found["memory"] > 0.05


def test_rows_are_compared_answer_by_answer_beside_an_untrained_encoder(data: Path, tmp_path: Path, study: Study):
    status, result = study("table7", data=data, out=tmp_path / "s", only="beta-26-without-loss,gamma-2", seeds=2)
    rows = {row["label"]: row for row in result["rows"]}
    assert status == 0 and not result["failed"]
    first, second = rows["gamma 0"], rows["gamma 2"]
    gain = second["measured"]["probe"]["mean"] - first["measured"]["probe"]["mean"]
    assert second["difference"]["mean"] == pytest.approx(gain) and first["difference"] == {}
    assert second["difference"]["low"] <= gain <= second["difference"]["high"]
    for label in ("untrained encoder", "raw pixels"):
        assert 0 < rows[label]["measured"]["probe"]["mean"] <= 1 and "p" in rows[label]["difference"]
    cells = tmp_path / "s" / "cells"
    told = [json.loads((cells / "gamma-2" / f"seed-{seed}" / "probe.json").read_text()) for seed in range(2)]
    assert [one[one.index("--seed") + 1] for one in told] == ["0", "0"], "label subsets are the same for every seed"


def test_figures_2_and_3_look_at_pretraining_alone(data: Path, tmp_path: Path, study: Study):
    status, result = study("fig2", data=data, out=tmp_path / "s", only="mae-0.90", seeds=2)
    assert status == 0
    row = next(row for row in result["rows"] if row["cell"] == "mae-0.90")
    assert len(row["measured"]["slope"]["values"]) == 2 and "top1" not in row["measured"]
    counts = {label: sum(values) for label, values in result["figure"]["counts"].items()}
    assert counts == pytest.approx({"MAE, 0.75": 19, "MAE, 0.85": 22, "MAE, 0.90": 23})  # of 25 patches
    assert not (tmp_path / "s" / "cells" / "mae-0.90" / "seed-0" / "finetune").exists()
    assert "top-1" not in (tmp_path / "s" / "fig2" / "table.md").read_text()
    status, result = study("fig3", data=data, out=tmp_path / "s")
    assert status == 0
    for name in ("fig2", "fig3"):
        with Image.open(tmp_path / "s" / name / "figure.png") as picture:
            assert picture.width > 600


def test_what_data_leave_open_is_chosen_for_all_that_reads_them(data: Path, tmp_path: Path, study: Study):
    shard = tmp_path / "train.tar"
    with tarfile.open(shard, "w") as archive:
        for number, path in enumerate(sorted(data.glob("train/*/*.png"))):
            for name in (f"{number}.seg.png", f"{number}.png"):
                archive.add(path, name)
    spec = f"wds:{shard}"
    assert study("fig2", data=spec, out=tmp_path / "s", only="mae-0.90")[0] == 2
    status, result = study("fig2", data=spec, key="png", out=tmp_path / "s", only="mae-0.90")
    row = next(row for row in result["rows"] if row["cell"] == "mae-0.90")
    assert status == 0 and not result["failed"] and len(row["measured"]["slope"]["values"]) == 1


def test_figure_4_marks_patches_from_easy_to_hard(tmp_path: Path, study: Study):
    status, result = study("fig4", out=tmp_path / "s")
    examples = result["figure"]["examples"]
    distances = [example["p2dist"] for example in examples]
    assert status == 0 and distances == sorted(distances) and len(set(distances)) == len(distances)
    mask = emae.random_masking(200, (5, 5), 0.85, torch.Generator().manual_seed(0))
    hardest = emae.p2dist(mask, patch_size=4)[:, examples[-1]["row"], examples[-1]["column"]]
    assert np.isclose(hardest.numpy(), distances[-1]).any()


def test_table_1_needs_no_data(tmp_path: Path, study: Study):
    status, result = study("table1", out=tmp_path / "s")
    assert status == 0 and len(result["rows"]) == 5
    assert "| mask ratio 0.5 | 35.9 | 36.0 | 27.9 |" in (tmp_path / "s" / "table1" / "table.md").read_text()


def test_several_gpus_are_launched_as_torchrun_does():
    assert runs.launcher(1)[1:] == ["-m", "efficient_mae"]
    together = "-m torch.distributed.run --standalone --nproc_per_node 8 -m efficient_mae"
    assert " ".join(runs.launcher(8)[1:]) == together


def test_list(capsys: pytest.CaptureFixture[str]):
    assert main(["study", "--list", "--preset", "smoke", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    listed = {row["name"]: row for row in result["studies"]}
    assert listed.keys() == STUDIES.keys() and listed["table7"]["cells"][1] == "gamma-0.4"
    assert listed["table4"]["flops"] > listed["table7"]["flops"] > 0 and listed["table4"]["seconds"] > 0
    show_study(emae.study(list=True, preset="smoke"), Console())
    assert "table10" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a study: table1, table2"),
        (["tabel4"], "unknown study 'tabel4'; did you mean table4?"),
        (
            ["table4", "--preset", "gpuu"],
            "preset='gpuu': must be one of smoke, cpu, main, main14, photographs, gpu, paper",
        ),
        (["table4", "--only", "mae-0.8", "--out", "o"], "only='mae-0.8': no cell of table4; did you mean mae-0.85?"),
        (["table1", "--only", "mae-0.85", "--out", "o"], "no cell of table1; its cells: none"),
        (["table4", "--out", "o"], "data must be given: table4 trains on it"),
        (["table4", "--data", "fashion-mnist-sample"], "out must be given"),
        (["table4", "--data", "/nowhere", "--out", "o"], "/nowhere"),
        (["table4", "--seeds", "0"], "seeds=0: must be at least 1"),
        (["table4", "--jobs", "0"], "jobs=0: must be at least 1"),
    ],
)
def test_what_the_user_can_mend(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    assert main(["study", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_unlabelled_data_is_refused_by_what_fine_tunes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    images = write_images(tmp_path / "images", 20)
    assert main(["study", "table4", "--preset", "smoke", *flags(data=images, out=tmp_path / "s")]) == 2
    error = capsys.readouterr().err
    assert "has no labels" in error and len(error.splitlines()) == 1 and not (tmp_path / "s").exists()


def test_directories_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "s"
    assert main(["study", "fig4", "--preset", "smoke", *flags(out=out)]) == 0
    capsys.readouterr()
    assert main(["study", "fig4", "--preset", "cpu", *flags(out=out)]) == 2
    assert "holds studies of preset smoke, not cpu" in capsys.readouterr().err
    (tmp_path / "letter.txt").write_text("Dear")
    assert main(["study", "fig4", *flags(out=tmp_path)]) == 2
    assert "neither empty nor a directory of studies" in capsys.readouterr().err
