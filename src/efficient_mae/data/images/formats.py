"""Formats of image files that are read: PIL's, HEIF by its plugin, and rasters'."""

from __future__ import annotations

import io
import struct
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from efficient_mae.data.images.rasters import ArrayRaster, Raster, Undecoded, size_of
from efficient_mae.data.images.tiff import open_tiff

# EPS runs Ghostscript on the file's program, and training must not run what it should only read; the others
# are recognised by PIL but have no decoder.
_NOT_READ = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
_HEIF_ENDINGS = {"heic", "heif"}
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG, _NPY, _ZIP, _DICOM = b"\x89PNG\r\n\x1a\n", b"\x93NUMPY", b"PK\x03\x04", b"DICM"
_JPEG_2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_JPEG_XL = (b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a")
# HEIF's and AVIF's brands, one of which stands in a file's first box.
_HEIF, _AVIF = (b"heic", b"heix", b"heim", b"heis"), (b"avif", b"avis")
# Endings of files that hold arrays, images or not, and of all that are read as rasters and not by PIL.
ARRAYS = frozenset({"npy", "npz"})
_RASTERS = ARRAYS | {"dcm", "jxl"}
# Formats of which a part is read without the rest; a file of them is not read before it is asked for a window.
WINDOWED = frozenset({"npy", "tif", "tiff"})


@cache
def formats() -> tuple[str, ...]:
    """PIL's names of the formats that are read; asked for when an image is, for PIL then loads its plugins."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _NOT_READ)


@cache
def extensions() -> frozenset[str]:
    """Endings of file names of these formats, and of rasters', lower case, without the dot."""
    names = formats()
    return (
        _RASTERS | _HEIF_ENDINGS | {end[1:] for end, name in Image.registered_extensions().items() if name in names}
    )


def open_picture(data: bytes) -> Image.Image:
    """The picture in an image file, by its head.

    Raises:
        ImportError: what reads it isn't installed.
        Exception: whatever PIL and its plugins raise where it is damaged, or no picture.
    """
    if _has_brand(data, _HEIF):
        from pillow_heif.as_plugin import HeifImageFile  # not told to PIL, which others in this process use too

        return HeifImageFile(io.BytesIO(data))
    return Image.open(io.BytesIO(data), formats=formats())


def open_raster(data: bytes | Path) -> Raster | Undecoded | None:
    """The image in a file if it is one of numbers that a picture of 8 bits would not keep; None if it is a picture.

    Args:
        data: the file, or its content. No pixels are decoded but of JPEG XL, whose size nothing at hand reads alone.

    Raises:
        ImportError: what reads it isn't installed.
        Exception: whatever the libraries that read it raise where it is damaged, or holds no image.
    """
    head = data[:256] if isinstance(data, bytes) else _head(data)
    if head.startswith(_TIFF):
        return open_tiff(data)
    if head.startswith(_NPY):
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        return ArrayRaster(np.load(source, mmap_mode=None if isinstance(data, bytes) else "r", allow_pickle=False))
    if head.startswith(_ZIP):
        return _npz(_content(data))
    if head[128:132] == _DICOM:
        return _dicom(_content(data))
    if head.startswith(_PNG) and head[24:26] in (b"\x10\x02", b"\x10\x04", b"\x10\x06"):  # 16 bits, not grey alone
        return _coded("png_decode", _content(data))
    if head.startswith(_JPEG_2000) and _jpeg_2000_bits(head) > 8:
        return _coded("jpeg2k_decode", _content(data))
    if head.startswith(_JPEG_XL):
        return _jpeg_xl(_content(data))
    if _has_brand(head, _AVIF) and _avif_is_deep(_content(data)):
        return _coded("avif_decode", _content(data))
    if _has_brand(head, _HEIF):
        return _heif(_content(data))
    return None


def _has_brand(head: bytes, brands: tuple[bytes, ...]) -> bool:
    """Whether a file's first box has one of these names of formats."""
    return head[4:8] == b"ftyp" and any(brand in head[8:40] for brand in brands)


def _head(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(256)


def _content(data: bytes | Path) -> bytes:
    return data if isinstance(data, bytes) else data.read_bytes()


def _coded(decoder: str, data: bytes) -> Undecoded:
    def decode() -> Raster:
        import imagecodecs

        return ArrayRaster(getattr(imagecodecs, decoder)(data))

    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG2000", "AVIF")) as picture:
        return Undecoded(picture.size, decode)


def _jpeg_xl(data: bytes) -> Raster:
    import imagecodecs

    return ArrayRaster(imagecodecs.jpegxl_decode(data))


def _npz(data: bytes) -> Undecoded:
    with zipfile.ZipFile(io.BytesIO(data)) as arrays:
        names = [name.removesuffix(".npy") for name in arrays.namelist()]
        if len(names) != 1:
            raise ValueError(f"holds {len(names)} arrays ({', '.join(names[:5])}), not one")
        with arrays.open(arrays.namelist()[0]) as array:
            version = np.lib.format.read_magic(array)
            head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, _ = head(array)

    def decode() -> Raster:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return ArrayRaster(arrays[names[0]])

    return Undecoded(size_of(shape), decode)


def _dicom(data: bytes) -> Undecoded:
    import pydicom
    from pydicom.pixels.processing import apply_color_lut, apply_rescale
    from pydicom.pixels.utils import pixel_array

    file = pydicom.dcmread(io.BytesIO(data))

    def decode() -> Raster:
        values = pixel_array(file, index=0)  # of several pictures the first
        if file.PhotometricInterpretation == "PALETTE COLOR":
            return ArrayRaster(apply_color_lut(values, file))
        return ArrayRaster(apply_rescale(values, file), inverted=file.PhotometricInterpretation == "MONOCHROME1")

    return Undecoded((file.Columns, file.Rows), decode)


def _avif_is_deep(data: bytes) -> bool:
    """Whether a channel has 10 or 12 bits: a flag in the box `av1C`."""
    place = data.find(b"av1C")
    return place >= 0 and bool(data[place + 6] & 0x40)


def _heif(data: bytes) -> Undecoded | None:
    import pillow_heif

    file = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False)
    return Undecoded(file.size, lambda: ArrayRaster(np.asarray(file))) if file.info.get("bit_depth", 8) > 8 else None


def _jpeg_2000_bits(head: bytes) -> int:
    """Bits of a channel, of images of several; 8 for those of one, which PIL keeps."""
    # After the sides in the box `ihdr`; in a bare stream, after the marker's length and nine numbers.
    place = head.find(b"ihdr")
    channels, bits = struct.unpack_from(">HB", head, place + 12 if place >= 0 else 4 + 2 + 2 + 8 * 4)
    return 8 if channels == 1 else (bits & 0x7F) + 1
