"""Which images a probe learns from and asks, and their features.

Letters: n training images, N held-out images, D values of a feature.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from efficient_mae.backbones import Backbone
from efficient_mae.data import LabelledData, Source, Subset, normalize
from efficient_mae.data.sources.labelled import labels_of
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics
from efficient_mae.tasks.classify.neighbours import Embed, Read

# Raw pixels of larger images are averaged to so many rows and columns: a judge of all would need a matrix of them.
MOST_PIXELS = 32


@dataclass(frozen=True)
class Features:
    """Features of the images of both parts that could be read.

    Attributes:
        name: of what made them.
        train: of training images.
        train_images: their numbers in the training part, ascending.
        test: of held-out images.
        test_images: their numbers in the held-out part, ascending.
    """

    name: str
    train: Float[np.ndarray, "n D"]
    train_images: Int64[np.ndarray, " n"]
    test: Float[np.ndarray, "N D"]
    test_images: Int64[np.ndarray, " N"]


def draw_subsets(
    data: LabelledData, labels: int | None, number: int, seed: int
) -> list[Int64[np.ndarray, " labels"]]:
    """Numbers of the training images of each label subset, ascending; stratified, by seed and labels alone.

    Args:
        labels: images of a subset; None takes all, once.
        number: of subsets.

    Raises:
        InputError: too few labels to draw each class, too many to leave each, or a class of a single image.
    """
    from sklearn.model_selection import StratifiedShuffleSplit  # which starts a thread

    classes = labels_of(data.train)
    if labels is None:
        return [np.arange(len(classes))]
    counts = np.bincount(classes, minlength=len(data.classes))
    used = int((counts > 0).sum())
    if 1 in counts:
        name = data.classes[int(np.flatnonzero(counts == 1)[0])]
        raise InputError(
            f"labels={labels}: class {name!r} has a single training image, and to draw subsets it needs two; null "
            "takes all images"
        )
    # The splitter wants an image of each class on either side.
    if not used <= labels <= len(classes) - used:
        raise InputError(
            f"labels={labels}: must lie between {used} and {len(classes) - used}, so that of the {len(classes)} "
            f"training images each of {used} classes is drawn and left; null takes all of them"
        )
    split = StratifiedShuffleSplit(number, train_size=labels, random_state=seed % 2**32)
    return [np.sort(chosen) for chosen, _ in split.split(np.zeros(len(classes)), classes)]


def read_features(
    name: str, data: LabelledData, wanted: Int64[np.ndarray, " n"], embed: Embed, read: Read
) -> Features:
    """Features of the wanted training images and of all held-out ones.

    Args:
        name: of what makes them.
        wanted: numbers of training images, ascending.
        embed: from images, as they are read, to features (B, D).
        read: gives the images, labels and numbers of a source, in batches.
    """
    train, places = _read(Subset(data.train, wanted), embed, read)
    test, test_images = _read(data.test, embed, read)
    return Features(name, train, wanted[places], test, test_images)


def _read(source: Source, embed: Embed, read: Read) -> tuple[np.ndarray, np.ndarray]:
    features, numbers = [], []
    with torch.no_grad():
        for images, _, indices in read(source):
            features.append(embed(images).float().cpu())
            numbers.append(indices)
    return torch.cat(features).numpy(), torch.cat(numbers).numpy()


def check_same_images(first: Features, second: Features) -> None:
    """Raise InputError unless both are of the same images: else no difference between them is one of encoders."""
    for part, one, other in (
        ("training", first.train_images, second.train_images),
        ("held-out", first.test_images, second.test_images),
    ):
        if not np.array_equal(one, other):
            raise InputError(
                f"{first.name} and {second.name} can read different {part} images, {len(one)} and {len(other)}: "
                "remove those that one of them can't"
            )


def pixel_features(statistics: ImageStatistics) -> Callable[[Tensor], Tensor]:
    """Images to their normalised pixels."""
    return partial(_pixels, statistics=statistics)


def _pixels(images: Tensor, statistics: ImageStatistics) -> Tensor:
    pixels = normalize(images, statistics.mean, statistics.std)
    height, width = (min(MOST_PIXELS, length) for length in pixels.shape[-2:])
    return F.adaptive_avg_pool2d(pixels, (height, width)).flatten(1)


def pixel_name(encoder: Backbone) -> str:
    """What raw pixels of the images that an encoder takes are called in a table."""
    height, width = encoder.img_size
    averaged = f" averaged to {MOST_PIXELS}" if max(height, width) > MOST_PIXELS else ""
    return f"raw pixels, {encoder.in_chans} x {height} x {width}{averaged}"
