"""Writes a study's directory: JSON, Markdown, CSV and pictures."""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficient_mae.command import Result
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.study.cells import CELLS, Cell
from efficient_mae.study.presets import Preset
from efficient_mae.study.results.collect import collect_rows, collect_table_1
from efficient_mae.study.results.decisions import (
    FTest,
    Verdict,
    compare_rows,
    decide,
    f_test_in_words,
    verdict_in_words,
)
from efficient_mae.study.results.figures import figure_2, figure_3, figure_4
from efficient_mae.study.results.plots import draw_accuracies, draw_by_ratio, draw_costs, draw_transfer
from efficient_mae.study.results.probed import read_comparison
from efficient_mae.study.results.tables import csv_table, markdown_table
from efficient_mae.study.results.transferred import Gain, add_differences, gains_in_words
from efficient_mae.study.speeds import settle_length
from efficient_mae.study.studies import PROBE, Study
from efficient_mae.study.transfer import SIZES

_PICTURE = "figure.png"
_BY_ANSWERS = (
    "; of ridge regression (emae probe) over seeds, label subsets and held-out images, answer by answer; what else "
    "it says are means"
)


@dataclass(frozen=True, kw_only=True)
class StudyResult(Result):
    """A study as far as it is done.

    Attributes:
        study: its name.
        title: what it shows.
        preset: its name.
        data: as given; None where nothing is trained.
        command: that made it.
        date: of today.
        machine: as :func:`efficient_mae.engine.machine.facts.describe_machine` has it.
        failed: why, by the names of the runs that failed.
        seeds: that were looked for.
        remark: on how to read it.
        rows: as :func:`efficient_mae.study.results.collect.collect_rows` has them.
        figure: what the picture shows beyond the rows, if anything.
        verdict: what the hypotheses come to, of a study that has any, as far as it is done.
        f_test: of the rows, where they were probed.
        gains: of each row over those above it, where encoders are carried to other tasks.
        written: directory.
    """

    study: str
    title: str
    preset: str
    data: str | None
    command: str
    date: str
    machine: dict[str, Any]
    failed: dict[str, str]
    seeds: list[int]
    remark: str
    rows: list[dict[str, Any]]
    figure: dict[str, Any] | None = None
    verdict: Verdict | None = None
    f_test: FTest | None = None
    gains: list[Gain] | None = None
    written: str

    @property
    def status(self) -> int:
        """1 if a run failed."""
        return 1 if self.failed else 0


def write_study(head: dict[str, Any], study: Study, preset: Preset, out: Path, seeds: Sequence[int]) -> StudyResult:
    """Write what is known of a study into `OUT/NAME`.

    Args:
        head: how it was made: the result's first fields, up to `failed`.
        out: directory that holds the cells.
        seeds: whose runs are looked at, as far as they are done; where hypotheses are to be decided, with all cells.

    Returns:
        What `results.json` holds too.
    """
    folder = out / study.name
    folder.mkdir(parents=True, exist_ok=True)
    counted = _counted(study, preset, out, seeds, head["failed"]) if study.hypotheses else seeds
    probed = read_comparison(study, preset, out, counted)
    rows = collect_table_1() if study.name == "table1" else collect_rows(study, preset, out, counted, probed)
    gains = add_differences(rows, study, preset, out, seeds) if study.transfers else None
    figure = _draw(study, preset, out, rows, head["data"], folder / _PICTURE)
    result = StudyResult(
        **head,
        seeds=list(seeds),
        remark=study.remark,
        rows=rows,
        figure=figure,
        verdict=decide(study, probed, counted, planned=max(len(seeds), preset.seeds)),
        f_test=compare_rows(study, probed, preset.is_paper),
        gains=gains,
        written=str(folder),
    )
    held = result.plain()
    del held["written"]
    replace_file(folder / "results.json", json.dumps(held, indent=1).encode())
    replace_file(folder / "table.md", _markdown(result, study, preset, (folder / _PICTURE).is_file()).encode())
    if rows:
        replace_file(folder / "table.csv", csv_table(rows).encode())
    return result


def seeds_there(study: Study, preset: Preset, out: Path) -> int:
    """How many seeds, from 0 on, any of a study's cells was run with."""
    settled = [settle_length(cell, preset, out) or cell for cell in study.cells(preset.is_paper)]
    folders = [folder for cell in settled for folder in (out / "cells" / preset.directory(cell)).glob("seed-*")]
    numbers = [int(folder.name.removeprefix("seed-")) for folder in folders if re.fullmatch(r"seed-\d+", folder.name)]
    return 1 + max(numbers, default=-1)


def _counted(study: Study, preset: Preset, out: Path, seeds: Sequence[int], failed: Collection[str]) -> list[int]:
    """The seeds with which what decides has judged each cell, or it has failed; the others aren't looked at yet."""
    cells, judges = study.cells(preset.is_paper), preset.judges_of(study)
    deciding = (PROBE,) if PROBE in judges else judges

    def is_over(cell: Cell, seed: int) -> bool:
        folder = out / "cells" / preset.directory(cell) / f"seed-{seed}"
        return f"{cell.name} seed {seed}" in failed or all((folder / f"{judge}.json").is_file() for judge in deciding)

    return [seed for seed in seeds if all(is_over(cell, seed) for cell in cells)]


def _draw(
    study: Study, preset: Preset, out: Path, rows: list[dict[str, Any]], data: str | None, path: Path
) -> dict[str, Any] | None:
    """Draw a study's picture; return what it shows beyond the rows."""
    title = f"{study.title} ({'counted' if study.name == 'table1' else 'preset ' + preset.name})"
    measured = [row for row in rows if row["measured"]]
    if study.name == "table1":
        draw_costs(rows, title, path)
    elif study.name == "fig1":
        draw_by_ratio(rows, title, path)
    elif study.name == "fig2" and data is not None:
        return figure_2(rows, preset, out, data, title, path)
    elif study.name == "fig3" and data is not None and measured:
        cell = CELLS[measured[0]["cell"]]
        seed = measured[0]["measured"]["seeds"][0]
        figure_3(out / "cells" / preset.directory(cell) / f"seed-{seed}" / "pretrain", data, title, path)
    elif study.name == "fig4":
        return {"examples": figure_4(preset, title, path)}
    elif study.transfers:
        draw_transfer(rows, title, path)
    elif rows:
        draw_accuracies(rows, title, path)
    return None


def _seeds_in_words(result: StudyResult) -> str:
    """The seeds that the rows have, and of how many, where others are wanted."""
    done = sorted({seed for row in result.rows for seed in row["measured"].get("seeds", ())})
    told = ", ".join(map(str, done or result.seeds))
    return told if done in ([], result.seeds) else f"{told} so far of {len(result.seeds)}"


def _markdown(result: StudyResult, study: Study, preset: Preset, has_picture: bool) -> str:
    machine = result.machine
    summary = SIZES[preset.name].summary if study.transfers and preset.name in SIZES else preset.summary
    by_answers = _BY_ANSWERS if PROBE in preset.judges_of(study) else ""
    parts = [f"# {result.study}: {result.title}"]
    if result.rows:
        parts.append(markdown_table(result.rows))
    if has_picture:
        parts.append(f"![{result.title}]({_PICTURE})")
    if result.verdict is not None:
        parts.append(verdict_in_words(result.verdict))
    if result.f_test is not None:
        parts.append(f_test_in_words(result.f_test))
    if result.gains:
        parts.append(gains_in_words(result.gains))
    if result.remark:
        parts.append(result.remark)
    if result.data:
        parts.append(
            f"**Here**: preset `{preset.name}` ({summary}) on `{result.data}`, seeds {_seeds_in_words(result)}; "
            f"mean ± half width of the 95 % interval (Student's t), "
            f"differences seed by seed{by_answers}. **Paper**: its published figures "
            f"{study.published}. Data and models differ: what can be compared is which row is better than which."
        )
    for name, reason in result.failed.items():
        parts.append(f"Failed: {name}: {reason}")
    parts.append(
        f"`{result.command}`, {result.date}, {machine['processor']}, {machine['cores']} cores, "
        f"device {machine['device']}, PyTorch {machine['torch']}."
    )
    return "\n\n".join(parts) + "\n"
