"""What the probe says of methods that are compared, each beside its own untrained encoder."""

import json
from pathlib import Path

import numpy as np
import pytest

from efficient_mae.study.cells import CELLS
from efficient_mae.study.presets import PRESETS
from efficient_mae.study.probing import has_baselines
from efficient_mae.study.results.collect import collect_rows
from efficient_mae.study.results.probed import read_comparison
from efficient_mae.study.runs import flags
from efficient_mae.study.speeds import settle_length
from efficient_mae.study.studies import STUDIES
from efficient_mae.tasks.classify.probe.record import Record

TABLE_3, SMOKE, SEEDS = STUDIES["table3"], PRESETS["smoke"], range(3)
# Accuracies of the encoder, untrained, and of raw pixels.
CHANCES = {"mae": (0.8, 0.5, 0.6), "maskfeat": (0.7, 0.5, 0.6), "simmim": (0.6, 0.3, 0.6), "cross": (0.75,)}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, chances in CHANCES.items():
        assert has_baselines(CELLS[name], SMOKE) == (len(chances) > 1)
        for seed in SEEDS:
            folder = tmp_path / "cells" / SMOKE.directory(CELLS[name]) / f"seed-{seed}"
            (folder / "pretrain").mkdir(parents=True)
            (folder / "pretrain" / "metrics.jsonl").write_text('{"loss": 0.5, "epoch": 1}\n')
            (folder / "probe").mkdir()
            (folder / "pretrain.json").write_text(json.dumps(flags(SMOKE.pretraining(CELLS[name]))))
            (folder / "probe.json").write_text("[]")
            right = {f"row {row}": rng.random((1, 2, 400)) < chance for row, chance in enumerate(chances)}
            record = Record("the same", {row: {"ridge": one} for row, one in right.items()})
            record.write(str(folder / "probe.safetensors"))
            judged = {"ridge": 0.0, "logistic": 1.0, "knn": 2.0}  # as a row's own: tens say which it is
            rows = [
                {"judgements": {judge: {"accuracy": {"mean": 10 * row + n}} for judge, n in judged.items()}}
                for row in range(len(chances))
            ]
            (folder / "probe" / "results.json").write_text(json.dumps({"encoders": rows}))
    return tmp_path


def test_each_method_stands_beside_its_own_untrained_encoder(out: Path):
    probed = read_comparison(TABLE_3, SMOKE, out, SEEDS)
    rows = collect_rows(TABLE_3, SMOKE, out, SEEDS, probed)
    beside = [row for row in rows if row["cell"] is None]
    names = ["untrained encoder", "untrained encoder of SimMIM (ViT)", "untrained encoder of MaskFeat", "raw pixels"]
    assert [row["label"] for row in beside] == names
    for row, chance in zip(beside, (0.5, 0.3, 0.5, 0.6), strict=True):
        assert row["measured"]["probe"]["mean"] == pytest.approx(chance, abs=0.05)
        assert row["difference"]["mean"] == pytest.approx(chance - 0.8, abs=0.06)
        ten = 20 if row["label"] == "raw pixels" else 10
        assert (row["measured"]["logistic"]["mean"], row["measured"]["centred_knn"]["mean"]) == (ten + 1, ten + 2)
    trained = {row["cell"]: row["measured"]["probe"]["mean"] for row in rows if row["measured"] and row["cell"]}
    for name, (chance, *_) in CHANCES.items():
        assert trained[name] == pytest.approx(chance, abs=0.05)


def test_an_untrained_encoder_that_was_judged_beside_runs_of_equal_time_alone_has_all_its_figures(out: Path):
    seconds = {"mae": 10, "simmim": 37, "maskfeat": 15, "cross": 9}
    speeds = {SMOKE.directory(CELLS[name]): {"seconds": taken, "memory": 1} for name, taken in seconds.items()}
    (out / "speeds.json").write_text(json.dumps(speeds))
    longer = settle_length(CELLS["simmim-same-time"], SMOKE, out)
    assert longer is not None
    (out / "cells" / "simmim").rename(folder := out / "cells" / SMOKE.directory(longer))
    for seed in SEEDS:
        (folder / f"seed-{seed}" / "pretrain.json").write_text(json.dumps(flags(longer.settings)))
    probed = read_comparison(TABLE_3, SMOKE, out, SEEDS)
    rows = {row["label"]: row for row in collect_rows(TABLE_3, SMOKE, out, SEEDS, probed)}
    assert not rows["SimMIM (ViT)"]["measured"]
    measured = rows["untrained encoder of SimMIM (ViT)"]["measured"]
    assert (measured["logistic"]["mean"], measured["centred_knn"]["mean"]) == (11, 12)


def test_a_table_of_one_method_has_one_untrained_encoder(out: Path):
    labels = [row["label"] for row in collect_rows(STUDIES["table4"], SMOKE, out, SEEDS)]
    assert "untrained encoder" not in labels, "none was read"
    probed = read_comparison(STUDIES["table4"], SMOKE, out, SEEDS)
    labels = [row["label"] for row in collect_rows(STUDIES["table4"], SMOKE, out, SEEDS, probed)]
    assert labels[-2:] == ["untrained encoder", "raw pixels"] and len(labels) == 9 + 2
