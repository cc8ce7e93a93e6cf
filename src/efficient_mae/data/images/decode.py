"""From the bytes of an image file to a picture: upright, in a mode that every later step understands.

A JPEG is opened first and decoded later, at the smallest scale that will do: what is made of it is chosen between
the two, from its size. Whatever is wrong with a file ends as one exception, `UnreadableImage`: the file and the
reason on one line.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, UnidentifiedImageError

from efficient_mae.console import printable
from efficient_mae.errors import InputError

# EPS runs Ghostscript on the file's program, and training must not run what it should only read; the others
# are recognised by PIL but have no decoder.
_NOT_READ = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# Scales at which a JPEG can be decoded, as divisors of its size: libjpeg shortens the cosine transforms.
REDUCTIONS = (8, 4, 2, 1)
# What turns stored pixels upright, by the EXIF standard's number.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


@cache
def formats() -> tuple[str, ...]:
    """PIL's names of the formats that are read; asked for when an image is, for PIL then loads its plugins."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _NOT_READ)


@cache
def extensions() -> frozenset[str]:
    """Endings of file names of these formats, lower case, without the dot."""
    return frozenset(end[1:] for end, name in Image.registered_extensions().items() if name in formats())


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


@dataclass(frozen=True)
class DecodedImage:
    """The pixels of an image, at its own scale or reduced.

    Attributes:
        image: upright.
        reduction: pixels of the image's own in one of `image`'s, along each side.
        offset: (x, y) at which the image begins in `image`, in the latter's pixels. A reduced image whose size the
            reduction doesn't divide ends in part of a pixel, and begins with it where EXIF turned it round.
    """

    image: Image.Image
    reduction: int = 1
    offset: tuple[float, float] = (0.0, 0.0)

    def box(self, left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        """A part of the image, given in its own pixels, in those of `image`."""
        (x, y), r = self.offset, self.reduction
        width, height = self.image.size
        return left / r + x, top / r + y, min(right / r + x, width), min(bottom / r + y, height)


class OpenedImage:
    """An image whose size is known; a JPEG's pixels are decoded when they are asked for.

    Attributes:
        name: the sample, as its source calls it.
        size: (width, height) in pixels, upright.
        num_bytes: length of its file; 0 if it came from none.
        jpeg: its file, if that is a JPEG; else None, and the pixels are there already.
        mode: PIL's mode of the stored pixels; YCbCr for a JPEG's usual colours.
        orientation: of a JPEG's stored pixels, 1 to 8, as EXIF numbers them.
    """

    def __init__(self, image: Image.Image, name: str, *, num_bytes: int = 0, jpeg: bytes | None = None) -> None:
        """
        Args:
            image: decoded and upright, or, with `jpeg`, just opened.
        """
        self.name, self.num_bytes, self.jpeg, self.mode = name, num_bytes, jpeg, image.mode
        self.orientation = 1 if jpeg is None else _orientation(image)
        if jpeg is not None and image.mode == "RGB" and image.info.get("adobe_transform") != 0:
            self.mode = "YCbCr"
        width, height = image.size
        self.size = (height, width) if self.orientation >= 5 else (width, height)
        self._image: Image.Image | None = image

    def decode(self, in_chans: int | None = None, reduction: int = 1) -> DecodedImage:
        """The pixels, in mode L, RGB or RGBA.

        Args:
            in_chans: convert them to 1, 3 or 4 channels (:func:`to_channels`); None leaves them as they are. Of a
                JPEG, grey is decoded alone.
            reduction: one of :data:`REDUCTIONS`, by which a JPEG is reduced; other images are not.

        Raises:
            UnreadableImage: it is damaged or cut short.
            InputError: another number of channels.
        """
        if self.jpeg is None and self._image is not None:
            return DecodedImage(self._image if in_chans is None else to_channels(self._image, in_chans))
        with _damage_named(self.name):
            image, self._image = self._image or Image.open(io.BytesIO(self.jpeg or b""), formats=formats()), None
            width, height = image.size
            mode, size = "L" if in_chans == 1 else image.mode, (width // reduction, height // reduction)
            if image.draft(mode, size) is None:
                reduction = 1
            image.load()
            # The image's end within the last pixel of `image`; 0 where the reduction divides its size.
            spare = image.width - width / reduction, image.height - height / reduction
            image = _plain(_upright(image, self.orientation))
        x, y = reversed(spare) if self.orientation >= 5 else spare
        offset = x if self.orientation in (2, 3, 6, 7) else 0.0, y if self.orientation in (3, 4, 7, 8) else 0.0
        return DecodedImage(image if in_chans is None else to_channels(image, in_chans), reduction, offset)


def read_regular(path: bytes | str, name: str) -> bytes:
    """The content of a file that is one: a device may have no end, a pipe no beginning.

    Raises:
        UnreadableImage: it is something else.
        OSError: it can't be read.
    """
    # Without O_NONBLOCK, opening a pipe that nobody writes to waits for ever.
    # Windows knows neither, but lines that end otherwise.
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, os.O_RDONLY | flags)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - pathlib has no names of arbitrary bytes
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnreadableImage(name, "not a file")
        return file.read()


def open_image(data: bytes, name: str) -> OpenedImage:
    """The first picture in an image file; a JPEG's header is read, any other format is decoded.

    Args:
        data: the file's content.
        name: what to call it in an error.

    Raises:
        UnreadableImage: it is no image, or holds more pixels than PIL's limit (`PIL.Image.MAX_IMAGE_PIXELS`), as a
            decompression bomb does; or, unless it is a JPEG, it is damaged or cut short.
    """
    with _damage_named(name, empty=not data):
        image = Image.open(io.BytesIO(data), formats=formats())
        if image.format in ("JPEG", "MPO"):
            return OpenedImage(image, name, num_bytes=len(data), jpeg=data)
        image.load()
        return OpenedImage(_plain(_upright(image, _orientation(image))), name, num_bytes=len(data))


def decode(data: bytes | io.BufferedIOBase, name: str) -> Image.Image:
    """The picture in an image file: its first frame, turned as EXIF says, in mode L, RGB or RGBA.

    Args:
        data: the file's content, or the file opened for reading in binary.
        name: what to call it in an error.

    Raises:
        UnreadableImage: it is no image, is damaged or cut short, or holds more pixels than PIL's limit
            (`PIL.Image.MAX_IMAGE_PIXELS`), as a decompression bomb does.
    """
    return open_image(data if isinstance(data, bytes) else data.read(), name).decode().image


def check_channels(in_chans: int) -> None:
    """Raise InputError unless images can be read as so many channels."""
    if in_chans not in MODES:
        raise InputError(f"in_chans={in_chans}: images can be read as 1 (grey), 3 (RGB) or 4 (RGBA) channels")


def to_channels(image: Image.Image, in_chans: int) -> Image.Image:
    """The image with 1 (grey), 3 (RGB) or 4 (RGBA) channels of 8 bits; transparency is laid on white for 1 and 3.

    Raises:
        InputError: for any other number of channels.
    """
    check_channels(in_chans)
    mode = MODES[in_chans]
    image = _plain(image)
    if image.mode == mode:
        return image
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(mode)


@contextmanager
def _damage_named(name: str, empty: bool = False) -> Iterator[None]:
    """Within, whatever PIL raises becomes UnreadableImage, and it warns of nothing."""
    try:
        with warnings.catch_warnings():
            # PIL warns of harmless oddities, once for each image of a million.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except UnidentifiedImageError:
        raise UnreadableImage(name, "empty" if empty else "not an image that can be read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(name, f"too many pixels: {_one_line(error)}") from None
    except Exception as error:  # PIL's decoders raise nearly everything: OSError, SyntaxError, struct.error, ...
        raise UnreadableImage(name, _one_line(error)) from None


def _orientation(image: Image.Image) -> int:
    """EXIF's number for how the pixels lie, 1 to 8. A damaged EXIF block leaves them as they lie."""
    with suppress(Exception):
        value = image.getexif().get(_ORIENTATION)
        return value if value in _TURNS else 1
    return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


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
