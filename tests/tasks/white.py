"""Runs over images of which some are white, and infinite to the model: their steps can't be taken."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from efficient_mae.cli import main
from efficient_mae.data import ResumableBatchSampler, normalize
from efficient_mae.tasks import pretrain
from efficient_mae.tasks.classify import run as classifier_run
from efficient_mae.tasks.pretrain_config import PretrainConfig

from .conftest import TINY, write_images
from .labelled import stop_after_checkpoints

# 40 images in batches of 8: 5 steps an epoch.
SCHEDULE = {"epochs": 4, "batch_size": 8, "panel_every": 4, "log_every": 3, "checkpoint_every": 2, "seed": 25}
STEPS = 20
TIMINGS = {"images_per_second", "data_wait"}


def white_is_infinite(images: Tensor, mean, std) -> Tensor:
    """Pixels as they should be, but of a white image infinite."""
    white = (images == 255).flatten(1).all(dim=1)[:, None, None, None]
    return torch.where(white, torch.inf, normalize(images, mean, std))


@contextmanager
def whites_that_are_infinite() -> Iterator[None]:
    """To whatever trains in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (pretrain, classifier_run):
            patch.setattr(module, "normalize", white_is_infinite)
        yield


def write_with_white(folder: Path, *white: int) -> Path:
    """40 images, of which these are white."""
    write_images(folder, 40)
    for number in white:
        next(folder.glob(f"{number:03}.*")).unlink()
        Image.new("L", (20, 20), 255).save(folder / f"{number:03}.png")
    return folder


def config(data: Path, out: Path, **settings) -> PretrainConfig:
    return PretrainConfig(data=str(data), out=str(out), **(TINY | {"num_workers": 0} | SCHEDULE | settings))


def lines(file: Path) -> list[dict]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows]


def steps_with(white: set[int], seed: int, steps: int = STEPS) -> dict[int, list[tuple[int, int]]]:
    """By number, the steps that see a white image, and the (epoch, index) pairs of their samples."""
    batches = enumerate(islice(ResumableBatchSampler(40, 8, seed), steps), start=1)
    return {step: pairs for step, pairs in batches if white & {index for _, index in pairs}}


def weights(run: Path) -> bytes:
    return (run / "encoder.safetensors").read_bytes()


def stopped_after(checkpoints: int, settings: PretrainConfig) -> None:
    """Pre-train until so many checkpoints have been written."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedError):
        stop_after_checkpoints(patch, checkpoints)
        pretrain.pretrain(settings)


def replayed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    capsys.readouterr()
    assert main(["replay", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def bad(result: dict) -> list[str]:
    return [Path(sample["name"]).name for sample in result["samples"] if isinstance(sample["loss"], str)]
