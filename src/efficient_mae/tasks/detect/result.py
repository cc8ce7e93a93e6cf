"""What the judgement of a detector is: its figures, those of several seeds together, and how they are shown."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from efficient_mae.command import Result
from efficient_mae.tasks.detect.evaluation import Precision
from efficient_mae.tasks.intervals import Interval, mean_and_interval
from efficient_mae.tasks.seeds import RESULTS, common

# A picture of what a detector finds in some held-out images.
PICTURE = "figures/predictions.png"


@dataclass(frozen=True, kw_only=True)
class DetectResult(Result):
    """A detector, and how well it does on held-out images.

    Attributes:
        data, weights, epochs, seed: as given; weights are None from scratch.
        train_images: that it was trained on.
        test_images: that it was judged by.
        damaged: the reason, by name, of each held-out image that could not be read.
        left_out: what of the data is of no use, on a line each.
        classes: their names.
        box, mask: average precision.
        run: directory.
    """

    data: str
    weights: str | None
    epochs: int
    seed: int
    train_images: int
    test_images: int
    damaged: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    classes: list[str]
    box: Precision
    mask: Precision
    run: str

    @classmethod
    def of(cls, held: dict[str, Any]) -> "DetectResult":
        precisions: dict[str, Any] = {name: Precision(**held[name]) for name in ("box", "mask")}
        return cls(**held | precisions)


@dataclass(frozen=True, kw_only=True)
class DetectSeedsResult(Result):
    """What the detectors of several seeds say together; attributes as of :class:`DetectResult`, and `seeds`.

    Attributes:
        box_ap, box_ap50, box_ap75, mask_ap, mask_ap50, mask_ap75: as of :class:`Precision`; not there where nothing
            was to be found.
    """

    data: str
    weights: str | None
    epochs: int
    train_images: int
    test_images: int
    damaged: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    classes: list[str]
    seeds: list[int]
    box_ap: Interval | None = None
    box_ap50: Interval | None = None
    box_ap75: Interval | None = None
    mask_ap: Interval | None = None
    mask_ap50: Interval | None = None
    mask_ap75: Interval | None = None
    run: str


# Names of a precision's figures, and how they are shown.
PRECISIONS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "small": "small", "medium": "medium", "large": "large"}
_SUMMARISED = ("ap", "ap50", "ap75")


def summarise(out: Path, results: list[DetectResult]) -> DetectSeedsResult:
    """Means and intervals over the seeds' results."""
    intervals = {}
    for kind in ("box", "mask"):
        for name in _SUMMARISED:
            values = [getattr(getattr(one, kind), name) for one in results]
            if None not in values:
                intervals[f"{kind}_{name}"] = mean_and_interval(values)
    return DetectSeedsResult(left_out=results[0].left_out, run=str(out), **common(results), **intervals)


def show_detect(result: DetectResult | DetectSeedsResult, console: Console) -> None:
    """Print the precision and where the rest is."""
    table = Table("held-out", "boxes", "masks", title=f"{result.data}: {result.test_images:,} held-out images")
    several = isinstance(result, DetectSeedsResult)
    for name in _SUMMARISED if several else PRECISIONS:
        if several:
            found = [getattr(result, f"{kind}_{name}") for kind in ("box", "mask")]
        else:
            found = [getattr(getattr(result, kind), name) for kind in ("box", "mask")]
        table.add_row(PRECISIONS[name], *map(_shown, found))
    console.print(table)
    run = Path(result.run)
    picture = "" if several else f", {run / PICTURE}"
    console.print(f"per class and more: {run / RESULTS}{picture}", markup=False)


def _shown(value: float | Interval | None) -> str:
    if isinstance(value, Interval):
        return value.told(1)
    return "-" if value is None else f"{value:.1%}"
