"""What the judgement of a segmentation is: its figures, those of several seeds together, and shown."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from efficient_mae.command import Result
from efficient_mae.tasks.intervals import Interval, mean_and_interval
from efficient_mae.tasks.seeds import RESULTS, common

# Figures, as they are called in files and shown.
FIGURES = {"miou": "mean IoU", "macc": "mean accuracy", "pixel_accuracy": "pixel accuracy"}


@dataclass(frozen=True, kw_only=True)
class SegmentResult(Result):
    """A model that segments, and how well it does on held-out images; shares from 0 to 1.

    Attributes:
        data, weights, epochs, seed: as given; weights are None from scratch.
        train_images: that it was trained on.
        test_images: that it was judged by.
        damaged: the reason, by name, of each held-out image that could not be read.
        miou, macc, pixel_accuracy, iou, accuracy, confusion: as
            :class:`efficient_mae.tasks.segment.evaluation.Evaluation` has them.
        classes: their names.
        run: directory.
    """

    data: str
    weights: str | None
    epochs: int
    seed: int
    train_images: int
    test_images: int
    damaged: dict[str, str]
    miou: float
    macc: float
    pixel_accuracy: float
    classes: list[str]
    iou: list[float | None]
    accuracy: list[float | None]
    confusion: list[list[int]]
    run: str


@dataclass(frozen=True, kw_only=True)
class SegmentSeedsResult(Result):
    """What the models of several seeds say together; attributes as of :class:`SegmentResult`, and `seeds`."""

    data: str
    weights: str | None
    epochs: int
    train_images: int
    test_images: int
    damaged: dict[str, str]
    classes: list[str]
    seeds: list[int]
    miou: Interval
    macc: Interval
    pixel_accuracy: Interval
    run: str


def summarise(out: Path, results: list[SegmentResult]) -> SegmentSeedsResult:
    """Means and intervals over the seeds' results."""
    return SegmentSeedsResult(
        **common(results),
        miou=mean_and_interval([one.miou for one in results]),
        macc=mean_and_interval([one.macc for one in results]),
        pixel_accuracy=mean_and_interval([one.pixel_accuracy for one in results]),
        run=str(out),
    )


def show_segment(result: SegmentResult | SegmentSeedsResult, console: Console) -> None:
    """Print the figures and where the rest is."""
    table = Table("held-out", "share", title=f"{result.data}: {result.test_images:,} held-out images")
    for name, heading in FIGURES.items():
        share = getattr(result, name)
        table.add_row(heading, share.told(2) if isinstance(share, Interval) else f"{share:.2%}")
    console.print(table)
    run = Path(result.run)
    console.print(f"per class and more: {run / RESULTS}", markup=False)
    if isinstance(result, SegmentResult):
        console.print(f"report: {run / 'report.html'}", markup=False)
