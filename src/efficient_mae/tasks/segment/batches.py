"""Crops of images and of their label maps: to learn from, and whole, to be judged on.

B images, C channels, H and W height and width of a crop in pixels, h and w those of an image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int16, Shaped
from torch import Tensor
from torchvision.transforms import v2

from efficient_mae.data import EvalBatch, EvalTransform, OpenedImage, Reading, Source, TrainBatch, TrainDataset
from efficient_mae.data.batches.datasets import EvalDataset
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.data.images.crops import Crop, cut
from efficient_mae.errors import InputError
from efficient_mae.tasks.segment.data import NOTHING, Labelling, MappedSource

# The longer side of a resized image is at most so many times the crop's shorter one: 2048 of 512.
LONGEST = 4
# Places that are tried for a crop in which one class does not take too much.
_TRIES = 10
# Hue of torchvision's photometric distortion, as mmsegmentation's: 18 of 180 steps.
_HUE = (-0.1, 0.1)


@dataclasses.dataclass
class MappedBatch(TrainBatch):
    """A training batch.

    Attributes:
        maps: class of each pixel, -1 for none.
    """

    maps: Int16[Tensor, "B H W"] = dataclasses.field(kw_only=True)


class _Distortion(v2.RandomPhotometricDistort):
    """torchvision's, which also permutes channels; the published recipe doesn't."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return super().make_params(flat_inputs) | {"channel_permutation": None}


@dataclass(frozen=True)
class SegmentTransform:
    """Random resizing, a crop of which one class does not take too much, a flip, and photometric distortion.

    The image is resized so that it fits in (4 S, S) times a random factor, S the crop's shorter side; what of the
    crop is beyond the image is of the mean colour and of no class.

    Attributes:
        img_size: (height, width) of a crop in pixels.
        reading: how images are read.
        mean: by channel, of pixels from 0 to 1.
        resize_range: of the factor, drawn evenly.
        class_share: that a crop's commonest class may have of its labelled pixels; ten places are tried.
        hflip: mirror every other crop, left to right.
        photometric: change brightness, contrast, saturation and hue, each of every other crop.

    Raises:
        InputError: photometric distortion of other images than grey or RGB.
    """

    img_size: tuple[int, int]
    reading: Reading
    mean: tuple[float, ...]
    resize_range: tuple[float, float]
    class_share: float
    hflip: bool
    photometric: bool

    def __post_init__(self) -> None:
        if self.photometric and self.reading.in_chans not in (1, 3):
            raise InputError(
                f"photometric=true: works on 1 or 3 channels, not {self.reading.in_chans}; set it to false"
            )

    def __call__(
        self, image: OpenedImage, numbers: Int16[np.ndarray, "h w"], rng: np.random.Generator
    ) -> tuple[Shaped[Tensor, "C H W"], Int16[Tensor, "H W"]]:
        """The same crop for the same image and the same state of `rng`; raises UnreadableImage."""
        low, high = self.resize_range
        scale = resize_factor(image.size, self.img_size, low + (high - low) * rng.random())
        (wanted_h, wanted_w), (w, h) = self.img_size, image.size
        (height, made_h), (width, made_w) = _cut(h, wanted_h, scale), _cut(w, wanted_w, scale)
        size = made_h, made_w
        top, left = self._place(numbers, height, width, rng)
        flip = self.hflip and bool(rng.random() < 0.5)
        pixels = cut(image, [Crop(top, left, height, width, flip)], self.reading, size)[0]
        part = torch.from_numpy(np.ascontiguousarray(numbers[top : top + height, left : left + width]))
        labels = F.interpolate(part[None, None].float(), size, mode="nearest-exact")[0, 0].to(torch.int16)
        labels = labels.flip(-1) if flip else labels
        if self.photometric:
            with torch_seeded(int(rng.integers(2**63))):
                pixels = _Distortion(hue=_HUE)(pixels)
        beyond = (0, wanted_w - size[1], 0, wanted_h - size[0])
        return pad(pixels, beyond, self.mean), F.pad(labels, beyond, value=NOTHING)

    def _place(
        self, numbers: Int16[np.ndarray, "h w"], height: int, width: int, rng: np.random.Generator
    ) -> tuple[int, int]:
        """Top and left of a part of this size, of which no class takes too much; the last tried if none was found."""
        top = left = 0
        for _ in range(_TRIES):
            top, left = rng.integers((numbers.shape[0] - height + 1, numbers.shape[1] - width + 1)).tolist()
            counts = np.bincount((numbers[top : top + height, left : left + width] - NOTHING).ravel())[1:]
            if np.count_nonzero(counts) > 1 and counts.max() < self.class_share * counts.sum():
                break
        return top, left


def _cut(side: int, wanted: int, scale: float) -> tuple[int, int]:
    """Pixels of a side that a crop takes, and how many they become: as many as are wanted, unless it has too few."""
    needed = max(1, round(wanted / scale))
    return (needed, wanted) if needed <= side else (side, max(1, min(wanted, round(side * scale))))


def resize_factor(size: tuple[int, int], img_size: tuple[int, int], factor: float = 1.0) -> float:
    """By which an image is resized so that its sides fit in (4 S, S) times a factor, S the crop's shorter side.

    Args:
        size: (width, height) of the image.
        img_size: (height, width) of the crop.
    """
    short = min(img_size) * factor
    return min(LONGEST * short / max(size), short / min(size))


def pad(
    pixels: Shaped[Tensor, "C _ _"], beyond: tuple[int, int, int, int], mean: Sequence[float]
) -> Shaped[Tensor, "C H W"]:
    """With the mean colour beyond (left, right, top, bottom): 0 when images are normalised, but for rounding."""
    if not any(beyond):
        return pixels
    bands = zip(pixels, mean, strict=True)
    if pixels.is_floating_point():
        return torch.stack([F.pad(band, beyond, value=value) for band, value in bands])
    return torch.stack([F.pad(band, beyond, value=round(255 * value)) for band, value in bands])


class MappedDataset(TrainDataset):
    """Makes training batches of images and label maps; arguments as for TrainDataset, and how maps number classes."""

    def __init__(
        self, source: MappedSource, transform: SegmentTransform, labelling: Labelling, seed: int, min_size: int
    ) -> None:
        super().__init__(source, None, seed, min_size=min_size)
        self._mapped, self._transform, self._labelling = source, transform, labelling

    def crop(self, index: int, epochs: Sequence[int], image: OpenedImage, number: int) -> Any:
        numbers = self._mapped.label_map(number, image, self._labelling)
        return [self._transform(image, numbers, rng) for rng in self.rngs(index, epochs)]

    def batch(self, crops: list[Any], **facts: Any) -> MappedBatch:
        images, maps = zip(*(pair for made in crops for pair in made), strict=True)
        return MappedBatch(images=torch.stack(images), maps=torch.stack(maps), **facts)


@dataclass(frozen=True)
class WholeImage:
    """An image to be judged on.

    Attributes:
        pixels: resized at each scale, one after another.
        size: (height, width) of the image itself.
        numbers: its label map; None where there is none.
    """

    pixels: list[Shaped[Tensor, "C _ _"]]
    size: tuple[int, int]
    numbers: Int16[np.ndarray, "h w"] | None


@dataclasses.dataclass
class WholeBatch(EvalBatch):
    """Images of any sizes; `images` is empty.

    Attributes:
        whole: each of them.
    """

    whole: list[WholeImage] = dataclasses.field(kw_only=True)


class WholeDataset(EvalDataset):
    """Makes batches of whole images, resized as in training by a factor of 1, or by others in turn.

    Args:
        source: of the images.
        img_size: (height, width) of the crop that the model takes.
        reading: how images are read.
        labelling: of their label maps; None reads none.
        scales: factors.
        min_size: an image with a side shorter than this, in pixels, is left out.
        indices: numbers of the images that are taken; None takes all.
    """

    def __init__(
        self,
        source: Source,
        img_size: tuple[int, int],
        reading: Reading,
        labelling: Labelling | None,
        scales: Sequence[float] = (1.0,),
        min_size: int = 1,
        indices: np.ndarray | None = None,
    ) -> None:
        super().__init__(source, EvalTransform(img_size, reading), min_size=min_size)
        self.labelling, self.scales = labelling, scales
        self.indices = np.arange(len(source)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, indices: Sequence[int]) -> EvalBatch:
        return super().__getitems__(self.indices[list(indices)].tolist())

    def read(self, image: OpenedImage, number: int) -> WholeImage:
        width, height = image.size
        numbers = None
        if self.labelling is not None and isinstance(self.source, MappedSource):
            numbers = self.source.label_map(number, image, self.labelling)
        whole, pixels = Crop(0, 0, height, width, flip=False), []
        for scale in self.scales:
            factor = resize_factor(image.size, self.transform.img_size, scale)
            size = max(1, round(height * factor)), max(1, round(width * factor))
            pixels.append(cut(image, [whole], self.transform.reading, size)[0])
        return WholeImage(pixels, (height, width), numbers)

    def batch(self, images: list[Any], **facts: Any) -> WholeBatch:
        return WholeBatch(images=torch.empty(0, *self.transform.shape), whole=images, **facts)
