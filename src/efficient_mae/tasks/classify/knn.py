"""k-nearest-neighbour classification on frozen features: what an encoder knows before anything is tuned."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from efficient_mae.command import Result
from efficient_mae.console import say
from efficient_mae.data import DataChoice, Subset, describe_images, open_labelled
from efficient_mae.data.sources.measure import ReadingSettings
from efficient_mae.engine.machine.distributed import find_device, resolve_precision
from efficient_mae.errors import InputError
from efficient_mae.interop import find_run_settings, load, load_statistics
from efficient_mae.methods import backbone_of
from efficient_mae.ranges import Location, NonNegativeInt, PositiveInt, Seed
from efficient_mae.tasks.classify.neighbours import classify
from efficient_mae.tasks.features import embed, labelled_batches, untrained

# Held-out images' pixels that are held at a time, in bytes: 14,000 images of 224 x 224.
HELD_PIXELS = 2**31


@dataclass(frozen=True, kw_only=True)
class KnnConfig(DataChoice, ReadingSettings):
    """Settings of `emae knn`."""

    weights: Location
    """run directory, checkpoint, export, timm:NAME, folder of timm's or transformers', .safetensors or .pth"""
    data: Location | None = None
    """labelled images with a held-out part (null: the run's own data)"""
    k: PositiveInt = 20
    """neighbours that vote"""
    pool: str = "avg"
    """feature of an image: avg, the mean of its patches' tokens, or token, its class token"""
    batch_size: PositiveInt = 256
    """images encoded at a time"""
    seed: Seed = 0
    """of the untrained encoder's weights"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    precision: str = "auto"
    """bf16, fp32, or auto: bf16 where the hardware computes in it"""
    num_workers: NonNegativeInt = 1
    """processes that read images"""


@dataclass(frozen=True, kw_only=True)
class KnnAccuracy:
    """Share of the held-out images that are classified rightly, 0 to 1, by kind of feature.

    Attributes:
        raw_pixels: of the image.
        untrained: features of an encoder of the same shape.
        trained: features of the encoder.
    """

    raw_pixels: float
    untrained: float
    trained: float


@dataclass(frozen=True, kw_only=True)
class KnnResult(Result):
    """How well neighbours classify.

    Attributes:
        weights: as given.
        data: that the images are of.
        k: neighbours that voted.
        pool: what a feature was.
        train_images: that could be read.
        test_images: held-out images that could be read.
        damaged: the reason, by name, of each image of either part that could not be.
        accuracy: on these.
    """

    weights: str
    data: str
    k: int
    pool: str
    train_images: int
    test_images: int
    damaged: dict[str, str]
    accuracy: KnnAccuracy


def knn(config: KnnConfig) -> KnnResult:
    """k-NN top-1 accuracy of raw pixels, of an untrained encoder and of the trained one, on held-out images.

    Memory is taken for the held-out images' features and for at most `HELD_PIXELS` of their pixels: where they have
    more, they are searched in parts, each by a pass of its own over the training images.

    Raises:
        InputError: no such weights or data, data without a held-out part, with images that have no label, or
            otherwise not as :func:`efficient_mae.data.open_labelled` wants them, too few training images, or
            too many of either part that can't be read.
    """
    encoder = backbone_of(load(config.weights))
    statistics = load_statistics(config.weights)
    device = find_device(config.device)
    settings = find_run_settings(config.weights) if config.data is None else {}
    spec = config.data or settings.get("data")
    if spec is None:
        raise InputError(f"{config.weights}: isn't a run directory, so its data is unknown; give --data")
    data = open_labelled(spec, choice=config.alone(settings))
    _check_k(config.k, len(data.train))
    reading = config.reading(data.train, encoder.in_chans, statistics.reading)
    say(describe_images(data.train, reading, encoder.img_size).text)
    precision = resolve_precision(config.precision, device)
    embeds = {
        name: partial(embed, model.to(device).eval(), statistics=statistics, precision=precision, pool=config.pool)
        for name, model in (("untrained", untrained(encoder, config.seed)), ("trained", encoder))
    }
    pixels = {"raw_pixels": partial(torch.flatten, start_dim=1)}
    damaged: dict[str, str] = {}
    read = partial(
        labelled_batches,
        encoder=encoder,
        reading=reading,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        device=device,
        damaged=damaged,
    )
    at_once = max(1, HELD_PIXELS // (math.prod((encoder.in_chans, *encoder.img_size)) * reading.dtype.itemsize))
    whole = len(data.test) <= at_once
    score = classify(data.train, data.test, pixels | embeds if whole else embeds, k=config.k, read=read)
    _check_k(config.k, score.train_images)
    for part, source, readable in (
        ("training", data.train, score.train_images),
        ("held-out", data.test, len(score.test_images)),
    ):
        if readable < len(source):
            say(f"left out {len(source) - readable:,} of {len(source):,} {part} images, which can't be read")
    accuracy = score.accuracy()
    if not whole:
        parts = score.test_images.split(at_once)
        say(f"raw pixels: held-out images in {len(parts)} parts, for each of which the training images are read anew")
        found = (
            classify(data.train, Subset(data.test, part.numpy()), pixels, k=config.k, read=read) for part in parts
        )
        accuracy = {"raw_pixels": sum(one.correct["raw_pixels"] for one in found) / len(score.test_images)} | accuracy
    return KnnResult(
        weights=config.weights,
        data=spec,
        k=config.k,
        pool=config.pool,
        train_images=score.train_images,
        test_images=len(score.test_images),
        damaged=dict(sorted(damaged.items())),
        accuracy=KnnAccuracy(**accuracy),
    )


def _check_k(k: int, images: int) -> None:
    if k > images:
        raise InputError(f"k={k}: must lie between 1 and the {images} training images")


def show_knn(result: KnnResult, console: Console) -> None:
    """Print what :func:`knn` found."""
    table = Table("features", "k-NN top-1", title=f"{result.data}: {result.test_images:,} held-out images")
    for name, accuracy in vars(result.accuracy).items():
        table.add_row(name.replace("_", " "), f"{accuracy:.2%}")
    console.print(table)
