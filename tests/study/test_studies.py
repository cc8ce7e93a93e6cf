"""What the tables are made of, and their costs against the paper's."""

import json
from pathlib import Path

import pytest

from efficient_mae.data.sources.choice import ANY
from efficient_mae.methods import METHODS
from efficient_mae.study.cells import CELLS
from efficient_mae.study.presets import PRESETS, Preset, pretrained_config
from efficient_mae.study.results.collect import collect_rows, collect_table_1
from efficient_mae.study.runs import Place, plan_runs
from efficient_mae.study.speeds import settle_length
from efficient_mae.study.studies import STUDIES
from efficient_mae.study.transfer import SIZED
from efficient_mae.tasks.classify.finetune import FinetuneConfig
from efficient_mae.tasks.classify.linear_probe import LinearProbeConfig
from efficient_mae.tasks.classify.probe.command import ProbeConfig
from efficient_mae.tasks.pretrain_config import PretrainConfig
from efficient_mae.tasks.tokenizer import TokenizerConfig

ROOT = Path(__file__).parents[2]
SETTINGS = [
    (preset, cell)
    for preset in PRESETS.values()
    for cell in CELLS.values()
    if cell.paper in (None, preset.is_paper)
    and cell.as_long_as is None
    and (preset.name in SIZED or not cell.transferred)
]


def test_every_table_and_figure_is_there():
    published = {f"table{number}" for number in range(1, 11)} | {f"fig{number}" for number in range(1, 5)}
    assert {*STUDIES} == published | {"main", "cost"}


@pytest.mark.parametrize("name", ["table3", "table4", "table5"])
def test_counted_costs_are_the_papers(name: str, tmp_path: Path):
    compared = 0
    for row in collect_rows(STUDIES[name], PRESETS["paper"], tmp_path, range(3)):
        close = {"gflops": {"rel": 0.015}, "patches": {"abs": 1.0}}
        for cost, value in row["computed"].items():
            if cost in row["paper"]:
                assert value == pytest.approx(row["paper"][cost], **close[cost]), (row["label"], cost)
                compared += 1
    assert compared >= 5


def test_table_1_is_the_papers():
    rows = collect_table_1()
    assert [row["settings"]["mask_ratio"] for row in rows] == [0, 0.01, 0.25, 0.5, 0.75]
    for row in rows:
        assert row["computed"]["gflops"] == pytest.approx(row["paper"]["gflops"], rel=0.015)


@pytest.mark.parametrize(("preset", "cell"), SETTINGS, ids=[f"{p.name}-{c.name}" for p, c in SETTINGS])
def test_settings_are_those_of_the_commands(preset, cell):
    settings = preset.pretraining(cell)
    PretrainConfig(data="d", out="o", **settings)
    FinetuneConfig(data="d", out="o", weights="w", **preset.settings("finetune", cell))
    ProbeConfig(data="d", weights="w", **preset.settings("probe", cell))
    LinearProbeConfig(data="d", out="o", weights="w", **preset.settings("linear-probe", cell))
    for command in cell.made.values():
        assert command == "tokenizer"
        TokenizerConfig(data="d", out="o", **preset.settings(command, cell))
    config = pretrained_config(settings)
    assert {name: getattr(config, name) for name in cell.settings} == cell.settings


def test_cells_with_the_same_settings_share_their_runs(tmp_path: Path):
    place = Place(tmp_path, "d", ANY, "d", "cpu")
    names = {"mae-0.85", "beta-none", "efficient-mae-0.85", "decoder-1"}
    runs = plan_runs([CELLS[name] for name in names], PRESETS["cpu"], [0, 1], ["finetune"], place)
    folders = {run.folder.relative_to(tmp_path) for run in runs}
    alike = names - {"decoder-1"}  # as deep as the preset's
    assert folders == {Path("cells", name, f"seed-{seed}") for name in alike for seed in (0, 1)}
    published = STUDIES["table3"].cells(paper=True)
    assert len(plan_runs(published, PRESETS["paper"], [0, 1], [], place)) == 2 * 8


def test_methods_are_compared_with_the_same_encoder():
    by_epochs = [cell for cell in STUDIES["table3"].cells(paper=False) if cell.as_long_as is None]
    ours = {name for name, method in METHODS.items() if method.__module__.startswith("efficient_mae.")}
    assert {cell.method for cell in by_epochs} == ours
    assert len({PRESETS["cpu"].pretraining(cell)["base_lr"] for cell in by_epochs}) == 1
    for preset in PRESETS.values():
        if not preset.is_paper:
            sizes = ("embed_dim", "depth", "num_heads", "patch_size", "img_size", "in_chans")
            configs = [pretrained_config(preset.pretraining(cell)) for cell in by_epochs]
            assert len({tuple(getattr(config, name) for name in sizes) for config in configs}) == 1


def test_each_method_of_the_main_study_has_the_rate_that_was_best_on_the_pilots_images():
    lines = [json.loads(line) for line in (ROOT / "benchmarks" / "results" / "rates.jsonl").read_text().splitlines()]
    for method in ("simmim", "maskfeat", "beit", "cae"):
        found = {line["base_lr"]: line["accuracy"] for line in lines if line["method"] == method}
        best = PRESETS["main"].pretraining(CELLS[f"{method}-same-time"])["base_lr"]
        assert best == max(found, key=found.__getitem__)
        assert min(found) < best < max(found)


def test_cells_of_equal_time_have_the_epochs_that_fit_it(tmp_path: Path):
    preset, slow, quick = PRESETS["cpu"], CELLS["simmim-same-time"], CELLS["cross-same-time"]
    assert settle_length(slow, preset, tmp_path) is None
    seconds = {"mae": 10.0, "simmim": 19.0, "cross": 8.1}
    (tmp_path / "speeds.json").write_text(json.dumps({name: {"seconds": one} for name, one in seconds.items()}))
    budget = preset.pretraining(CELLS["mae"])
    for cell, name in ((slow, "simmim"), (quick, "cross")):
        settled = settle_length(cell, preset, tmp_path)
        assert settled is not None and preset.directory(settled) == cell.name
        epochs = round(budget["epochs"] * 10 / seconds[name])
        assert isinstance(settled.settings["epochs"], int) and settled.settings["epochs"] == epochs
        # As much of it is warm-up as of the budget; longer runs have no longer one.
        warmup = preset.pretraining(settled)["warmup_epochs"]
        assert warmup == budget["warmup_epochs"] * min(1, epochs / budget["epochs"])
    same = settle_length(CELLS["mae-same-time"], preset, tmp_path)
    assert same is not None and preset.directory(same) == "mae"
    # Where methods are compared at the preset's own rate, those of two studies are the same runs.
    for name in ("mae-0.75", "cross"):
        seconds[name] = seconds.get(name, seconds["mae"])
    (tmp_path / "speeds.json").write_text(json.dumps({name: {"seconds": one} for name, one in seconds.items()}))
    main = PRESETS["main"]
    both = [settle_length(CELLS[f"cross{which}-same-time"], main, tmp_path) for which in ("", "-0.85")]
    assert {one and main.directory(one) for one in both} == {"cross-0.85-same-time"}


def test_a_whole_epoch_that_is_far_off_is_not_taken_unless_it_was_run(tmp_path: Path):
    preset, cell = PRESETS["cpu"], CELLS["beit-same-time"]
    (tmp_path / "speeds.json").write_text(json.dumps({"mae": {"seconds": 10}, "beit": {"seconds": 27}}))
    settled = settle_length(cell, preset, tmp_path)
    assert settled is not None and preset.directory(settled) == cell.name
    assert settled.settings | {"epochs": 1.48, "warmup_epochs": 0.185} == settled.settings
    record = tmp_path / "cells" / cell.name / "seed-1" / "pretrain.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps(["--seed", "1", "--epochs", "1", "--warmup_epochs", "0.5"]))
    settled = settle_length(cell, preset, tmp_path)
    assert settled is not None and preset.directory(settled) == cell.name
    assert settled.settings | {"epochs": 1, "warmup_epochs": 0.5} == settled.settings


def test_the_committed_lengths_of_the_main_study_stay():
    """They were whole epochs, as said in advance."""
    out, preset = ROOT / "studies" / "results" / "main", PRESETS["main"]
    lengths = {}
    for cell in STUDIES["cost"].cells(paper=False):
        if settled := settle_length(cell, preset, out):
            lengths[preset.directory(settled)] = preset.pretraining(settled)["epochs"]
    stay = {
        "mae-0.75": 3, "efficient-mae-0.85": 3, "efficient-mae-0.85-same-cost": 4, "cross": 3,
        "cross-0.85-same-cost": 5, "cross-0.85-same-time": 4,
    }  # fmt: skip
    assert lengths | stay == lengths


def test_a_preset_asks_the_judges_that_it_has_settings_for():
    judges = {preset.name: preset.judges_of(STUDIES["table3"]) for preset in PRESETS.values()}
    assert judges["main"] == judges["main14"] == ("probe",)
    assert judges["cpu"] == judges["gpu"] == ("probe", "finetune", "linear-probe", "knn")
    assert judges["paper"] == ("finetune", "linear-probe", "knn")
    assert PRESETS["main"].judges_of(STUDIES["main"]) == ("probe", "probe-token", "probe-quarters", "probe-blocks")
    assert PRESETS["paper"].judges_of(STUDIES["table4"]) == ("finetune",)
    assert PRESETS["cpu"].judges_of(STUDIES["table10"]) == ("segment", "detect")
    assert PRESETS["photographs"].judges_of(STUDIES["fig2"]) == ()


def test_cells_of_equal_cost_have_the_epochs_that_its_multiplications_buy(tmp_path: Path):
    """At the paper's size Table 3's own figures say how many: 200 x 20.8 / 14.1."""
    settled = settle_length(CELLS["efficient-mae-0.85-same-cost"], PRESETS["paper"], tmp_path)
    assert settled is not None and settled.settings["epochs"] == pytest.approx(200 * 20.8 / 14.1, rel=0.015)
    assert settle_length(CELLS["cross-0.85-same-time"], PRESETS["cpu"], tmp_path) is None


@pytest.mark.parametrize("preset", [one for one in PRESETS.values() if not one.is_paper], ids=lambda one: one.name)
def test_ten_classes_can_be_probed(preset: Preset):
    """As the bundled images have: the largest class of a subset has an image for each fold."""
    settings = ProbeConfig(data="d", weights="w", **preset.settings("probe", CELLS["mae-0.75"]))
    assert settings.labels is not None and settings.labels / 10 >= settings.folds


def test_tables_4_5_and_7_share_cells():
    names = {cell.name for name in ("table4", "table5", "table7") for cell in STUDIES[name].cells(paper=False)}
    assert len(names) == 9 + 3 + 4


def test_the_papers_preset_is_its_recipes():
    settings = PRESETS["paper"].pretraining(CELLS["efficient-mae-0.95"])
    assert (settings["model"], settings["epochs"], settings["batch_size"]) == ("mae_vit_large_patch16", 200, 1024)
    assert (settings["mask_ratio"], settings["gamma"], settings["beta"]) == (0.95, 0.6, 26.0)
    assert PRESETS["paper"].settings("finetune", CELLS["mae-base16-1600"])["epochs"] == 100
