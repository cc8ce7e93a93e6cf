"""What is measured on images before training: the range of their numbers, and their channels' mean and deviation."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64

from efficient_mae.data.images.crops import Crop, cut
from efficient_mae.data.images.decode import OpenedImage, UnreadableImage, damage_named
from efficient_mae.data.images.reading import Reading
from efficient_mae.data.sources.describe import refuse_unsuited
from efficient_mae.data.sources.registry import Source
from efficient_mae.data.sources.subset import spread
from efficient_mae.errors import InputError
from efficient_mae.ranges import Finite, Positive, PositiveInt, Settings

# Windows that are looked at, of this side in pixels, spread over the images and, if these are fewer, within them.
_WINDOWS, _SIDE = 64, 256
# Share of the numbers, at each end, that may lie beyond the range: some are always outliers or no measurements.
_OUTLIERS = 0.001
# A number that stands where nothing was measured, but isn't named as such: it is the lowest or the highest, makes up
# more than this share, and lies off the others by more than this part of their range.
_SHARE, _GAP = 0.05, 0.1


@dataclass(frozen=True, kw_only=True)
class ReadingSettings(Settings):
    """Settings of a command that reads images."""

    value_range: tuple[Finite, ...] | Literal["measure"] | None = None
    """of images that aren't 8 bits, the numbers that a model sees as black and white: [LOW,HIGH], such two for each
    band, or measure, from the data (null: as the weights say, or such images are refused)"""
    bands: tuple[PositiveInt, ...] | None = None
    """bands of an image that the model sees, in this order, counted from 1 (null: as the weights say, or all)"""
    max_megapixels: Positive | None = None
    """largest image that is decoded, in millions of pixels, or crop of one in a TIFF or .npy, of which no more is;
    JPEGs are decoded as small as will do (null: as the weights say, or 89)"""

    def reading(self, source: Source, in_chans: int, given: Reading | None = None) -> Reading:
        """How images of a source are read; measured where that is asked for.

        Args:
            in_chans: of the model.
            given: how the weights' images were read, for what isn't set here.

        Raises:
            InputError: images of the source can't be read so.
        """
        given = given if given is not None and given.in_chans == in_chans else Reading(in_chans)
        bands = given.bands if self.bands is None else self.bands
        pixels = self.max_megapixels or given.max_megapixels
        numbers = given.value_range if self.value_range is None else self.value_range
        if isinstance(numbers, str):
            numbers = measure_range(source, Reading(in_chans, bands=bands, max_megapixels=pixels))
        reading = Reading(in_chans, numbers, bands, pixels)
        refuse_unsuited(source, reading)
        return reading


def measure_range(source: Source, reading: Reading) -> tuple[float, ...] | None:
    """Of images that aren't 8 bits, for each band that is taken, the numbers beyond which one in a thousand lies.

    Numbers that aren't finite, and those that a file says to stand where nothing was measured, don't count. Where
    such a number seems to stand unnamed, it counts, and a warning says so.

    Returns:
        None where all images that were looked at are of 8 bits, which need no range.

    Raises:
        InputError: images differ in their bands, or a band holds one number alone.
    """
    found: list[np.ndarray] = []
    for image, crop in _windows(source):
        with suppress(UnreadableImage), damage_named(image.name):  # to be named when it is read
            raster = image.numbers(reading.max_megapixels)
            if raster is None or raster.dtype in (np.uint8, np.bool_):
                continue
            values = raster.window(crop.top, crop.left, crop.height, crop.width)
            values = values if reading.bands is None else values[..., [band - 1 for band in reading.bands]]
            values = values[::2, ::2].reshape(-1, values.shape[-1]).astype(np.float64)
            values[~np.isfinite(values) | (values == raster.nothing)] = np.nan
            found.append(values)
    if not found:
        return None
    if len({values.shape[1] for values in found}) > 1:
        raise InputError(f"value_range=measure: images of {source.name} differ in their bands; give --bands")
    looked_at = np.concatenate(found)
    for number, values in enumerate(looked_at.T, 1):
        _name_unmeasured(values[~np.isnan(values)], f"band {number} of {source.name}")
    quantiles = np.nanquantile(looked_at, (_OUTLIERS, 1 - _OUTLIERS), axis=0)
    pairs = tuple((float(f"{low:.6g}"), float(f"{high:.6g}")) for low, high in quantiles.T)
    for number, (low, high) in enumerate(pairs, 1):
        if not low < high:
            raise InputError(
                f"value_range=measure: band {number} of {source.name} is {low:g} nearly everywhere; give a range"
            )
    return tuple(number for pair in pairs for number in pair)


def _name_unmeasured(values: Float64[np.ndarray, " N"], where: str) -> None:
    """Warn of a number among those of a band that may stand where nothing was measured."""
    for extreme in {values.min(), values.max()} if len(values) else ():
        others = values[values != extreme]
        low, high = np.quantile(others, (_OUTLIERS, 1 - _OUTLIERS)) if len(others) else (extreme, extreme)
        share, gap = 1 - len(others) / len(values), max(low - extreme, extreme - high)
        if share > _SHARE and high > low and gap > _GAP * (high - low):
            what = f"{share:.0%} of {where} are {extreme:g}, and the others {low:g} to {high:g}"
            mend = "if nothing was measured there, say so in the files (GDAL_NODATA), or give a range without it"
            warnings.warn(f"value_range=measure: {what}; {mend}", stacklevel=3)


def measure_statistics(source: Source, reading: Reading) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in 0 to 1.

    Raises:
        InputError: none of the images that were looked at can be read, or a channel is the same everywhere.
    """
    number, total, squares = 0, torch.zeros(reading.in_chans, dtype=torch.float64), 0.0
    for image, crop in _windows(source):
        with suppress(UnreadableImage):
            pixels = cut(image, [crop], reading, (crop.height, crop.width))[0].double().flatten(1)
            pixels = pixels if reading.dtype == torch.float32 else pixels / 255
            number += pixels.shape[1]
            total, squares = total + pixels.sum(dim=1), squares + pixels.square().sum(dim=1)
    if not number:
        raise InputError(f"mean, std: none of {source.name} that was looked at can be read")
    mean = total / number
    std = (squares / number - mean.square()).clamp(min=0).sqrt()
    if flat := (std < 1e-6).nonzero().flatten().tolist():
        raise InputError(f"std=measure: channel {flat[0] + 1} of {source.name} is the same everywhere; give numbers")
    return _rounded(mean.tolist()), _rounded(std.tolist())


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in values)


def _windows(source: Source) -> Iterator[tuple[OpenedImage, Crop]]:
    """Images, and places in them, which depend on the images' number and sizes alone."""
    sample = spread(source, _WINDOWS)
    places = np.random.default_rng(0)
    for index in range(len(sample)):
        with suppress(UnreadableImage):
            image = sample.open(index)
            for _ in range(-(-_WINDOWS // len(sample))):
                width, height = (min(_SIDE, side) for side in image.size)
                left, top = places.integers((image.size[0] - width + 1, image.size[1] - height + 1)).tolist()
                yield image, Crop(top, left, height, width, flip=False)
