"""Table 10: what a row is better by than another, seed by seed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from scipy import stats

from efficient_mae.study.cells import CELLS
from efficient_mae.study.presets import Preset
from efficient_mae.study.results.collect import figures_by_seed, gains_by_seed, summary
from efficient_mae.study.results.decisions import in_points
from efficient_mae.study.studies import Study
from efficient_mae.study.transfer import FIGURES
from efficient_mae.tasks.classify.probe.statistics import holm
from efficient_mae.tasks.intervals import Interval, mean_and_interval


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What a row is better by than another above it.

    Attributes:
        row: its label.
        than: that of the other.
        figure: by name, as in :data:`efficient_mae.study.transfer.FIGURES`.
        difference: over seeds.
        p: two-sided, of there being none (paired Student's t).
        p_holm: corrected for all gains over the first row; None of another pair.
    """

    row: str
    than: str
    figure: str
    difference: Interval
    p: float
    p_holm: float | None = None


def add_differences(
    rows: Sequence[dict[str, Any]], study: Study, preset: Preset, out: Path, seeds: Sequence[int]
) -> list[Gain]:
    """Add `differences` to the rows of Table 10: by figure, what a row is better by than the first.

    Args:
        rows, out, seeds: as of :func:`efficient_mae.study.results.collect.collect_rows`.

    Returns:
        What each row is better by than each above it, of the figures that both have with two seeds or more.
    """
    gains = list[Gain]()
    by_row = [_figures(row, study, preset, out, seeds) for row in rows]
    for (above, theirs), (below, ours) in combinations(zip(rows, by_row, strict=True), 2):
        for name in (name for name in FIGURES if name in ours and name in theirs):
            values = gains_by_seed(ours[name], theirs[name])
            if values and above is rows[0]:
                below.setdefault("differences", {})[name] = summary(values)
            if len(values) > 1:
                p, interval = _p_of_none(values), mean_and_interval(values)
                gains.append(Gain(row=below["label"], than=above["label"], figure=name, difference=interval, p=p))
    first = [gain for gain in gains if gain.than == rows[0]["label"]]
    corrected = holm([gain.p for gain in first])
    others = [gain for gain in gains if gain.than != rows[0]["label"]]
    return [*(replace(gain, p_holm=p) for gain, p in zip(first, corrected, strict=True)), *others]


def _figures(
    row: dict[str, Any], study: Study, preset: Preset, out: Path, seeds: Sequence[int]
) -> dict[str, dict[int, float]]:
    """By name, then by seed."""
    cell, found = CELLS[row["cell"]], dict[str, dict[int, float]]()
    folder = out / "cells" / preset.directory(cell)
    for seed, figures in figures_by_seed(folder, seeds, study.judges, cell.pretrained).items():
        for name, value in figures.items():
            found.setdefault(name, {})[seed] = value
    return found


def _p_of_none(values: Sequence[float]) -> float:
    """p of the mean being 0, two-sided, by Student's t; that of values which are all 0 is 1."""
    if not any(values):
        return 1.0
    tested: Any = stats.ttest_1samp(values, 0.0)
    return float(tested.pvalue)


def gains_in_words(gains: Sequence[Gain]) -> str:
    """As a Markdown table."""
    lines = ["| | | difference, points (95 % interval) | p | p, Holm |", "| --- | --- | ---: | ---: | ---: |"]
    for gain in gains:
        figure, corrected = FIGURES[gain.figure], "" if gain.p_holm is None else f"{gain.p_holm:.2g}"
        found = f"{in_points(gain.difference)} | {gain.p:.2g} | {corrected}"
        lines.append(f"| {gain.row} less {gain.than} | {figure} | {found} |")
    number = sum(gain.p_holm is not None for gain in gains)
    said = f"p is two-sided (Student's t), Holm's corrected for the {number} differences to the first row."
    return "\n".join([*lines, "", said])
