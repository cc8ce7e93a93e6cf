"""Random parts of an image, cut out and resized: where they lie, and their pixels.

Where a crop lies is drawn from the image's size alone, before anything is decoded; so of a large JPEG only as much
is decoded as the crop needs. Letters: R crops of an image, C channels, H and W height and width in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from efficient_mae.data.images.decode import REDUCTIONS, OpenedImage, damage_named, no_pixel_limit
from efficient_mae.data.images.rasters import Raster
from efficient_mae.data.images.reading import Reading, check_pixels

# Pixels that a reduced JPEG keeps for each of a crop's result, along each side. At 1, crops of 224 pixels differ from
# those of the whole image by up to 2 levels of 255 in the mean; at 1.5 by up to 1.3, in 5 % more time at 12 MP.
_OVERSAMPLING = 1.5


@dataclass(frozen=True)
class Crop:
    """A part of an image, in the image's pixels, and whether it is mirrored left to right."""

    top: int
    left: int
    height: int
    width: int
    flip: bool

    def reduction(self, height: int, width: int) -> int:
        """The most that a JPEG may be reduced by to serve a result of this size; 1 where it has pixels too few."""
        ratio = min(self.height / height, self.width / width) / _OVERSAMPLING
        return next((reduction for reduction in REDUCTIONS if reduction <= ratio), 1)


def random_resized_crop_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """A random part of an image, distributed as in torchvision's RandomResizedCrop.

    Args:
        height, width: the image's size in pixels.
        scale: bounds of the part's share of the image's area.
        ratio: bounds of its width / height, drawn evenly in the logarithm.

    Returns:
        (top, left, height, width) in pixels. After ten draws that do not fit, the largest central part whose
        shape is within `ratio`.
    """
    area = height * width
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        target = area * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1))
            return top, left, h, w
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def cut(
    image: OpenedImage, crops: Collection[Crop], reading: Reading, size: tuple[int, int]
) -> Shaped[Tensor, "R C H W"]:
    """The pixels of crops of an image: of a picture, decoded once at the smallest scale that serves them all; of a
    raster their windows, and no more.

    Args:
        size: (height, width) of each crop's result.

    Returns:
        As `reading` says, uint8 or float32 from 0 to 1.

    Raises:
        UnreadableImage: the image turns out to be damaged, or cannot be read so.
    """
    boxes = [(crop.left, crop.top, crop.left + crop.width, crop.top + crop.height) for crop in crops]
    raster = image.raster(reading)
    if raster is not None:
        with damage_named(image.name):
            resized = [resize_raster(raster, reading, box, size, alone=True) for box in boxes]
    else:
        reduction = min(crop.reduction(*size) for crop in crops)
        decoded = image.decode(reading.in_chans, reduction, reading.max_megapixels)
        resized = [as_read(resize(decoded.image, decoded.box(*box), size), reading) for box in boxes]
    return torch.stack([one.flip(-1) if crop.flip else one for one, crop in zip(resized, crops, strict=True)])


def as_read(pixels: UInt8[Tensor, "C H W"], reading: Reading) -> Shaped[Tensor, "C H W"]:
    """A picture's pixels, among those of rasters."""
    return pixels if reading.dtype == torch.uint8 else pixels / 255


def resize_raster(
    raster: Raster, reading: Reading, box: tuple[float, float, float, float], size: tuple[int, int], *, alone: bool
) -> Shaped[Tensor, "C H W"]:
    """A part of a raster in another size, by antialiased bicubic interpolation of what a model sees of it.

    Args:
        box: (left, top, right, bottom) in pixels of the image.
        size: (height, width) of the result.
        alone: what lies beyond the box, which is of whole pixels then, is not weighed in.

    Returns:
        As `reading` says, uint8 or float32 from 0 to 1.
    """
    (left, top, right, bottom), (height, width) = box, size
    margin = 0 if alone else math.ceil(3 * max(1, (right - left) / width, (bottom - top) / height))
    x, y = max(0, math.floor(left) - margin), max(0, math.floor(top) - margin)
    to_x, to_y = min(raster.size[0], math.ceil(right) + margin), min(raster.size[1], math.ceil(bottom) + margin)
    check_pixels(to_x - x, to_y - y, reading.max_megapixels)
    pixels = reading.pixels(raster.window(y, x, to_y - y, to_x - x), raster)
    if alone:
        if pixels.shape[1:] != size:
            pixels = interpolate(pixels[None], size, mode="bicubic", antialias=True)[0]
    else:
        place = (left - x, top - y, right - x, bottom - y)
        bands = (Image.fromarray(band.numpy()) for band in pixels)
        resized = [band.resize((width, height), Image.Resampling.BICUBIC, box=place) for band in bands]
        pixels = torch.from_numpy(np.stack([np.asarray(band) for band in resized]))
    return pixels.clamp(0, 1) if pixels.is_floating_point() else pixels


def resize(
    image: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int]
) -> UInt8[Tensor, "C H W"]:
    """A part of an image in another size, by antialiased bicubic interpolation.

    PyTorch resizes RGB four times as fast as Pillow. Pillow does the rest: parts that begin or end within a pixel,
    and transparency, by which it weighs the colours.

    Args:
        box: (left, top, right, bottom) in pixels of the image.
        size: (height, width) of the result.
    """
    height, width = size
    left, top, right, bottom = map(int, box)
    if image.mode != "RGB" or (left, top, right, bottom) != box:
        return to_tensor(image.resize((width, height), Image.Resampling.BICUBIC, box=box))
    with no_pixel_limit():
        part = image.crop((left, top, right, bottom))
    pixels = torch.from_numpy(np.array(part)).permute(2, 0, 1)
    return interpolate(pixels[None], size, mode="bicubic", antialias=True)[0]


def to_tensor(image: Image.Image) -> UInt8[Tensor, "C H W"]:
    """The pixels of an image of one or more 8-bit channels."""
    pixels = np.array(image)
    if pixels.ndim == 2:
        return torch.from_numpy(pixels[None])
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
