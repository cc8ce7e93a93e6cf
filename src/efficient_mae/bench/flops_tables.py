"""`emae bench flops`: the GFLOPs that papers publish of their models, counted, beside the papers'; or one model's."""

from dataclasses import dataclass
from operator import attrgetter

from rich.console import Console
from rich.table import Table

from efficient_mae.bench.flops import count_gmacs, encoder_gmacs
from efficient_mae.command import Result
from efficient_mae.methods import METHODS, model_config
from efficient_mae.ranges import PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class BenchFlopsConfig(Settings):
    """Settings of `emae bench flops`."""

    model: str | None = None
    """count this model, as it is by default, and not the paper's tables (emae info counts one with other settings)"""
    masks: PositiveInt = 256
    """random masks to average over: Efficient MAE's work differs from mask to mask"""


@dataclass(frozen=True, kw_only=True)
class FlopsRow:
    """GMACs (the paper's GFLOPs) of one image's forward pass; of a model that was named `model`,
    `method` and `computed` alone.

    Attributes:
        table: of the paper.
        mask_ratio: that the table says.
        paper: what it says.
        counted: as the paper counts.
        difference: between these, relative to the paper's.
        model: its name.
        method: as the paper calls it.
        computed: here, where nobody computes what nobody reads; None for the encoder alone.
    """

    table: str | None
    model: str
    mask_ratio: float | None
    method: str
    paper: float | None
    counted: float | None
    difference: float | None
    computed: float | None


@dataclass(frozen=True, kw_only=True)
class FlopsResult(Result):
    """What was counted.

    Attributes:
        masks: random ones that were averaged over.
        rows: the paper's, or that of the model that was named.
    """

    masks: int
    rows: list[FlopsRow]


def bench_flops(config: BenchFlopsConfig) -> FlopsResult:
    """The paper's rows, each with what is counted for it.

    Raises:
        InputError: an unknown model.
    """
    if config.model is not None:
        model = model_config(config.model)
        row = FlopsRow(
            table=None,
            model=config.model,
            mask_ratio=None,
            method=model.method,
            paper=None,
            counted=None,
            difference=None,
            computed=round(count_gmacs(model, config.masks), 3),
        )
        return FlopsResult(masks=config.masks, rows=[row])
    rows = []
    published = (row for method in METHODS.values() for row in method.Config.published())
    for row in sorted(published, key=attrgetter("table")):
        model = model_config(row.model, **row.settings or {})
        alone = row.settings is None
        computed = encoder_gmacs(model) if alone else count_gmacs(model, config.masks)
        counted = computed if alone else model.paper_gmacs(config.masks) or computed
        rows.append(
            FlopsRow(
                table=row.table,
                model=row.model,
                mask_ratio=row.mask_ratio,
                method=row.name,
                paper=row.gmacs,
                counted=round(counted, 3),
                difference=round(counted / row.gmacs - 1, 5),
                computed=None if alone else round(computed, 3),
            )
        )
    return FlopsResult(masks=config.masks, rows=rows)


def show_bench_flops(result: FlopsResult, console: Console) -> None:
    """Print what :func:`bench_flops` counted."""
    console.print("GMACs of a forward pass (the paper's GFLOPs), at 224 pixels, of SimMIM at 192")
    table = Table(box=None, padding=(0, 1, 0, 0))  # so that all columns fit into 80 characters
    for heading in ("table", "model", "ratio", "method"):
        table.add_column(heading, no_wrap=True)
    for heading in ("paper", "counted", "off", "computed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result.rows:
        figures = (
            (row.mask_ratio, "{:.2f}"),
            (row.paper, "{:.1f}"),
            (row.counted, "{:.2f}"),
            (row.difference, "{:+.1%}"),
        )
        ratio, *counts = ("" if value is None else form.format(value) for value, form in figures)
        computed = "" if row.computed is None else f"{row.computed:.2f}"
        model = row.model.partition("_")[2].removeprefix("vit_")
        table.add_row(row.table or "", model, ratio, row.method, *counts, computed)
    console.print(table)
    console.print("counted: as the paper counts; computed: here, without what nobody reads")
