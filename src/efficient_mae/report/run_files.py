"""What a run left in its directory, read for its report."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficient_mae.engine.faults.nonfinite import SKIPPED
from efficient_mae.engine.logging import read_metrics
from efficient_mae.engine.storage.damage_log import read_damaged
from efficient_mae.engine.storage.plain_files import parse_json
from efficient_mae.engine.storage.run_directory import MACHINE, METRICS, read_settings
from efficient_mae.errors import InputError


@dataclass(frozen=True)
class RunFiles:
    """A run directory's files, as plain values; what is not there is None or empty.

    Attributes:
        folder: the run directory.
        settings: of config.yaml.
        metrics: rows of metrics.jsonl that tell of training; those of evaluations are left out.
        panels: pictures of reconstructions drawn in training, oldest first.
        encoder: the exported encoder, which is written when the run is finished.
        machine: of machine.json.
        skipped: rows of skipped.jsonl, of the steps whose loss or gradient was not finite.
        damaged: (name, reason) of the images that could not be read.
        knn: of knn.json, what `emae knn` returns.
    """

    folder: Path
    settings: dict[str, Any]
    metrics: list[dict[str, Any]]
    panels: list[Path]
    encoder: Path | None
    machine: dict[str, Any] | None
    skipped: list[dict[str, Any]]
    damaged: list[tuple[str, str]]
    knn: dict[str, Any] | None


def read_run(folder: Path) -> RunFiles:
    """Read a run directory; neither its weights nor its data are touched.

    Raises:
        InputError: not a run directory, or a file in it that cannot be understood.
    """
    encoder = folder / "encoder.safetensors"
    return RunFiles(
        folder=folder,
        settings=read_settings(folder).settings,
        metrics=_training_rows(folder / METRICS),
        panels=sorted((folder / "figures").glob("panel-epoch-*.png")),
        encoder=encoder if encoder.is_file() else None,
        machine=_read_json(folder / MACHINE, lambda machine: isinstance(machine, dict)),
        skipped=read_metrics(folder / SKIPPED),
        damaged=read_damaged(folder / "damaged.json"),
        knn=_read_json(folder / "knn.json", _is_knn),
    )


def _training_rows(file: Path) -> list[dict[str, Any]]:
    rows = [row for row in read_metrics(file) if "loss" in row]
    for row in rows:
        finite = all(math.isfinite(row[name]) for name in ("epoch", "lr") if _numbers(row, name))
        if not _numbers(row, *_FIGURES.intersection(row), "epoch", "loss", "lr") or not finite:
            raise InputError(f"{file}: the row of step {row['step']} holds no figures of training; remove it")
    return rows


# Of a row of metrics.jsonl, those that a report shows.
_FIGURES = frozenset({"step", "epoch", "loss", "lr", "images_per_second", "data_wait"})


def _is_knn(knn: Any) -> bool:
    return _numbers(knn, "k", "train_images", "test_images") and _numbers(
        knn.get("accuracy"), "raw_pixels", "untrained", "trained"
    )


def _numbers(values: Any, *names: str) -> bool:
    return isinstance(values, dict) and all(isinstance(values.get(name), int | float) for name in names)


def _read_json(file: Path, is_right: Callable[[Any], bool]) -> Any:
    """What a JSON file holds; None if there is no file."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    try:
        value = parse_json(content, str(file))
        if not is_right(value):
            raise InputError(f"{file}: holds something else than it should")
    except InputError as error:
        raise InputError(f"{error}; remove it and write the report again") from None
    return value
