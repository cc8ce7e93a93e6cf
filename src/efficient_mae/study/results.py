"""What came of a study's runs, row by row, beside what the paper reports."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from efficient_mae.bench.flops import count_gmacs, encoder_gmacs
from efficient_mae.study.cells import ABLATION_RECIPE, Cell
from efficient_mae.study.costs import paper_config, predicted_patches
from efficient_mae.study.presets import Preset, model_config, recipe_settings
from efficient_mae.study.studies import TABLE_1, Study
from efficient_mae.tasks.intervals import mean_and_interval


def collect_rows(study: Study, preset: Preset, out: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The rows of a table, with what its runs have measured so far.

    Args:
        out: directory that holds the cells.
        seeds: whose runs are read, as far as they are done.

    Returns:
        For each row its `label`, `cell` and `settings`; `measured`, by name `mean`, `values` and, of two seeds and
        more, the 95 % interval, and `gmacs` of the model that ran; `computed` costs of the paper's own model;
        `paper`, its figures. `difference` is this row's accuracy less that of the first row measured, seed by seed.
    """
    rows: list[dict[str, Any]] = []
    reference: dict[int, float] = {}
    for row in study.rows:
        found: dict[str, Any] = {"label": row.label, "cell": None, "settings": {}, "measured": {}, "computed": {}}
        if row.cell is not None:
            measured, accuracies = _measured(row.cell, preset, out, seeds, study.finetunes)
            found |= {
                "cell": row.cell.name,
                "settings": dict(row.cell.settings),
                "measured": measured,
                "difference": _difference(accuracies, reference),
                "computed": _computed(study, row.cell),
            }
            reference = reference or accuracies
        rows.append(found | {"paper": dict(row.paper)})
    return rows


def _computed(study: Study, cell: Cell) -> dict[str, float]:
    """Costs of the paper's model, counted as the paper does."""
    if not study.costs:
        return {}
    counts, config = {"gflops": lambda one: one.paper_gmacs(), "patches": predicted_patches}, paper_config(cell)
    return {name: counts[name](config) for name in study.costs}


def _measured(
    cell: Cell, preset: Preset, out: Path, seeds: Sequence[int], finetunes: bool
) -> tuple[dict[str, Any], dict[int, float]]:
    """Figures of a cell's runs, and its accuracies by seed if the study fine-tunes."""
    folder = out / "cells" / preset.directory(cell)
    by_seed = {seed: figures for seed in seeds if (figures := read_figures(folder / f"seed-{seed}"))}
    if not by_seed:
        return {}, {}
    measured: dict[str, Any] = {"seeds": list(by_seed), "gmacs": count_gmacs(model_config(preset.pretraining(cell)))}
    # Cells are shared: what another study has fine-tuned is not for one that doesn't.
    for name in ("top1", "loss") if finetunes else ("loss",):
        if values := [figures[name] for figures in by_seed.values() if name in figures]:
            measured[name] = summary(values)
    accuracies = {seed: figures["top1"] for seed, figures in by_seed.items() if finetunes and "top1" in figures}
    return measured, accuracies


def read_figures(folder: Path) -> dict[str, float]:
    """Figures of a cell's run with a seed; none before it is done, no accuracy before it is fine-tuned.

    Args:
        folder: as :class:`efficient_mae.study.runs.CellRun` lays it out.
    """
    if not (folder / "pretrain.json").is_file():
        return {}
    lines = (folder / "pretrain" / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "loss" in row]
    last = [row["loss"] for row in rows if row["epoch"] > rows[-1]["epoch"] - 1]
    figures = {"loss": float(np.mean(last))}
    if (folder / "finetune.json").is_file():
        figures["top1"] = json.loads((folder / "finetune" / "results.json").read_bytes())["top1"]
    return figures


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % interval; of a single value, the value."""
    return asdict(mean_and_interval(values)) if len(values) > 1 else {"mean": values[0], "values": list(values)}


def _difference(accuracies: dict[int, float], reference: dict[int, float]) -> dict[str, Any]:
    """What a row is better by, seed by seed; nothing without seeds in common."""
    common = [seed for seed in accuracies if seed in reference]
    return summary([accuracies[seed] - reference[seed] for seed in common]) if common else {}


def collect_table_1() -> list[dict[str, Any]]:
    """Rows of Table 1: what MAE costs at ViT-L/16; at mask ratio 0 it is the encoder alone, over the whole image."""
    plain = {"gamma": 0.0, "beta": None}
    rows = []
    for ratio, paper in TABLE_1.items():
        config = model_config({**recipe_settings(ABLATION_RECIPE), **plain, "mask_ratio": ratio or 0.75})
        gflops = config.paper_gmacs() if ratio else encoder_gmacs(config)
        row = {"label": f"mask ratio {ratio:g}", "cell": None, "settings": {"mask_ratio": ratio}, "measured": {}}
        rows.append(row | {"computed": {"gflops": gflops}, "paper": paper})
    return rows
