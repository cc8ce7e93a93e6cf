"""The report of a run that learned with labels: its figures, and what the model makes of held-out images."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from efficient_mae.engine.machine.launcher import place
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.errors import InputError
from efficient_mae.report.curves import data_uri, loss_curve, svg_data_uri
from efficient_mae.report.page import render
from efficient_mae.report.run_files import RunFiles, read_run
from efficient_mae.tasks.detect.config import DetectConfig
from efficient_mae.tasks.detect.result import PRECISIONS, DetectResult, DetectSeedsResult
from efficient_mae.tasks.detect.run import detect
from efficient_mae.tasks.seeds import RESULTS, read_result
from efficient_mae.tasks.segment.config import SegmentConfig
from efficient_mae.tasks.segment.result import FIGURES, SegmentResult, SegmentSeedsResult
from efficient_mae.tasks.segment.run import segment

# What the pictures that a page shows are, by the file.
_SEGMENTED = {
    "figures/predictions.png": "Held-out images, their label maps, and the classes that were found",
    "confusion.png": "Which class is taken for which",
}
_DETECTED = {"figures/predictions.png": "Held-out images, the objects that are there, and those that were found"}

# (heading, figure, remark) of what one wants to know first.
Tile = tuple[str, str, str]


def segment_and_report(config: SegmentConfig) -> SegmentResult | SegmentSeedsResult:
    """Learn to segment, then write the report, of each seed's run."""
    result = segment(config)
    seeds = result.seeds if isinstance(result, SegmentSeedsResult) else None
    for run in _runs(config.out, seeds):
        write_segment_report(run)
    return result


def detect_and_report(config: DetectConfig) -> DetectResult | DetectSeedsResult:
    """Learn to detect, then write the report, of each seed's run."""
    result = detect(config)
    seeds = result.seeds if isinstance(result, DetectSeedsResult) else None
    for run in _runs(config.out, seeds):
        write_detect_report(run)
    return result


def _runs(out: str, seeds: Sequence[int] | None) -> list[Path]:
    """The directories that this process writes reports in."""
    if place().rank:
        return []
    return [Path(out)] if seeds is None else [Path(out) / f"seed-{seed}" for seed in seeds]


def write_segment_report(folder: Path) -> Path:
    """Write `report.html` into the directory of a run of `emae segment`, and return where it is.

    Raises:
        InputError: no such directory, or a file in it that can't be understood.
        OSError: the page cannot be written.
    """
    run = read_run(folder)
    result = read_result(folder, SegmentResult) if (folder / RESULTS).is_file() else None
    tiles, rows = [], []
    if result is not None:
        remark = f"{result.test_images:,} held-out images"
        tiles = [(heading.capitalize(), f"{getattr(result, name):.1%}", remark) for name, heading in FIGURES.items()]
        rows = list(zip(result.classes, result.iou, result.accuracy, strict=True))
    return _write(run, "segment", tiles, _SEGMENTED, ["class", "IoU", "accuracy"], rows)


def write_detect_report(folder: Path) -> Path:
    """The same for the directory of a run of `emae detect`."""
    run = read_run(folder)
    result = read_result(folder, DetectResult) if (folder / RESULTS).is_file() else None
    tiles, rows = [], []
    if result is not None:
        for name, heading in PRECISIONS.items():
            box, mask = (getattr(one, name) for one in (result.box, result.mask))
            if box is not None and mask is not None:
                tiles.append((f"Box {heading}", f"{box:.1%}", f"of masks {mask:.1%}"))
        rows = list(zip(result.classes, result.box.per_class, result.mask.per_class, strict=True))
    return _write(run, "detect", tiles, _DETECTED, ["class", "AP of boxes", "AP of masks"], rows)


def _write(
    run: RunFiles, command: str, tiles: list[Tile], pictures: dict[str, str], columns: list[str], rows: list[Any]
) -> Path:
    for name in ("data", "weights"):
        if name not in run.settings:
            raise InputError(f"{run.folder}: its config.yaml doesn't say {name}, so it is of no emae {command}")
    page = render(
        "predictions.html",
        run,
        command=command,
        tiles=[*tiles, *_tiles(run)],
        loss_curve=svg_data_uri(loss_curve(run.metrics)) if run.metrics else None,
        pictures=_pictures(run.folder, pictures),
        columns=columns,
        rows=rows,
    )
    replace_file(run.folder / "report.html", page.encode())
    return run.folder / "report.html"


def _tiles(run: RunFiles) -> Iterator[Tile]:
    if run.metrics:
        first, last = run.metrics[0], run.metrics[-1]
        yield "Loss", f"{last['loss']:.4f}", f"from {first['loss']:.4f} at step {first['step']:,}"
        yield "Trained", f"{last['epoch']:.4g} epochs", f"{last['step']:,} steps"
    if run.skipped:
        yield "Steps skipped", f"{len(run.skipped):,}", "loss or gradient not finite; see emae replay"


def _pictures(folder: Path, pictures: dict[str, str]) -> list[tuple[str, Any]]:
    """(what it is, data URI) of those that are there."""
    files = ((folder / name, what) for name, what in pictures.items())
    return [(what, data_uri(file.read_bytes(), "image/png")) for file, what in files if file.is_file()]
