"""TIFF files: of a page the window, of a page for each band the whole."""

from __future__ import annotations

import io
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped

from efficient_mae.data.images.rasters import ArrayRaster, Raster, Undecoded

if TYPE_CHECKING:  # imported where such a file is met
    import tifffile

# TIFF's numbers for extra samples that are alpha, planes that lie apart, grey whose 0 is white, and a palette.
_ALPHA, _SEPARATE, _MINISWHITE, _PALETTE = (1, 2), 2, 0, 3
# tifffile's letters for what lies between pages and is neither time nor depth: channels, samples, others.
_BANDS = "CSQ"


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


def open_tiff(data: bytes | Path) -> Raster | Undecoded | None:
    """The first image of a file, of as many pages as it has bands; None if it is a picture."""
    with _opened(data) as file:
        series = file.series[0]
        page: Any = series.keyframe
        axis = next((axis for axis in series.axes if axis in _BANDS), None)
        if axis is not None and len(series.pages) > 1 and page.samplesperpixel == 1:
            return Undecoded((page.imagewidth, page.imagelength), lambda: _of_pages(data, axis))
        return None if _is_picture(page) else _with_nodata(_of_page(page, data), page)


def _opened(data: bytes | Path) -> tifffile.TiffFile:
    import tifffile

    return tifffile.TiffFile(io.BytesIO(data) if isinstance(data, bytes) else data)


def _of_pages(data: bytes | Path, axis: str) -> Raster:
    """The first image of a file that has a page for each band, along this axis."""
    with _opened(data) as file:
        series = file.series[0]
        first = tuple(slice(None) if kept in ("Y", "X", axis) else 0 for kept in series.axes)
        order = [kept for kept in series.axes if kept in ("Y", "X", axis)]
        values = np.moveaxis(series.asarray()[first], order.index(axis), -1)
        return _with_nodata(ArrayRaster(values), series.keyframe)


def _of_page(page: Any, data: bytes | Path) -> Raster:
    import tifffile

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


def _with_nodata(raster: Raster, page: Any) -> Raster:
    with suppress(ValueError):  # GDAL writes a text
        raster.nothing = float(str(page.tags.valueof("GDAL_NODATA")).strip("\0 "))
    return raster


def _is_picture(page: tifffile.TiffPage) -> bool:
    """Whether it holds 8 bits of what PIL understands: grey, colours or inks, and no band but those and alpha."""
    if page.bitspersample != 1 and page.dtype != np.uint8:
        return False
    others = len(page.extrasamples)
    return others == 0 or (others == 1 and page.extrasamples[0] in _ALPHA)
