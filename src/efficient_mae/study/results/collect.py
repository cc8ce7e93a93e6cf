"""What came of a study's runs, row by row, beside what the paper reports."""

import json
from collections import ChainMap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np

from efficient_mae.bench.flops import encoder_gmacs
from efficient_mae.engine.storage.run_directory import METRICS
from efficient_mae.study.cells import ABLATION_RECIPE, Cell
from efficient_mae.study.costs import forward_gmacs, paper_config, predicted_patches
from efficient_mae.study.presets import Preset, pretrained_config, recipe_settings
from efficient_mae.study.probing import has_baselines
from efficient_mae.study.results.probed import BASELINES, Comparison, baselines_of
from efficient_mae.study.speeds import settle_length, speed_of
from efficient_mae.study.studies import POOLED, PROBE, TABLE_1, Study
from efficient_mae.tasks.classify.probe.statistics import Estimate
from efficient_mae.tasks.intervals import mean_and_interval
from efficient_mae.tasks.seeds import RESULTS


def collect_rows(
    study: Study, preset: Preset, out: Path, seeds: Sequence[int], probed: Comparison | None = None
) -> list[dict[str, Any]]:
    """The rows of a table, with what its runs have measured so far.

    Args:
        out: directory that holds the cells.
        seeds: whose runs are read, as far as they are done.
        probed: what the probe said of them; None of nothing.

    Returns:
        For each row its `label`, `cell` and `settings`; `measured`, by name `mean`, `values` and, of two seeds and
        more, the 95 % interval, and `gmacs` of the model that ran, where methods are timed also its `epochs`,
        `minutes` an epoch and `memory` (GB); `computed` costs of the paper's own model; `paper`, its figures.
        `difference` is this row's accuracy less the first row's, where that is there: by the probe's single answers
        where there are such, else seed by seed. The last rows are what encoders are held against, as far as it was
        probed.
    """
    rows: list[dict[str, Any]] = []
    probed, judges = probed or Comparison({}), preset.judges_of(study)
    cells = study.cells(preset.is_paper)
    first = cells[0].name if cells else ""
    reference = dict[int, float]()
    is_timed = any(cell.as_long_as is not None for cell in cells)
    for row in study.rows_of(preset.is_paper):
        found: dict[str, Any] = {"label": row.label, "cell": None, "settings": {}, "measured": {}, "computed": {}}
        if row.cell is not None:
            measured, accuracies = _measured(row.cell, preset, out, seeds, judges)
            if not is_timed:  # though cells that it shares with a study that is
                measured = {name: value for name, value in measured.items() if name not in _OF_TIME}
            gains = gains_by_seed(accuracies, reference)
            found |= {
                "cell": row.cell.name,
                "settings": dict(row.cell.settings),
                "measured": measured,
                "difference": summary(gains) if gains else {},
                "computed": _computed(study, row.cell) if row in study.rows else {},
            }
            if row.cell.name == first:
                reference = accuracies
            if row.cell.name in probed.answers:
                found["measured"][PROBE] = _plain(probed.accuracy(row.cell.name))
                if row.cell.name != first and probed.seeds(first, row.cell.name):
                    found["difference"] = _plain(probed.difference(first, row.cell.name))
        rows.append(found | {"paper": dict(row.paper)})
    return rows + _baseline_rows(study, preset, out, probed, first)


def _baseline_rows(study: Study, preset: Preset, out: Path, probed: Comparison, first: str) -> list[dict[str, Any]]:
    """Rows of what encoders are held against, which are held against the first."""
    judges = preset.judges_of(study)
    settled = [one for cell in study.cells(preset.is_paper) if (one := settle_length(cell, preset, out)) is not None]
    beside: dict[str, tuple[int, list[Path]]] = {}
    for place in range(len(BASELINES)):  # raw pixels last
        for cell in settled:
            if has_baselines(cell, preset):
                _, folders = beside.setdefault(baselines_of(cell, study, preset)[place], (1 + place, []))
                folders.append(out / "cells" / preset.directory(cell))
    rows = []
    for label, (place, folders) in beside.items():
        if label not in probed.answers:
            continue
        seeds = probed.seeds(label)
        measured: dict[str, Any] = {"seeds": list(seeds), PROBE: _plain(probed.accuracy(label))}
        judged = [[_probed_figures(folder / f"seed-{seed}", judges, place) for folder in folders] for seed in seeds]
        measured |= _means([dict(ChainMap(*of_seed)) for of_seed in judged])  # the first's where several have one
        difference = _plain(probed.difference(first, label)) if probed.seeds(first, label) else {}
        row = {"label": label, "cell": None, "settings": {}, "measured": measured, "computed": {}}
        rows.append(row | {"difference": difference, "paper": {}})
    return rows


def _plain(estimate: Estimate) -> dict[str, Any]:
    return asdict(estimate) | {"half_width": max(estimate.mean - estimate.low, estimate.high - estimate.mean)}


def _means(by_seed: Sequence[dict[str, float]]) -> dict[str, Any]:
    """By name the mean, where each seed has one; without an interval, which over seeds alone would leave out label
    subsets and images."""
    names = [name for name in (by_seed[0] if by_seed else ()) if all(name in one for one in by_seed)]
    values = {name: [one[name] for one in by_seed] for name in names}
    return {name: {"mean": float(np.mean(found)), "values": found} for name, found in values.items()}


def _computed(study: Study, cell: Cell) -> dict[str, float]:
    """Costs of the paper's model, counted as the paper does."""
    if not study.costs:
        return {}
    counts, config = {"gflops": lambda one: one.paper_gmacs(), "patches": predicted_patches}, paper_config(cell)
    return {name: counts[name](config) for name in study.costs}


def _measured(
    cell: Cell, preset: Preset, out: Path, seeds: Sequence[int], judges: Collection[str]
) -> tuple[dict[str, Any], dict[int, float]]:
    """Figures of a cell's runs, and its accuracies by seed if the study fine-tunes."""
    settled = settle_length(cell, preset, out)
    if settled is None:
        return {}, {}
    folder = out / "cells" / preset.directory(settled)
    # Cells are shared: what another study has had judged is not for one that hasn't.
    by_seed = figures_by_seed(folder, seeds, judges, cell.pretrained)
    if not by_seed:
        return {}, {}
    settings = preset.pretraining(settled)
    measured: dict[str, Any] = {"seeds": list(by_seed)}
    if cell.pretrained:
        measured["gmacs"] = forward_gmacs(preset, settled)
    if speed := speed_of(settled if cell.as_long_as is None else cell, preset, out):
        measured |= {"minutes": speed["seconds"] / 60, "memory": speed["memory"]}
    if speed or cell.as_long_as is not None:
        measured["epochs"] = settings["epochs"]
    for name in ("loss", *(figure for judge in judges for figure in _FIGURES.get(judge, ()))):
        if values := [figures[name] for figures in by_seed.values() if name in figures]:
            measured[name] = summary(values)
    measured |= _means([_probed_figures(folder / f"seed-{seed}", judges) for seed in by_seed])
    return measured, {seed: figures["top1"] for seed, figures in by_seed.items() if "top1" in figures}


# What is told where methods are timed.
_OF_TIME = ("minutes", "memory", "epochs")

# Of each judge, its figures by our name and by the keys of its result.
_FIGURES = {
    "finetune": {"top1": ("top1",)},
    "linear-probe": {"linear_probe": ("top1",)},
    "knn": {
        "knn": ("accuracy", "trained"),
        "knn_untrained": ("accuracy", "untrained"),
        "knn_raw_pixels": ("accuracy", "raw_pixels"),
    },
    "segment": {"miou": ("miou",), "macc": ("macc",)},
    "detect": {"box_ap": ("box", "ap"), "mask_ap": ("mask", "ap")},
}

# Of each probe what is told beside the answers that are compared, by our name: the judge that it has it from.
_BESIDE = {PROBE: {"logistic": "logistic", "centred_knn": "knn"}} | {
    judge: {f"ridge_{pool}": "ridge"} for judge, pool in POOLED.items()
}


def _probed_figures(folder: Path, judges: Collection[str], place: int = 0) -> dict[str, float]:
    """Accuracies that probes of a cell's run with a seed tell, of their first row or another."""
    found = {}
    for judge in judges:
        if judge in _BESIDE and (folder / f"{judge}.json").is_file():
            rows = json.loads((folder / judge / RESULTS).read_bytes())["encoders"]
            for name, of in _BESIDE[judge].items() if place < len(rows) else ():
                found[name] = rows[place]["judgements"][of]["accuracy"]["mean"]
    return found


def figures_by_seed(
    folder: Path, seeds: Sequence[int], judges: Collection[str], pretrained: bool
) -> dict[int, dict[str, float]]:
    """Figures of a cell's runs, of the seeds that have any."""
    found = {seed: read_figures(folder / f"seed-{seed}", judges, pretrained) for seed in seeds}
    return {seed: figures for seed, figures in found.items() if figures}


def read_figures(folder: Path, judges: Collection[str], pretrained: bool = True) -> dict[str, float]:
    """Figures of a cell's run with a seed; none before it is done, none of a judge that hasn't judged it.

    Args:
        folder: as :class:`efficient_mae.study.runs.CellRun` lays it out.
        pretrained: whether it begins with pre-training.
    """
    figures = {}
    if pretrained:
        if not (folder / "pretrain.json").is_file():
            return {}
        lines = (folder / "pretrain" / METRICS).read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if "loss" in row]
        last = [row["loss"] for row in rows if row["epoch"] > rows[-1]["epoch"] - 1]
        figures["loss"] = float(np.mean(last))
    for judge in judges:
        if judge in _FIGURES and (folder / f"{judge}.json").is_file():
            result = json.loads((folder / judge / RESULTS).read_bytes())
            found = {name: reduce(getitem, keys, result) for name, keys in _FIGURES[judge].items()}
            figures |= {name: value for name, value in found.items() if value is not None}
    return figures


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % interval; of a single value, the value."""
    return asdict(mean_and_interval(values)) if len(values) > 1 else {"mean": values[0], "values": list(values)}


def gains_by_seed(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """What a row is better by than another, with each seed that both have."""
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def collect_table_1() -> list[dict[str, Any]]:
    """Rows of Table 1: what MAE costs at ViT-L/16; at mask ratio 0 it is the encoder alone, over the whole image."""
    plain = {"gamma": 0.0, "beta": None}
    rows = []
    for ratio, paper in TABLE_1.items():
        config = pretrained_config({**recipe_settings(ABLATION_RECIPE), **plain, "mask_ratio": ratio or 0.75})
        gflops = config.paper_gmacs() if ratio else encoder_gmacs(config)
        row = {"label": f"mask ratio {ratio:g}", "cell": None, "settings": {"mask_ratio": ratio}, "measured": {}}
        rows.append(row | {"computed": {"gflops": gflops}, "paper": paper})
    return rows
