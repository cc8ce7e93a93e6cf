"""Images that are no 8-bit pictures: numbers of any type in any number of bands, read by the window.

Bands, as mapping and remote sensing call channels, are numbered from 1. Letters: H and W height and width in pixels,
h and w those of a window, B bands.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Shaped
from PIL import Image

# Types that hold numbers which can be mapped to grey levels.
_NUMBERS = "biuf"


class Raster(ABC):
    """An image as numbers.

    Attributes:
        size: (width, height) in pixels.
        bands: B.
        dtype: of the numbers, as stored.
        inverted: whether the lowest number is white.
        nothing: the number that stands where nothing was measured, if the file says so (GDAL's in a TIFF).
    """

    size: tuple[int, int]
    bands: int
    dtype: np.dtype[Any]
    inverted = False
    nothing: float | None = None

    @abstractmethod
    def window(self, top: int, left: int, height: int, width: int) -> Shaped[np.ndarray, "h w B"]:
        """A part of the image. Whatever is wrong with the file may be raised."""

    @property
    def kind(self) -> str:
        """In words: `uint16, 13 bands`."""
        return f"{self.dtype}, {self.bands} bands" if self.bands != 1 else f"{self.dtype}, one band"


class ArrayRaster(Raster):
    """Of an array that is there, or mapped into memory from a file."""

    def __init__(self, values: np.ndarray, *, inverted: bool = False) -> None:
        """
        Args:
            values: (H, W) or (H, W, B).
            inverted: whether the lowest is white.

        Raises:
            ValueError: no numbers, or no image of them.
        """
        if values.dtype.kind not in _NUMBERS:
            raise ValueError(f"holds {values.dtype}, not numbers")
        self.size = size_of(values.shape)
        self._values = values if values.ndim == 3 else values[..., None]
        self.bands, self.dtype, self.inverted = self._values.shape[-1], values.dtype, inverted

    def window(self, top: int, left: int, height: int, width: int) -> Shaped[np.ndarray, "h w B"]:
        return np.asarray(self._values[top : top + height, left : left + width])


@dataclass(frozen=True)
class Undecoded:
    """An image of a format that is decoded whole, by its head.

    Attributes:
        size: (width, height) in pixels.
        decode: its numbers. Whatever is wrong with the file may be raised.
    """

    size: tuple[int, int]
    decode: Callable[[], Raster]


def of_picture(picture: Image.Image) -> Raster:
    """A picture's numbers, in as many bands as it has."""
    values = np.asarray(picture)
    return ArrayRaster(values.astype(values.dtype.newbyteorder("=")))


def size_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """(width, height) of an array; raises ValueError if it holds no image."""
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(f"is an array of shape {shape}, not (H, W) or (H, W, bands)")
    return shape[1], shape[0]
