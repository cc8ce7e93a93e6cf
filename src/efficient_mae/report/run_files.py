"""What a run left in its directory, read for its report."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficient_mae.engine.logging import read_metrics
from efficient_mae.engine.nonfinite import SKIPPED
from efficient_mae.engine.run_directory import read_settings
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
        settings=read_settings(folder),
        metrics=[row for row in read_metrics(folder / "metrics.jsonl") if "loss" in row],
        panels=sorted((folder / "figures").glob("panel-epoch-*.png")),
        encoder=encoder if encoder.is_file() else None,
        machine=_read_json(folder / "machine.json"),
        skipped=read_metrics(folder / SKIPPED),
        damaged=[(name, reason) for name, reason in _read_json(folder / "damaged.json") or []],
        knn=_read_json(folder / "knn.json"),
    )


def _read_json(file: Path) -> Any:
    """What a JSON file holds; None if there is no file."""
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{file}: not readable as JSON ({error}); remove it and write the report again") from None
