"""The report of a run that learned with labels: its figures, and what the model makes of held-out images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efficient_mae.engine.machine.launcher import place
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.errors import InputError
from efficient_mae.report.curves import data_uri, loss_curve, svg_data_uri
from efficient_mae.report.page import render
from efficient_mae.report.run_files import RunFiles, read_run
from efficient_mae.tasks.seeds import RESULTS, read_result
from efficient_mae.tasks.segment.config import SegmentConfig
from efficient_mae.tasks.segment.result import FIGURES, SegmentResult, SegmentSeedsResult
from efficient_mae.tasks.segment.run import segment

# Pictures that the page shows, with what they are.
_PICTURES = {
    "figures/predictions.png": "Held-out images, their label maps, and the classes that were found",
    "confusion.png": "Which class is taken for which",
}


def segment_and_report(config: SegmentConfig) -> SegmentResult | SegmentSeedsResult:
    """Learn to segment, then write the report, of each seed's run."""
    result = segment(config)
    if place().rank == 0:
        out = Path(config.out)
        seeds = result.seeds if isinstance(result, SegmentSeedsResult) else None
        for run in [out] if seeds is None else [out / f"seed-{seed}" for seed in seeds]:
            write_segment_report(run)
    return result


def write_segment_report(folder: Path) -> Path:
    """Write `report.html` into the directory of a run of `emae segment`, and return where it is.

    Raises:
        InputError: no such directory, or a file in it that can't be understood.
        OSError: the page cannot be written.
    """
    run = read_run(folder)
    result = read_result(folder, SegmentResult) if (folder / RESULTS).is_file() else None
    for name in ("data", "weights"):
        if name not in run.settings:
            raise InputError(f"{folder}: its config.yaml doesn't say {name}, so it is of no segmentation")
    page = render(
        "predictions.html",
        run,
        command="segment",
        tiles=list(_tiles(run, result)),
        loss_curve=svg_data_uri(loss_curve(run.metrics)) if run.metrics else None,
        pictures=_pictures(folder),
        columns=["class", "IoU", "accuracy"],
        rows=[] if result is None else list(zip(result.classes, result.iou, result.accuracy, strict=True)),
    )
    replace_file(folder / "report.html", page.encode())
    return folder / "report.html"


def _tiles(run: RunFiles, result: SegmentResult | None) -> Iterator[tuple[str, str, str]]:
    """(heading, figure, remark) of what one wants to know first."""
    if result:
        for name, heading in FIGURES.items():
            yield heading.capitalize(), f"{getattr(result, name):.1%}", f"{result.test_images:,} held-out images"
    if run.metrics:
        first, last = run.metrics[0], run.metrics[-1]
        yield "Loss", f"{last['loss']:.4f}", f"from {first['loss']:.4f} at step {first['step']:,}"
        yield "Trained", f"{last['epoch']:.4g} epochs", f"{last['step']:,} steps"
    if run.skipped:
        yield "Steps skipped", f"{len(run.skipped):,}", "loss or gradient not finite; see emae replay"


def _pictures(folder: Path) -> list[tuple[str, Any]]:
    """(what it is, data URI) of those that are there."""
    files = ((folder / name, what) for name, what in _PICTURES.items())
    return [(what, data_uri(file.read_bytes(), "image/png")) for file, what in files if file.is_file()]
