"""Formats of image files that are read: PIL's, HEIF by its plugin, and rasters'."""

import io
from functools import cache

from PIL import Image

from efficient_mae.data.images.rasters import EXTENSIONS, HEIF, has_brand

# EPS runs Ghostscript on the file's program, and training must not run what it should only read; the others
# are recognised by PIL but have no decoder.
_NOT_READ = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
_HEIF_ENDINGS = {"heic", "heif"}


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
        EXTENSIONS | _HEIF_ENDINGS | {end[1:] for end, name in Image.registered_extensions().items() if name in names}
    )


def open_picture(data: bytes) -> Image.Image:
    """The picture in an image file, by its head.

    Raises:
        ImportError: what reads it isn't installed.
        Exception: whatever PIL and its plugins raise where it is damaged, or no picture.
    """
    if has_brand(data, HEIF):
        from pillow_heif.as_plugin import HeifImageFile  # not told to PIL, which others in this process use too

        return HeifImageFile(io.BytesIO(data))
    return Image.open(io.BytesIO(data), formats=formats())
