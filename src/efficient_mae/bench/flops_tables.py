"""`emae bench flops`: the GFLOPs that papers publish of their models, counted, beside the papers'; or one model's."""

from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from efficient_mae.bench.flops import count_gmacs, encoder_gmacs
from efficient_mae.methods import METHODS, create_model
from efficient_mae.ranges import PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class BenchFlopsConfig(Settings):
    """Settings of `emae bench flops`."""

    model: str | None = None
    """count this model, as it is by default, and not the paper's tables (emae info counts one with other settings)"""
    masks: PositiveInt = 256
    """random masks to average over: Efficient MAE's work differs from mask to mask"""


def bench_flops(config: BenchFlopsConfig) -> dict[str, Any]:
    """The paper's rows, each with what is counted for it.

    Returns:
        `rows`, of each `table`, `model`, `mask_ratio`, `method`, and in GMACs (the paper's GFLOPs) of one image's
        forward pass: `paper`, `counted` as the paper counts, their relative `difference`, and what is `computed`
        here, where nobody computes what nobody reads (null for the encoder alone). Of a model that is named,
        `model`, `method` and `computed` alone; the rest is null.

    Raises:
        InputError: an unknown model.
    """
    if config.model is not None:
        with torch.device("meta"):
            model = create_model(config.model).config
        nothing = dict.fromkeys(("table", "mask_ratio", "paper", "counted", "difference"))
        computed = round(count_gmacs(model, config.masks), 3)
        rows = [{**nothing, "model": config.model, "method": model.method, "computed": computed}]
        return {"masks": config.masks, "rows": rows}
    rows = []
    for row in (row for method in METHODS.values() for row in method.Config.published()):
        with torch.device("meta"):
            model = create_model(row.model, **row.settings or {}).config
        alone = row.settings is None
        counted = encoder_gmacs(model) if alone else model.paper_gmacs(config.masks)
        rows.append(
            {
                "table": row.table,
                "model": row.model,
                "mask_ratio": row.mask_ratio,
                "method": row.name,
                "paper": row.gmacs,
                "counted": round(counted, 3),
                "difference": round(counted / row.gmacs - 1, 5),
                "computed": None if alone else round(count_gmacs(model, config.masks), 3),
            }
        )
    return {"masks": config.masks, "rows": rows}


def show_bench_flops(result: dict[str, Any], console: Console) -> None:
    """Print what :func:`bench_flops` counted."""
    console.print("GMACs of a forward pass at 224 pixels, which the paper calls GFLOPs")
    table = Table(box=None, padding=(0, 1, 0, 0))  # so that all columns fit into 80 characters
    for heading in ("table", "model", "ratio", "method"):
        table.add_column(heading, no_wrap=True)
    for heading in ("paper", "counted", "off", "computed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["rows"]:
        figures = (("mask_ratio", "{:.2f}"), ("paper", "{:.1f}"), ("counted", "{:.2f}"), ("difference", "{:+.1%}"))
        ratio, *counts = ("" if row[name] is None else form.format(row[name]) for name, form in figures)
        computed = "" if row["computed"] is None else f"{row['computed']:.2f}"
        model = row["model"].removeprefix("mae_vit_")
        table.add_row(row["table"] or "", model, ratio, row["method"], *counts, computed)
    console.print(table)
    console.print("counted: as the paper counts; computed: here, without what nobody reads")
