"""A picture of what a trained model makes of an image it sees a small part of."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from efficient_mae.command import Result
from efficient_mae.data import EvalTransform, normalize
from efficient_mae.data.images.decode import open_file
from efficient_mae.engine.machine.distributed import find_device
from efficient_mae.errors import InputError
from efficient_mae.interop import load_statistics, load_whole
from efficient_mae.ranges import Location, PositiveInt, Seed, Settings
from efficient_mae.tasks.panels import draw_panel


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig(Settings):
    """Settings of `emae reconstruct`."""

    weights: Location
    """run directory or checkpoint: a model with its decoder"""
    image: Location
    """image file, in any format that training reads"""
    out: Location = "reconstruction.png"
    """picture to write"""
    show_bands: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """channels to show as red, green and blue, from 1 (null: the first)"""
    masks: PositiveInt = 3
    """random masks to try, a row each"""
    seed: Seed = 0
    """of the masks"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""


@dataclass(frozen=True, kw_only=True)
class ReconstructResult(Result):
    """What a model makes of an image.

    Attributes:
        picture: file.
        loss: mean over the masks; None where these leave nothing to predict.
    """

    picture: str
    loss: float | None


def reconstruct(config: ReconstructConfig) -> ReconstructResult:
    """Hide patches of an image at random, reconstruct them, and write a picture of it.

    Raises:
        InputError: no such weights or image, weights without a decoder, or an image smaller than a patch.
    """
    model = load_whole(config.weights)
    statistics = load_statistics(config.weights)
    device = find_device(config.device)
    file, picture = Path(config.image), Path(config.out)
    if not file.is_file():
        raise InputError(f"image={config.image}: no such file")
    if not picture.parent.is_dir():
        raise InputError(f"out={config.out}: {picture.parent} is no directory; make it first")
    image = open_file(os.fsencode(file), config.image)
    described = model.config
    if config.show_bands is not None and max(config.show_bands) > described.in_chans:
        raise InputError(f"show_bands={list(config.show_bands)}: the model has {described.in_chans} channels")
    if min(image.size) < described.patch_size:
        width, height = image.size
        raise InputError(
            f"image={config.image}: {width} x {height} pixels are less than a patch of "
            f"{described.patch_size} x {described.patch_size}; give a larger image"
        )
    pixels = EvalTransform(described.img_size, statistics.reading)(image)[None].to(device)
    images = normalize(pixels, statistics.mean, statistics.std).expand(config.masks, -1, -1, -1).contiguous()
    layout = model.plan(config.masks, generator=torch.Generator().manual_seed(config.seed))
    with torch.no_grad():
        out = model.to(device)(images, layout)
    loss = out.loss.item() if len(out.errors) else None
    if (
        draw_panel(model, images, layout, statistics, title=file.name, colours=config.show_bands, path=picture)
        is None
    ):
        raise InputError(f"weights={config.weights}: a model of {described.method} predicts no pixels to draw")
    return ReconstructResult(picture=str(picture), loss=loss)


def show_reconstruct(result: ReconstructResult, console: Console) -> None:
    """Print what :func:`reconstruct` did."""
    loss = "nothing to predict" if result.loss is None else f"mean loss {result.loss:.4f}"
    console.print(f"{result.picture}  ({loss})", markup=False)
