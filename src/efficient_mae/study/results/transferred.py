"""Table 10: what a row is better by than another, seed by seed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from scipy import stats

from efficient_mae.study.cells import CELLS
from efficient_mae.study.presets import Preset
from efficient_mae.study.results.collect import figures_by_seed, summary
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
        for name in FIGURES:
            common = [seed for seed in ours if seed in theirs and name in ours[seed] and name in theirs[seed]]
            values = [ours[seed][name] - theirs[seed][name] for seed in common]
            if values and above is rows[0]:
                below.setdefault("differences", {})[name] = summary(values)
            if len(values) > 1:
                p, interval = float(stats.ttest_1samp(values, 0.0).pvalue), mean_and_interval(values)
                gains.append(Gain(row=below["label"], than=above["label"], figure=name, difference=interval, p=p))
    first = [gain for gain in gains if gain.than == rows[0]["label"]]
    corrected = holm([gain.p for gain in first])
    others = [gain for gain in gains if gain.than != rows[0]["label"]]
    return [*(replace(gain, p_holm=p) for gain, p in zip(first, corrected, strict=True)), *others]


def _figures(
    row: dict[str, Any], study: Study, preset: Preset, out: Path, seeds: Sequence[int]
) -> dict[int, dict[str, float]]:
    cell = CELLS[row["cell"]]
    return figures_by_seed(out / "cells" / preset.directory(cell), seeds, study.judges, cell.pretrained)


def gains_in_words(gains: Sequence[Gain]) -> str:
    """As a Markdown table."""
    lines = ["| | | difference, points (95 % interval) | p | p, Holm |", "| --- | --- | ---: | ---: | ---: |"]
    for gain in gains:
        one, holm_p = gain.difference, "" if gain.p_holm is None else f"{gain.p_holm:.2g}"
        points = f"{100 * one.mean:+.2f} ({100 * one.low:+.2f} to {100 * one.high:+.2f})"
        lines.append(f"| {gain.row} less {gain.than} | {FIGURES[gain.figure]} | {points} | {gain.p:.2g} | {holm_p} |")
    corrected = sum(gain.p_holm is not None for gain in gains)
    said = f"p is two-sided (Student's t), Holm's corrected for the {corrected} differences to the first row."
    return "\n".join([*lines, "", said])
