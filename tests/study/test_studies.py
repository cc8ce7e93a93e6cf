"""What the tables are made of, and their costs against the paper's."""

from pathlib import Path

import pytest

from efficient_mae.data.sources.choice import ANY
from efficient_mae.study.cells import CELLS
from efficient_mae.study.presets import PRESETS, model_config
from efficient_mae.study.results import collect_rows, collect_table_1
from efficient_mae.study.runs import plan_runs
from efficient_mae.study.studies import STUDIES
from efficient_mae.tasks.classify.finetune import FinetuneConfig
from efficient_mae.tasks.pretrain_config import PretrainConfig

SETTINGS = [
    (preset, cell) for preset in PRESETS.values() for cell in CELLS.values() if preset.is_paper or not cell.paper_only
]


def test_every_table_and_figure_is_there():
    assert {*STUDIES} == {f"table{number}" for number in range(1, 10)} | {f"fig{number}" for number in range(1, 5)}


@pytest.mark.parametrize("name", ["table3", "table4", "table5"])
def test_counted_costs_are_the_papers(name: str, tmp_path: Path):
    compared = 0
    for row in collect_rows(STUDIES[name], PRESETS["cpu"], tmp_path, range(3)):
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
    FinetuneConfig(data="d", out="o", weights="w", **preset.finetuning(cell))
    config = model_config(settings)
    assert {name: getattr(config, name) for name in cell.settings} == cell.settings


def test_cells_with_the_same_settings_share_their_runs(tmp_path: Path):
    options = {"seeds": [0, 1], "data": "d", "choice": ANY, "labelled": "d", "out": tmp_path, "device": "cpu"}
    cells = STUDIES["table3"].cells(with_paper_only=False)
    folders = {run.folder.relative_to(tmp_path) for run in plan_runs(cells, PRESETS["cpu"], **options)}
    names = ("mae-0.75", "mae-large16-1600", "efficient-mae-0.85", "efficient-mae-large16-1600")
    assert folders == {Path("cells", name, f"seed-{seed}") for name in names for seed in (0, 1)}
    assert len(plan_runs(STUDIES["table3"].cells(True), PRESETS["paper"], **options)) == 2 * 8
    twice = PRESETS["cpu"].pretraining(CELLS["mae-large16-1600"])["epochs"]
    assert twice == 2 * PRESETS["cpu"].pretraining(CELLS["mae-0.75"])["epochs"]


def test_tables_4_5_and_7_share_cells():
    names = {cell.name for name in ("table4", "table5", "table7") for cell in STUDIES[name].cells(False)}
    assert len(names) == 9 + 3 + 4


def test_the_papers_preset_is_its_recipes():
    settings = PRESETS["paper"].pretraining(CELLS["efficient-mae-0.95"])
    assert (settings["model"], settings["epochs"], settings["batch_size"]) == ("mae_vit_large_patch16", 200, 1024)
    assert (settings["mask_ratio"], settings["gamma"], settings["beta"]) == (0.95, 0.6, 26.0)
    assert PRESETS["paper"].finetuning(CELLS["mae-base16-1600"])["epochs"] == 100
