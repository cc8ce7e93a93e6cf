"""From the bytes of an image file to a picture: upright, in a mode that every later step understands.

Whatever is wrong with a file ends as one exception, `UnreadableImage`: the file and the reason on one line.
"""

from __future__ import annotations

import io
import os
import warnings
from contextlib import suppress
from typing import IO, cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from efficient_mae.data.names import printable
from efficient_mae.errors import InputError

Image.init()
# EPS runs Ghostscript on the file's program, and training must not run what it should only read; the others
# are recognised by PIL but have no decoder.
FORMATS = tuple(name for name in Image.OPEN if name not in {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"})
# Endings of file names, lower case, without the dot.
EXTENSIONS = frozenset(end[1:] for end, name in Image.registered_extensions().items() if name in FORMATS)
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class UnreadableImage(InputError):  # noqa: N818 - it is what the file is
    """An image that cannot be used.

    Attributes:
        name: the sample, as its source calls it.
        reason: what is wrong with it, on one line.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str, str]]:
        return type(self), (self.name, self.reason)


def decode(data: bytes | io.BufferedIOBase, name: str) -> Image.Image:
    """The picture in an image file: its first frame, turned as EXIF says, in mode L, RGB or RGBA.

    Args:
        data: the file's content, or the file opened for reading in binary.
        name: what to call it in an error.

    Raises:
        UnreadableImage: it is no image, is damaged or cut short, or holds more pixels than PIL's limit
            (`PIL.Image.MAX_IMAGE_PIXELS`), as a decompression bomb does.
    """
    file = cast(IO[bytes], io.BytesIO(data) if isinstance(data, bytes) else data)
    try:
        with warnings.catch_warnings():
            # PIL warns of harmless oddities, once for each image of a million.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
            image.load()
            # A damaged EXIF block takes nothing from the pixels: the image stays as it lies.
            with suppress(Exception):
                ImageOps.exif_transpose(image, in_place=True)
            return _plain(image)
    except UnidentifiedImageError:
        size = file.seek(0, os.SEEK_END)
        raise UnreadableImage(name, "not an image that can be read" if size else "empty") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(name, f"too many pixels: {_one_line(error)}") from None
    except Exception as error:  # PIL's decoders raise nearly everything: OSError, SyntaxError, struct.error, ...
        raise UnreadableImage(name, _one_line(error)) from None


def to_channels(image: Image.Image, in_chans: int) -> Image.Image:
    """The image with 1 (grey), 3 (RGB) or 4 (RGBA) channels of 8 bits; transparency is laid on white for 1 and 3.

    Raises:
        InputError: for any other number of channels.
    """
    if in_chans not in MODES:
        raise InputError(f"in_chans={in_chans}: images can be read as 1 (grey), 3 (RGB) or 4 (RGBA) channels")
    mode = MODES[in_chans]
    image = _plain(image)
    if image.mode == mode:
        return image
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(mode)


def _plain(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB, or RGBA where it has transparency of any kind."""
    if image.mode in ("L", "RGB", "RGBA") and "transparency" not in image.info:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Deep grey values as 8 bits. PIL's own conversion clips at 255, which turns a 16-bit image white.

    Integers span 0 to 65,535 (PIL widens 16-bit files to 32 bits for some formats). Floats have no fixed span;
    the two in use are told apart by the largest value: 0 to 1, or 0 to 255.
    """
    if values.dtype.kind == "f":
        values = np.nan_to_num(values)
        scale = 255.0 if values.max() <= 1 else 1.0
    else:
        scale = 255 / 65535
    return (values * scale).clip(0, 255).round().astype(np.uint8)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return printable(text) or type(error).__name__
