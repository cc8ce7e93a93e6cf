"""A study's rows as Markdown and as CSV, measured figures beside the paper's."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from efficient_mae.study.transfer import FIGURES


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: with what it is measured on.
        group: of a row: `measured`, `computed`, `paper`, `difference` or `differences`.
        key: in the group; None takes the group itself.
        show: a figure, or a mean with its interval, as text.
    """

    heading: str
    group: str
    key: str | None
    show: Callable[[Any], str]


def _number(digits: int) -> Callable[[Any], str]:
    def show(value: Any) -> str:
        if not isinstance(value, dict):
            return f"{value:.{digits}f}"
        spread = f" ± {value['half_width']:.{digits}f}" if "half_width" in value else ""
        return f"{value['mean']:.{digits}f}{spread}"

    return show


def _percent(value: dict[str, Any], sign: str = "") -> str:
    spread = f" ± {value['half_width']:.2%}" if "half_width" in value else ""
    return f"{value['mean']:{sign}.2%}{spread}"


def _gain(value: dict[str, Any]) -> str:
    """A difference, and whether it is more than its interval."""
    text = _percent(value, "+")
    inside = "low" in value and value["low"] <= 0 <= value["high"]
    return f"{text} (within its interval)" if inside else text


COLUMNS = (
    Column("GFLOPs, paper's model, counted", "computed", "gflops", _number(1)),
    Column("GFLOPs, paper", "paper", "gflops", _number(1)),
    Column("memory, paper (GB)", "paper", "memory", _number(1)),
    Column("minutes an epoch, paper", "paper", "minutes", _number(1)),
    Column("patches of 196, counted", "computed", "patches", _number(0)),
    Column("patches, paper", "paper", "patches", _number(0)),
    Column("GMACs, model run here", "measured", "gmacs", lambda value: f"{value:.3g}"),
    Column("minutes an epoch here", "measured", "minutes", lambda value: f"{value:.2g}"),
    Column("memory of the process here (GB)", "measured", "memory", _number(2)),
    Column("epochs here", "measured", "epochs", lambda value: f"{value:g}"),
    Column("loss here", "measured", "loss", _number(3)),
    Column("loss, paper", "paper", "loss", _number(3)),
    Column("slope of loss against P²Dist here (1/pixel)", "measured", "slope", _number(4)),
    Column("slope with the factor", "measured", "weighted_slope", _number(4)),
    Column("ridge regression here", "measured", "probe", _percent),
    Column("logistic regression", "measured", "logistic", _percent),
    Column("centred k-NN", "measured", "centred_knn", _percent),
    Column("ridge, class token", "measured", "ridge_token", _percent),
    Column("ridge, quarters", "measured", "ridge_grid2", _percent),
    Column("ridge, last blocks", "measured", "ridge_blocks", _percent),
    Column("top-1 here", "measured", "top1", _percent),
    Column("linear probe here", "measured", "linear_probe", _percent),
    Column("k-NN here", "measured", "knn", _percent),
    Column("k-NN, untrained", "measured", "knn_untrained", _percent),
    Column("k-NN, raw pixels", "measured", "knn_raw_pixels", _percent),
    Column("difference to the first row", "difference", None, _gain),
    *(
        column
        for name, title in FIGURES.items()
        for column in (
            Column(f"{title} here", "measured", name, _percent),
            Column(f"{title}, difference to from scratch", "differences", name, _gain),
            Column(f"{title}, paper (%)", "paper", name, _number(1)),
        )
    ),
    Column("top-1, paper (%)", "paper", "top1", _number(1)),
)


def used_columns(rows: Sequence[dict[str, Any]]) -> list[Column]:
    """The columns that any row has a figure for; losses of different objectives are not set side by side."""
    comparable = any("loss" in row["paper"] for row in rows)
    return [
        column
        for column in COLUMNS
        if any(_value(row, column) is not None for row in rows) and (column.key != "loss" or comparable)
    ]


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table, without a measurement an empty place."""
    columns = used_columns(rows)
    lines = [["", *(column.heading for column in columns)], ["---", *("---:" for _ in columns)]]
    for row in rows:
        values = [_value(row, column) for column in columns]
        shown = ["" if v is None else column.show(v) for v, column in zip(values, columns, strict=True)]
        lines.append([row["label"], *shown])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def csv_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as CSV: each column's figure and, of several seeds, the half width of its 95 % interval."""
    file = io.StringIO()
    columns = used_columns(rows)
    writer = csv.writer(file, lineterminator="\n")
    headings = [part for column in columns for part in (column.heading, f"{column.heading}, 95 % half width")]
    writer.writerow(["row", "cell", *headings])
    for row in rows:
        cells = []
        for column in columns:
            value = _value(row, column)
            several = value if isinstance(value, dict) else {"mean": value}
            cells += [several["mean"], several.get("half_width")]
        writer.writerow([row["label"], row["cell"], *("" if cell is None else cell for cell in cells)])
    return file.getvalue()


def _value(row: dict[str, Any], column: Column) -> Any:
    group = row.get(column.group) or {}
    return (group or None) if column.key is None else group.get(column.key)
