"""How an image's numbers become what a model sees: which bands, and which numbers are its darkest and its brightest.

B bands of an image, C channels of a model, h and w height and width in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Shaped, UInt8
from torch import Tensor

from efficient_mae.data.images.rasters import Raster
from efficient_mae.errors import InputError
from efficient_mae.ranges import Finite, Positive, PositiveInt, Settings

# Pixels of the largest image that is decoded, in millions: PIL's limit, for a small file can claim to be huge.
MAX_MEGAPIXELS = 89.0
# Shares of light, ITU-R BT.601, by which PIL makes RGB grey.
_LUMA = (0.299, 0.587, 0.114)


class UnsuitedError(Exception):
    """An image's numbers are of a type or in bands that a reading has no place for."""


def megapixels(width: int, height: int) -> float:
    """Millions of pixels, of which `max_megapixels` is the most."""
    return width * height / 1e6


def check_pixels(width: int, height: int, max_megapixels: float) -> None:
    """Raise ValueError where so many pixels are not to be decoded."""
    if megapixels(width, height) > max_megapixels:
        raise ValueError(f"too many pixels: {width:,} x {height:,}, and max_megapixels is {max_megapixels:g}")


@dataclass(frozen=True)
class Reading(Settings):
    """How images are read.

    Attributes:
        in_chans: C.
        value_range: of images that aren't 8 bits, the number that a model sees as 0 and the one that it sees as 1,
            for all bands, or so for each that is taken, one after another. Numbers beyond are as these, and what is
            not a number as the first. Pixels are float32 then, those of 8-bit images divided by 255; without it they
            are uint8, and images of other types refused.
        bands: that are taken, in this order, counted from 1; None takes all. An alpha channel is a band then.
        max_megapixels: largest image that is decoded, in millions of pixels, as it is decoded: a JPEG may be reduced,
            and of formats that are read by the window it is the largest window. JPEG XL is decoded before its size is
            known.

    Raises:
        InputError: bands, or numbers of the range, that are not as many as are needed, or a range whose second
            number is not greater than its first.
    """

    in_chans: PositiveInt
    value_range: tuple[Finite, ...] | None = None
    bands: tuple[PositiveInt, ...] | None = None
    max_megapixels: Positive = MAX_MEGAPIXELS

    def __post_init__(self) -> None:
        super().__post_init__()
        for low, high in self.pairs:
            if not low < high:
                raise InputError(f"value_range=[{low:g},{high:g}]: the first number must be less than the second")
        wanted = len(self.bands or range(self.in_chans))
        if self.value_range is not None and len(self.value_range) not in (2, 2 * wanted):
            raise InputError(
                f"value_range: {len(self.value_range)} numbers for {wanted} bands; give two, or two for each"
            )
        if self.bands is not None and len(self.bands) not in (1, self.in_chans):
            raise InputError(
                f"bands={list(self.bands)}: {len(self.bands)} for in_chans={self.in_chans}; give one, or as many"
            )

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """The numbers of `value_range`, two and two."""
        numbers = self.value_range or ()
        return list(zip(numbers[::2], numbers[1::2], strict=False))

    @property
    def is_plain(self) -> bool:
        """Whether pictures of 8 bits are read as such, by their colours."""
        return self.value_range is None and self.bands is None

    @property
    def dtype(self) -> torch.dtype:
        """Of pixels."""
        return torch.uint8 if self.value_range is None else torch.float32

    def check(self, raster: Raster) -> None:
        """Raise UnsuitedError, with what would do, unless these numbers can be read so."""
        if self.bands is not None and max(self.bands) > raster.bands:
            raise UnsuitedError(f"{raster.kind}: there is no band {max(self.bands)} (--bands)")
        taken = raster.bands if self.bands is None else len(self.bands)
        if taken != self.in_chans and (taken, self.in_chans) not in ((1, 3), (3, 1)):
            several = ",".join(map(str, range(1, min(self.in_chans, taken) + 1)))
            raise UnsuitedError(
                f"{raster.kind}, for in_chans={self.in_chans}: --in_chans {taken} takes all, "
                f"--bands {several}{',...' if self.in_chans > taken else ''} those"
            )
        if raster.dtype not in (np.uint8, np.bool_) and self.value_range is None:
            raise UnsuitedError(
                f"{raster.kind}: --value_range says which numbers are black and white ([0,4095], or measure)"
            )

    def pixels(self, values: Shaped[np.ndarray, "h w B"], raster: Raster) -> Shaped[Tensor, "C h w"]:
        """A window's numbers as pixels: float32 from 0 to 1 with a `value_range`, else uint8.

        Args:
            raster: where they are from; it has passed :meth:`check`.
        """
        if self.bands is not None:
            values = values[..., [band - 1 for band in self.bands]]
        if self.value_range is None:
            shades = values.astype(np.uint8) * (255 if values.dtype == np.bool_ else 1)
            return self._channels(torch.from_numpy(np.ascontiguousarray(shades.transpose(2, 0, 1))), 255, raster)
        if values.dtype in (np.uint8, np.bool_):
            low, high = np.zeros(1), np.full(1, 255.0 if values.dtype == np.uint8 else 1.0)
        else:
            low, high = np.array(self.pairs, dtype=np.float64).T
        # In float64, where all integers of 32 bits are; a difference of large ones would be lost in float32.
        shares = np.nan_to_num((values - low) / (high - low), nan=0.0).clip(0, 1).astype(np.float32)
        return self._channels(torch.from_numpy(np.ascontiguousarray(shares.transpose(2, 0, 1))), 1, raster)

    def _channels(
        self, pixels: Float32[Tensor, "B h w"] | UInt8[Tensor, "B h w"], white: int, raster: Raster
    ) -> Shaped[Tensor, "C h w"]:
        """The bands as channels: one repeated for three, three weighed for one."""
        if raster.inverted:
            pixels = white - pixels
        if len(pixels) == self.in_chans:
            return pixels
        if len(pixels) == 1:
            return pixels.expand(self.in_chans, -1, -1)
        grey = torch.tensordot(torch.tensor(_LUMA), pixels.float(), dims=1)[None]
        return grey if pixels.is_floating_point() else grey.round().to(pixels.dtype)
