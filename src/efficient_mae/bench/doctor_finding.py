"""What a check of `emae doctor` is told, and what it says."""

from dataclasses import dataclass

import torch

from efficient_mae.data import DataChoice
from efficient_mae.data.sources.measure import ReadingSettings
from efficient_mae.tasks.pretrain_config import ModelChoice


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        status: ok; note, training runs but could do better; or problem, it can't run.
        found: what is so.
        advice: what to do about it; empty if nothing need be done.
    """

    status: str
    found: str
    advice: str = ""


def ok(found: str) -> Finding:
    """All is well."""
    return Finding("ok", found)


def note(found: str, advice: str) -> Finding:
    """Training runs, but could do better."""
    return Finding("note", found, advice)


def problem(found: str, advice: str) -> Finding:
    """Training can't run, or not to its end."""
    return Finding("problem", found, advice)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The training that is asked about.

    Attributes:
        settings: of the model.
        images: how they would be read.
        asked_device: as the user gave it.
        device: that it would run on.
        precision: `bf16` or `fp32`.
        data: what `--data` takes; None if not given.
        choice: of what the data hold.
        out: run directory.
        img_shape: channels, height and width of a crop.
        parameters: numbers that the model learns, and its fixed positions.
        batch_size: images of a step of one process.
        num_workers: of one process.
        keep_checkpoints: that stay on the disk.
    """

    settings: ModelChoice
    images: ReadingSettings
    asked_device: str
    device: torch.device
    precision: str
    data: str | None
    choice: DataChoice
    out: str
    img_shape: tuple[int, int, int]
    parameters: int
    batch_size: int
    num_workers: int
    keep_checkpoints: int

    @property
    def state_bytes(self) -> int:
        """Weights, gradients and AdamW's two moments, float32."""
        return 16 * self.parameters

    @property
    def checkpoint_bytes(self) -> int:
        """Weights and AdamW's two moments, float32."""
        return 12 * self.parameters


def in_bytes(count: float) -> str:
    """A number of bytes for a person: 1.3 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
