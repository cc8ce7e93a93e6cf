"""What `emae bench step` has found: as a table, as a file, as a picture."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from efficient_mae.command import Result
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.pictures import png


@dataclass(frozen=True, kw_only=True)
class MethodSpeed:
    """How fast a method is; what its multiply-accumulates tell is None where they can't be counted.

    Attributes:
        name: of the method.
        images_per_second: median of the rounds.
        ratio: to the speed of the first, which is MAE 0.75.
        gmacs: multiply-accumulates of one image's forward pass, 1e9.
        gmac_ratio: of the first's to these.
        tflops: achieved.
        matmul_share: of the rate of a large matrix product.
        peak_gigabytes: of memory; None if not measured (CUDA graphs keep theirs).
        seconds: a step, of each round.
    """

    name: str
    images_per_second: float
    ratio: float
    gmacs: float | None
    gmac_ratio: float | None
    tflops: float | None
    matmul_share: float | None
    peak_gigabytes: float | None
    seconds: list[float]


@dataclass(frozen=True, kw_only=True)
class StepResult(Result):
    """How fast training steps are.

    Attributes:
        date: of today.
        machine: as :func:`efficient_mae.engine.machine.facts.describe_machine` has it.
        model: its name.
        batch_size: images of a step.
        precision: `bf16` or `fp32`.
        compile, cuda_graphs, grad_checkpointing: as given.
        rounds: in each of which every method was timed.
        matmul_tflops: the rate of a large matrix product in the same rounds.
        shares_of: the method whose step the following are shares of.
        p2dist_share: time that one core takes for P2Dist; None where there is none.
        masks_share: the same for all that is planned of a batch: masks, and P2Dist and packing where there are any.
        methods: in the order in which they are compared.
    """

    date: str
    machine: dict[str, Any]
    model: str
    batch_size: int
    precision: str
    compile: bool
    cuda_graphs: bool
    grad_checkpointing: bool
    rounds: int
    matmul_tflops: float
    shares_of: str
    p2dist_share: float | None
    masks_share: float
    methods: list[MethodSpeed]


# Heading, name in a result, format: of each method's row, after its name.
_COLUMNS = (
    ("img/s", "images_per_second", "{:,.2f}"),
    ("speed", "ratio", "{:.2f}x"),
    ("GMACs", "gmacs", "{:.2f}"),
    ("saved", "gmac_ratio", "{:.2f}x"),
    ("TFLOP/s", "tflops", "{:.3g}"),
    ("share", "matmul_share", "{:.0%}"),
    ("GB", "peak_gigabytes", "{:.2f}"),
)


def show_bench_step(result: StepResult, console: Console) -> None:
    """Print what was found."""
    rows = result.methods
    console.print(
        f"{result.model}, {result.batch_size} images a step, {result.precision}, "
        f"{result.machine['device']}: medians of {result.rounds} rounds",
        highlight=False,
    )
    columns = [column for column in _COLUMNS if any(getattr(row, column[1]) is not None for row in rows)]
    table = Table(box=None, padding=(0, 1, 0, 0))  # so that all columns fit into 80 characters
    table.add_column("method", no_wrap=True)
    for heading, _, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        values = ((getattr(row, name), form) for _, name, form in columns)
        cells = ("" if value is None else form.format(value) for value, form in values)
        table.add_row(row.name, *cells)
    console.print(table)
    share = result.p2dist_share
    parts, p2dist = ("masks", "") if share is None else ("masks, P2Dist and packing", f" (P2Dist {share:.2%})")
    memory = "; GB: peak memory" if any(row.peak_gigabytes is not None for row in rows) else ""
    console.print(
        f"speed: {rows[0].name} = 1; saved: what its GMACs promise; share: of a matrix product's "
        f"{result.matmul_tflops:.3g} TFLOP/s{memory}\n"
        f"{parts} take one core {result.masks_share:.2%} of the step of {result.shares_of}"
        f"{p2dist}",
        highlight=False,
    )


def write_step(folder: Path, result: StepResult) -> None:
    """Write `step.json` and `step.png`.

    Args:
        folder: is there.

    Raises:
        OSError: the disk is full or fails.
    """
    replace_file(folder / "step.json", (json.dumps(result.plain(), indent=1) + "\n").encode())
    replace_file(folder / "step.png", png(draw_step(result)))


def draw_step(result: StepResult) -> Figure:
    """Every method's speed beside the first's: bars for what was measured, ticks for what its GMACs promise."""
    rows = result.methods[::-1]
    figure = Figure(figsize=(7.6, 0.9 + 0.42 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = ["#2458d3" if row.name.startswith("Efficient") else "#a3abb8" for row in rows]
    axes.barh([row.name for row in rows], [row.ratio for row in rows], color=colours, height=0.62)
    for place, row in enumerate(rows):
        end = max(row.ratio, row.gmac_ratio or 0)
        axes.text(end + 0.02, place, f"{row.images_per_second:,.3g} images/s", va="center", fontsize=8)
        if row.gmac_ratio is not None:
            axes.plot([row.gmac_ratio] * 2, [place - 0.31, place + 0.31], color="#e0700c", linewidth=2)
    axes.plot([], [], color="#e0700c", linewidth=2, label="by multiply-accumulates")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.set_xlim(0, 1.25 * max(max(row.ratio, row.gmac_ratio or 0) for row in rows))
    axes.set_xlabel(f"speed of a training step, {result.methods[0].name} = 1")
    axes.set_title(f"{result.model}, {result.precision}, {result.machine['device']}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
