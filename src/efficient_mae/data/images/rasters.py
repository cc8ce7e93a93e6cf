"""Images that are no 8-bit pictures: numbers of any type in any number of bands, read by the window.

Bands, as mapping and remote sensing call channels, are numbered from 1. Letters: H and W height and width in pixels,
h and w those of a window, B bands.
"""

from __future__ import annotations

import io
import struct
from abc import ABC, abstractmethod
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Shaped
from PIL import Image

if TYPE_CHECKING:  # imported where such a file is met
    import tifffile

# Types that hold numbers which can be mapped to grey levels.
_NUMBERS = "biuf"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG, _NPY, _ZIP, _DICOM = b"\x89PNG\r\n\x1a\n", b"\x93NUMPY", b"PK\x03\x04", b"DICM"
_JPEG_2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_JPEG_XL = (b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a")
# HEIF's and AVIF's brands, one of which stands in a file's first box.
HEIF, _AVIF = (b"heic", b"heix", b"heim", b"heis"), (b"avif", b"avis")
# Endings of files that hold arrays, images or not, and of all that are read here and not by PIL.
ARRAYS = frozenset({"npy", "npz"})
EXTENSIONS = ARRAYS | {"dcm", "jxl"}
# Formats of which a part is read without the rest; a file of them is not read before it is asked for a window.
WINDOWED = frozenset({"npy", "tif", "tiff"})
# TIFF's numbers for extra samples that are alpha, planes that lie apart, grey whose 0 is white, and a palette.
_ALPHA, _SEPARATE, _MINISWHITE, _PALETTE = (1, 2), 2, 0, 3
# tifffile's letters for what lies between pages and is neither time nor depth: channels, samples, others.
_BANDS = "CSQ"


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
        if values.ndim not in (2, 3) or not values.size:
            raise ValueError(f"is an array of shape {values.shape}, not (H, W) or (H, W, bands)")
        self._values = values if values.ndim == 3 else values[..., None]
        height, width, self.bands = self._values.shape
        self.size, self.dtype, self.inverted = (width, height), values.dtype, inverted

    def window(self, top: int, left: int, height: int, width: int) -> Shaped[np.ndarray, "h w B"]:
        return np.asarray(self._values[top : top + height, left : left + width])


class TiffRaster(Raster):
    """Of a page of a TIFF file, of which the strips or tiles that a window needs are decoded."""

    def __init__(self, page: tifffile.TiffPage, file: Path | bytes) -> None:
        """
        Args:
            page: of a file that is open now; it may be closed then.
            file: where it lies.
        """
        self._file = file
        self.size, self.bands = (page.imagewidth, page.imagelength), page.samplesperpixel
        self.dtype = np.dtype(bool) if page.bitspersample == 1 else np.dtype(page.dtype)
        self.inverted = page.photometric == _MINISWHITE
        self._tile = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        self._planes = self.bands if page.planarconfig == _SEPARATE else 1
        self._segments = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        self._decode = page.decode
        self._unstored = page.nodata  # as GDAL has it; 0 if the file names none
        self._tables = {} if page.jpegtables is None else {"jpegtables": page.jpegtables}

    def window(self, top: int, left: int, height: int, width: int) -> Shaped[np.ndarray, "h w B"]:
        (down, across), (whole_width, whole_height) = self._tile, self.size
        rows, columns = -(-whole_height // down), -(-whole_width // across)
        values = np.full((height, width, self.bands), self._unstored, self.dtype)
        with io.BytesIO(self._file) if isinstance(self._file, bytes) else self._file.open("rb") as file:
            for plane, row, column in product(
                range(self._planes), _touched(top, height, down), _touched(left, width, across)
            ):
                segment = self._segment(file, (plane * rows + row) * columns + column)
                if segment is None:
                    continue
                (y, to_y), (x, to_x) = _shared(top, height, row * down), _shared(left, width, column * across)
                bands = slice(plane, plane + 1) if self._planes > 1 else slice(None)
                taken = segment[y, x]
                part = values[to_y, to_x, bands][: taken.shape[0], : taken.shape[1]]
                part[:] = taken[: part.shape[0], : part.shape[1]]
        return values

    def _segment(self, file: io.IOBase, index: int) -> np.ndarray | None:
        """A strip or tile, (rows, columns, samples); None where none is stored."""
        offset, size = self._segments[index]
        if not size:
            return None
        file.seek(offset)
        segment, _, _ = self._decode(file.read(size), index, **self._tables)
        return None if segment is None else segment[0]


def _touched(start: int, length: int, step: int) -> range:
    """The pieces of this length, end to end from 0, that a stretch lies in."""
    return range(start // step, -(-(start + length) // step))


def _shared(start: int, length: int, piece: int) -> tuple[slice, slice]:
    """What a stretch takes of a piece that begins at `piece`, and where it puts that."""
    return slice(max(start - piece, 0), start + length - piece), slice(max(piece - start, 0), length)


def open_raster(data: bytes | Path) -> Raster | None:
    """The image in a file if it is one of numbers that a picture of 8 bits would not keep; None if it is a picture.

    Args:
        data: the file, or its content. Only of formats that are read by the window is more than the head read.

    Raises:
        ImportError: what reads it isn't installed.
        Exception: whatever the libraries that read it raise where it is damaged, or holds no image.
    """
    head = data[:256] if isinstance(data, bytes) else _head(data)
    if head.startswith(_TIFF):
        return _tiff(data)
    if head.startswith(_NPY):
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        return ArrayRaster(np.load(source, mmap_mode=None if isinstance(data, bytes) else "r", allow_pickle=False))
    if head.startswith(_ZIP):
        return _npz(_content(data))
    if head[128:132] == _DICOM:
        return _dicom(_content(data))
    if head.startswith(_PNG) and head[24:26] in (b"\x10\x02", b"\x10\x04", b"\x10\x06"):  # 16 bits, not grey alone
        return _decoded("png_decode", data)
    if head.startswith(_JPEG_2000) and _jpeg_2000_bits(head) > 8:
        return _decoded("jpeg2k_decode", data)
    if head.startswith(_JPEG_XL):
        return _decoded("jpegxl_decode", data)
    if has_brand(head, _AVIF) and _avif_is_deep(_content(data)):
        return _decoded("avif_decode", data)
    if has_brand(head, HEIF):
        return _heif(_content(data))
    return None


def has_brand(head: bytes, brands: tuple[bytes, ...]) -> bool:
    """Whether a file's first box has one of these names of formats."""
    return head[4:8] == b"ftyp" and any(brand in head[8:40] for brand in brands)


def _head(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(256)


def _content(data: bytes | Path) -> bytes:
    return data if isinstance(data, bytes) else data.read_bytes()


def _decoded(decoder: str, data: bytes | Path) -> Raster:
    import imagecodecs

    return ArrayRaster(getattr(imagecodecs, decoder)(_content(data)))


def _tiff(data: bytes | Path) -> Raster | None:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data) if isinstance(data, bytes) else data) as file:
        raster, page = _first_of(file, data), cast(Any, file.series[0].keyframe)
        if raster is not None:
            with suppress(ValueError):  # GDAL writes a text
                raster.nothing = float(str(page.tags.valueof("GDAL_NODATA")).strip("\0 "))
        return raster


def _first_of(file: tifffile.TiffFile, data: bytes | Path) -> Raster | None:
    """The first image of an opened file, of as many pages as it has bands; None if it is a picture."""
    import tifffile

    series = file.series[0]
    page: Any = series.keyframe
    axis = next((axis for axis in series.axes if axis in _BANDS), None)
    if axis is not None and len(series.pages) > 1 and page.samplesperpixel == 1:  # a page for each band
        first = tuple(slice(None) if kept in ("Y", "X", axis) else 0 for kept in series.axes)
        order = [kept for kept in series.axes if kept in ("Y", "X", axis)]
        return ArrayRaster(np.moveaxis(series.asarray()[first], order.index(axis), -1))
    if _is_picture(page):
        return None
    if page.dtype is None or page.imagedepth != 1 or page.tags.valueof("Orientation", 1) != 1:
        raise ValueError("a TIFF of a kind that is not read: of unknown numbers, with depth, or to be turned")
    if page.photometric == _PALETTE:
        raise ValueError("a TIFF of a kind that is not read: a palette of more than 256 colours")
    if isinstance(data, Path) and page.is_memmappable:
        values = tifffile.memmap(data, page=page.index, mode="r")
        separate = page.planarconfig == _SEPARATE and values.ndim == 3
        inverted = page.photometric == _MINISWHITE
        return ArrayRaster(np.moveaxis(values, 0, -1) if separate else values, inverted=inverted)
    return TiffRaster(page, data)


def _is_picture(page: tifffile.TiffPage) -> bool:
    """Whether it holds 8 bits of what PIL understands: grey, colours or inks, and no band but those and alpha."""
    if page.bitspersample != 1 and page.dtype != np.uint8:
        return False
    others = len(page.extrasamples)
    return others == 0 or (others == 1 and page.extrasamples[0] in _ALPHA)


def _npz(data: bytes) -> Raster:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        if len(arrays.files) != 1:
            raise ValueError(f"holds {len(arrays.files)} arrays ({', '.join(arrays.files[:5])}), not one")
        return ArrayRaster(arrays[arrays.files[0]])


def _dicom(data: bytes) -> Raster:
    import pydicom
    from pydicom.pixels.processing import apply_color_lut, apply_rescale

    file = pydicom.dcmread(io.BytesIO(data))
    values = file.pixel_array
    if int(getattr(file, "NumberOfFrames", 1) or 1) > 1:
        values = values[0]
    if file.PhotometricInterpretation == "PALETTE COLOR":
        return ArrayRaster(apply_color_lut(values, file))
    return ArrayRaster(apply_rescale(values, file), inverted=file.PhotometricInterpretation == "MONOCHROME1")


def _avif_is_deep(data: bytes) -> bool:
    """Whether a channel has 10 or 12 bits: a flag in the box `av1C`."""
    place = data.find(b"av1C")
    return place >= 0 and bool(data[place + 6] & 0x40)


def _heif(data: bytes) -> Raster | None:
    import pillow_heif

    file = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False)
    return ArrayRaster(np.asarray(file)) if file.info.get("bit_depth", 8) > 8 else None


def _jpeg_2000_bits(head: bytes) -> int:
    """Bits of a channel, of images of several; 8 for those of one, which PIL keeps."""
    # After the sides in the box `ihdr`; in a bare stream, after the marker's length and nine numbers.
    place = head.find(b"ihdr")
    channels, bits = struct.unpack_from(">HB", head, place + 12 if place >= 0 else 4 + 2 + 2 + 8 * 4)
    return 8 if channels == 1 else (bits & 0x7F) + 1


def of_picture(picture: Image.Image) -> Raster:
    """A picture's numbers, in as many bands as it has."""
    values = np.asarray(picture)
    return ArrayRaster(values.astype(values.dtype.newbyteorder("=")))
