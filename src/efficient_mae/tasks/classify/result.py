"""What the judgement of a classifier is: its figures, those of several seeds together, on disk and shown."""

from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from efficient_mae.command import Result
from efficient_mae.tasks.intervals import Interval, mean_and_interval
from efficient_mae.tasks.seeds import RESULTS, common


@dataclass(frozen=True, kw_only=True)
class ClassifierResult(Result):
    """A classifier, and how well it does on held-out images; accuracies from 0 to 1.

    Attributes:
        data, weights, epochs, seed: as given; weights are None from scratch.
        train_images: that it was trained on.
        test_images: that it was judged by.
        damaged: the reason, by name, of each held-out image that could not be read.
        top1, top5, per_class, confusion: as :class:`efficient_mae.tasks.classify.evaluation.Evaluation` has them.
        classes: their names.
        run: directory.
    """

    data: str
    weights: str | None
    epochs: int
    seed: int
    train_images: int
    test_images: int
    damaged: dict[str, str] = field(default_factory=dict)  # which runs of earlier versions didn't tell
    top1: float
    top5: float | None = None
    classes: list[str]
    per_class: list[float | None]
    confusion: list[list[int]]
    run: str


@dataclass(frozen=True, kw_only=True)
class SeedsResult(Result):
    """What the classifiers of several seeds say together; attributes as of :class:`ClassifierResult`, and `seeds`."""

    data: str
    weights: str | None
    epochs: int
    train_images: int
    test_images: int
    damaged: dict[str, str] = field(default_factory=dict)  # which runs of earlier versions didn't tell
    classes: list[str]
    seeds: list[int]
    top1: Interval
    top5: Interval | None = None
    run: str


def summarise(out: Path, results: list[ClassifierResult]) -> SeedsResult:
    """Means and intervals over the seeds' results."""
    top5 = [one.top5 for one in results if one.top5 is not None]
    return SeedsResult(
        **common(results),
        top1=mean_and_interval([one.top1 for one in results]),
        top5=mean_and_interval(top5) if top5 else None,
        run=str(out),
    )


def show_classifier(result: ClassifierResult | SeedsResult, console: Console) -> None:
    """Print the accuracies and where the rest is."""
    table = Table("held-out", "accuracy", title=f"{result.data}: {result.test_images:,} held-out images")
    for name, score in (("top1", result.top1), ("top5", result.top5)):
        if isinstance(score, Interval):
            table.add_row(name, score.told(2))
        elif score is not None:
            table.add_row(name, f"{score:.2%}")
    console.print(table)
    run = Path(result.run)
    picture = "" if isinstance(result, SeedsResult) else f", {run / 'confusion.png'}"
    console.print(f"per class and more: {run / RESULTS}{picture}", markup=False)
