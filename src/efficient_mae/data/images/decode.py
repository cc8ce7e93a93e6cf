"""From an image file to a picture of 8 bits, upright, in a mode that every later step understands, or to a raster.

An image is opened first and decoded later, a JPEG at the smallest scale that will do: what is made of it is chosen
between the two, from its size. Whatever is wrong with a file ends as one exception, `UnreadableImage`: the file and
the reason on one line.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from efficient_mae.console import printable
from efficient_mae.data.images.formats import WINDOWED, open_picture, open_raster
from efficient_mae.data.images.rasters import Raster, Undecoded, of_picture
from efficient_mae.data.images.reading import MAX_MEGAPIXELS, Reading, check_pixels
from efficient_mae.errors import InputError

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
    """An image whose size is known; its pixels are decoded when they are asked for.

    Attributes:
        name: the sample, as its source calls it.
        size: (width, height) in pixels, upright.
        num_bytes: length of its file; 0 if it came from none.
        jpeg: its file, if that is a JPEG; else None.
        mode: PIL's mode of the stored pixels, YCbCr for a JPEG's usual colours; empty for a raster.
        orientation: of stored pixels, 1 to 8, as EXIF numbers them.
    """

    def __init__(
        self, image: Image.Image | Raster | Undecoded, name: str, *, data: bytes = b"", num_bytes: int = 0
    ) -> None:
        """
        Args:
            image: opened from `data`, or there already and upright.
        """
        self.name, self.num_bytes, self._data = name, num_bytes or len(data), data
        self.jpeg: bytes | None = None
        self.orientation = 1
        self._image: Image.Image | None = None
        self._raster: Raster | Undecoded | None = None
        if not isinstance(image, Image.Image):
            self._raster, self.size, self.mode = image, image.size, ""
            return
        self._image, self.mode = image, image.mode
        if data:
            self.orientation = _orientation(image, data)
        if image.format in ("JPEG", "MPO"):
            self.jpeg = data
            if image.mode == "RGB" and image.info.get("adobe_transform") != 0:
                self.mode = "YCbCr"
        width, height = image.size
        self.size = (height, width) if self.orientation >= 5 else (width, height)

    def raster(self, reading: Reading) -> Raster | None:
        """The image as numbers, if it is no picture of 8 bits or is not read as one; else None.

        Raises:
            UnreadableImage: it is damaged, too large, or cannot be read so.
        """
        raster = self.numbers(reading.max_megapixels)
        with damage_named(self.name):
            if raster is None and (reading.bands is not None or reading.in_chans not in MODES):
                raster = of_picture(self.decode(max_megapixels=reading.max_megapixels).image)
            if raster is not None:
                reading.check(raster)
            return raster

    def numbers(self, max_megapixels: float = MAX_MEGAPIXELS) -> Raster | None:
        """The image as it is stored, unless it is a picture of 8 bits; raises UnreadableImage as :meth:`raster`."""
        with damage_named(self.name):
            if self._raster is None and self.mode.startswith(("F", "I")):  # PIL's for more than 8 bits
                self._raster = of_picture(self._load(1, self.mode, max_megapixels)[0])
            elif isinstance(self._raster, Undecoded):
                check_pixels(*self.size, max_megapixels)
                self._raster = self._raster.decode()
            return self._raster

    def decode(
        self, in_chans: int | None = None, reduction: int = 1, max_megapixels: float = MAX_MEGAPIXELS
    ) -> DecodedImage:
        """The pixels of a picture, in mode L, RGB or RGBA.

        Args:
            in_chans: convert them to 1, 3 or 4 channels (:func:`to_channels`); None leaves them as they are. Of a
                JPEG, grey is decoded alone.
            reduction: one of :data:`REDUCTIONS`, by which a JPEG is reduced; other images are not.
            max_megapixels: the most that are decoded, in millions.

        Raises:
            UnreadableImage: it is damaged or cut short, too large, or a raster.
            InputError: another number of channels.
        """
        raster = self.numbers(max_megapixels)
        with damage_named(self.name):
            if raster is not None:
                raise ValueError(f"{raster.kind}: no picture of 8 bits")
            mode = "L" if in_chans == 1 and self.jpeg is not None else self.mode
            image, reduction, (x, y) = self._load(reduction, mode, max_megapixels)
            image = _plain(image)
        offset = x if self.orientation in (2, 3, 6, 7) else 0.0, y if self.orientation in (3, 4, 7, 8) else 0.0
        return DecodedImage(image if in_chans is None else to_channels(image, in_chans), reduction, offset)

    def _load(self, reduction: int, mode: str, max_megapixels: float) -> tuple[Image.Image, int, tuple[float, float]]:
        """The pixels upright, by how much they are reduced, and where, along each side, the last one ends within."""
        if not self._data:
            assert self._image is not None
            return self._image, 1, (0.0, 0.0)
        image, self._image = self._image or open_picture(self._data), None
        width, height = image.size
        mode = image.mode if mode == "YCbCr" else mode
        if self.jpeg is None or image.draft(mode, (width // reduction, height // reduction)) is None:
            reduction = 1
        check_pixels(*image.size, max_megapixels)
        image.load()
        # The image's end within the last pixel of `image`; 0 where the reduction divides its size.
        spare = image.width - width / reduction, image.height - height / reduction
        upright = image.transpose(_TURNS[self.orientation]) if self.orientation in _TURNS else image
        return upright, reduction, (spare[1], spare[0]) if self.orientation >= 5 else spare


def read_regular(path: bytes | str, name: str, size: int = -1) -> bytes:
    """The content of a file that is one, or its first bytes: a device may have no end, a pipe no beginning.

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
        return file.read(size)


def open_image(data: bytes, name: str) -> OpenedImage:
    """The first picture in an image file, or its raster; a picture's header is read, and no more.

    Args:
        data: the file's content.
        name: what to call it in an error.

    Raises:
        UnreadableImage: it is no image, or one whose head is damaged.
    """
    with damage_named(name, empty=not data):
        if (raster := open_raster(data)) is not None:
            if data.startswith(b"\x89PNG") and _orientation(open_picture(data), data) != 1:
                raise ValueError("16 bits, to be turned as EXIF says: not read")
            return OpenedImage(raster, name, num_bytes=len(data))
    return _open_picture(data, name)


def _open_picture(data: bytes, name: str) -> OpenedImage:
    with damage_named(name, empty=not data):
        return OpenedImage(open_picture(data), name, data=data)


def open_file(path: bytes, name: str) -> OpenedImage:
    """The image in a file, as :func:`open_image`; of a format that is read by the window, no more than its head.

    Raises:
        UnreadableImage: it is no image, or one whose head is damaged, or no file.
        OSError: it can't be read.
    """
    if path.rpartition(b".")[2].lower().decode("latin-1") in WINDOWED:
        read_regular(path, name, 0)
        with damage_named(name):
            file = Path(os.fsdecode(path))
            if file.stat().st_size and (raster := open_raster(file)) is not None:
                return OpenedImage(raster, name, num_bytes=file.stat().st_size)
        return _open_picture(read_regular(path, name), name)
    return open_image(read_regular(path, name), name)


def decode(data: bytes | io.BufferedIOBase, name: str) -> Image.Image:
    """The picture in an image file: its first frame, turned as EXIF says, in mode L, RGB or RGBA.

    Args:
        data: the file's content, or the file opened for reading in binary.
        name: what to call it in an error.

    Raises:
        UnreadableImage: it is no image or a raster, is damaged or cut short, or holds more pixels than
            :data:`MAX_MEGAPIXELS`, as a decompression bomb does.
    """
    return open_image(data if isinstance(data, bytes) else data.read(), name).decode().image


def to_channels(image: Image.Image, in_chans: int) -> Image.Image:
    """The image with 1 (grey), 3 (RGB) or 4 (RGBA) channels of 8 bits; transparency is laid on white for 1 and 3.

    Raises:
        InputError: for any other number of channels.
    """
    if in_chans not in MODES:
        raise InputError(f"in_chans={in_chans}: a picture can be read as 1 (grey), 3 (RGB) or 4 (RGBA) channels")
    mode, image = MODES[in_chans], _plain(image)
    if image.mode == mode:
        return image
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(mode)


@contextmanager
def no_pixel_limit() -> Iterator[None]:
    """Within, PIL takes images of any size: `max_megapixels` is the limit here, where it is decoded."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def damage_named(name: str, empty: bool = False) -> Iterator[None]:
    """Within, whatever is raised becomes UnreadableImage, and libraries warn of nothing."""
    try:
        with warnings.catch_warnings(), no_pixel_limit():
            # Libraries warn of harmless oddities, once for each image of a million.
            warnings.simplefilter("ignore")
            yield
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(name, "empty" if empty else "not an image that can be read") from None
    except ModuleNotFoundError as error:
        raise UnreadableImage(name, f"{error.name} is needed to read it: pip install {error.name}") from None
    except Exception as error:  # decoders raise nearly everything: OSError, SyntaxError, struct.error, ...
        raise UnreadableImage(name, _one_line(error)) from None


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF's number for how the pixels lie, 1 to 8. A damaged EXIF block leaves them as they lie."""
    if image.format == "TIFF":
        return 1  # PIL turns it itself
    with suppress(Exception):
        exif = image.getexif() if image.format != "PNG" or "exif" in image.info else Image.Exif()
        if image.format == "PNG" and not exif and (place := data.rfind(b"eXIf")) > 0:  # behind the pixels
            exif.load(data[place + 4 : place + 4 + int.from_bytes(data[place - 4 : place], "big")])
        value = exif.get(_ORIENTATION)
        return value if value in _TURNS else 1
    return 1


def _plain(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB, or RGBA where it has transparency of any kind."""
    if image.mode in ("L", "RGB", "RGBA") and "transparency" not in image.info:
        return image
    if image.mode == "La":  # grey that is multiplied by its alpha, which PIL makes nothing else of
        image = image.convert("LA")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return printable(text) or type(error).__name__
