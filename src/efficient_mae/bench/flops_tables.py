"""`emae bench flops`: the GFLOPs of the paper's Tables 1, 3 and 4, counted, beside the paper's."""

from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from efficient_mae.bench.flops import count_gmacs, encoder_gmacs, paper_gmacs
from efficient_mae.methods.mae import MAEConfig, create_model
from efficient_mae.ranges import PositiveInt, Settings

# (table, size and patch size, mask ratio, Efficient MAE or MAE, the paper's GFLOPs). Table 4's columns DF and DM are
# swapped in its third and fourth row (reading notes); what counts here is which row has decoder masking.
PAPER = (
    ("1", "large_patch16", 0.0, False, 61.6),
    ("1", "large_patch16", 0.01, False, 66.4),
    ("1", "large_patch16", 0.25, False, 51.4),
    ("1", "large_patch16", 0.50, False, 36.0),
    ("1", "large_patch16", 0.75, False, 20.8),
    ("3", "base_patch16", 0.75, False, 9.8),
    ("3", "base_patch16", 0.85, True, 7.6),
    ("3", "large_patch16", 0.75, False, 20.8),
    ("3", "large_patch16", 0.85, True, 14.1),
    ("3", "huge_patch14", 0.75, False, 48.6),
    ("3", "huge_patch14", 0.85, True, 31.3),
    ("4", "large_patch16", 0.75, False, 20.8),
    ("4", "large_patch16", 0.85, False, 14.6),
    ("4", "large_patch16", 0.85, True, 14.2),
    ("4", "large_patch16", 0.90, False, 11.6),
    ("4", "large_patch16", 0.90, True, 10.3),
    ("4", "large_patch16", 0.95, False, 8.5),
    ("4", "large_patch16", 0.95, True, 5.9),
)


@dataclass(frozen=True, kw_only=True)
class BenchFlopsConfig(Settings):
    """Settings of `emae bench flops`."""

    masks: PositiveInt = 256
    """random masks to average over: Efficient MAE's work differs from mask to mask"""


def bench_flops(config: BenchFlopsConfig) -> dict[str, Any]:
    """The paper's rows, each with what is counted for it.

    Returns:
        `rows`, of each `table`, `model`, `mask_ratio`, `method`, and in GMACs (the paper's GFLOPs) of one image's
        forward pass: `paper`, `counted` as the paper counts, their relative `difference`, and what is `computed`
        here, where nobody computes what nobody reads (null for the encoder alone).
    """
    rows = []
    for table, name, ratio, efficient, paper in PAPER:
        model = _config(name, ratio, efficient)
        counted = encoder_gmacs(model) if ratio == 0 else paper_gmacs(model, config.masks)
        rows.append(
            {
                "table": table,
                "model": f"mae_vit_{name}",
                "mask_ratio": ratio,
                "method": "encoder alone" if ratio == 0 else "Efficient MAE" if efficient else "MAE",
                "paper": paper,
                "counted": round(counted, 3),
                "difference": round(counted / paper - 1, 5),
                "computed": None if ratio == 0 else round(count_gmacs(model, config.masks), 3),
            }
        )
    return {"masks": config.masks, "rows": rows}


def _config(name: str, ratio: float, efficient: bool) -> MAEConfig:
    objective = {} if efficient else {"beta": None, "gamma": 0.0}
    with torch.device("meta"):
        return create_model(f"mae_vit_{name}", mask_ratio=ratio or 0.75, **objective).config


def show_bench_flops(result: dict[str, Any], console: Console) -> None:
    """Print what :func:`bench_flops` counted."""
    console.print("GMACs of a forward pass at 224 pixels, which the paper calls GFLOPs")
    table = Table(box=None, padding=(0, 1, 0, 0))  # so that all columns fit into 80 characters
    for heading in ("table", "model", "ratio", "method"):
        table.add_column(heading, no_wrap=True)
    for heading in ("paper", "counted", "off", "computed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["rows"]:
        table.add_row(
            row["table"],
            row["model"].removeprefix("mae_vit_"),
            f"{row['mask_ratio']:.2f}",
            row["method"],
            f"{row['paper']:.1f}",
            f"{row['counted']:.2f}",
            f"{row['difference']:+.1%}",
            "" if row["computed"] is None else f"{row['computed']:.2f}",
        )
    console.print(table)
    console.print("counted: as the paper counts; computed: here, without what nobody reads")
