"""A study's rows as Markdown and CSV."""

import csv
import io

import pytest

from efficient_mae.study.results.collect import summary
from efficient_mae.study.results.tables import csv_table, markdown_table


def row(label: str, scores: list[float], gain: list[float], **paper: float) -> dict:
    measured = {"top1": summary(scores), "loss": summary([0.5, 0.5])} if scores else {}
    difference = summary(gain) if gain else {}
    return {
        "label": label,
        "cell": label,
        "measured": measured,
        "computed": {},
        "difference": difference,
        "paper": paper,
    }


ROWS = [
    row("first", [0.70, 0.72, 0.74], [], top1=84.6),
    row("clearly better", [0.80, 0.82, 0.84], [0.1, 0.1, 0.1], top1=84.1),
    row("perhaps better", [0.70, 0.75, 0.74], [0.0, 0.03, 0.0], top1=84.3),
    row("not run", [], [], top1=86.0),
]


def test_measured_and_published_stand_side_by_side():
    heading, _, first, better, perhaps, missing = markdown_table(ROWS).splitlines()
    assert heading == "|  | top-1 here | difference to the first row | top-1, paper (%) |"
    # Student's t with 2 degrees of freedom: 4.303 x 0.02 / sqrt(3) = 0.0497.
    assert first == "| first | 72.00% ± 4.97% |  | 84.6 |"
    assert "| +10.00% ± 0.00% |" in better
    assert "| +1.00% ± 4.30% (within its interval) |" in perhaps
    assert missing == "| not run |  |  | 86.0 |"


def test_losses_stand_side_by_side_only_where_they_are_of_one_objective():
    assert "loss" not in markdown_table(ROWS)
    table = markdown_table([row("a", [0.5, 0.6], [], loss=0.4)])
    assert "loss here" in table and "loss, paper" in table and "| 0.500 ± 0.000 | 0.400 |" in table


def test_csv_has_figures_and_half_widths():
    first, *_, missing = csv.DictReader(io.StringIO(csv_table(ROWS)))
    assert float(first["top-1 here"]) == pytest.approx(0.72)
    assert float(first["top-1 here, 95 % half width"]) == pytest.approx(0.0497, abs=1e-4)
    assert (missing["top-1 here"], missing["top-1, paper (%)"]) == ("", "86.0")
