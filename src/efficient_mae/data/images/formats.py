"""Formats of image files that are read: PIL's, those that installed plugins teach it, and rasters'."""

from contextlib import suppress
from functools import cache
from importlib import import_module

from PIL import Image

from efficient_mae.data.images.rasters import EXTENSIONS

# EPS runs Ghostscript on the file's program, and training must not run what it should only read; the others
# are recognised by PIL but have no decoder.
_NOT_READ = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
# Libraries that, where they are installed, make a format known to PIL: HEIF, JPEG XL.
_PLUGINS = ("pi_heif.HeifImagePlugin", "pillow_heif.HeifImagePlugin", "pillow_jxl")


@cache
def formats() -> tuple[str, ...]:
    """PIL's names of the formats that are read; asked for when an image is, for PIL then loads its plugins."""
    Image.init()
    for plugin in _PLUGINS:
        with suppress(ImportError):
            import_module(plugin)
    return tuple(name for name in Image.OPEN if name not in _NOT_READ)


@cache
def extensions() -> frozenset[str]:
    """Endings of file names of these formats, and of rasters', lower case, without the dot."""
    names = formats()
    return EXTENSIONS | {end[1:] for end, name in Image.registered_extensions().items() if name in names}
