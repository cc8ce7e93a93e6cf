"""GeoTIFFs as GDAL writes them, by the numbers that GDAL reads of them."""

import numpy as np
import pytest

from efficient_mae.data.images.formats import open_raster

rasterio = pytest.importorskip("rasterio")

COMPRESSIONS = (None, "lzw", "deflate", "packbits", "zstd", "lerc", "lerc_zstd", "lzma")
LAYOUTS = ({"tiled": True, "blockxsize": 32, "blockysize": 16}, {"blockysize": 7}, {"interleave": "band"})
KINDS = (
    ("uint16", 13, {}),
    ("uint16", 2, {"nbits": 12}),
    ("float32", 3, {"predictor": 3}),
    ("int8", 1, {}),
    ("uint32", 5, {"predictor": 2, "bigtiff": "YES"}),
    ("float32", 1, {"nbits": 16}),
    ("uint8", 5, {"nbits": 4}),
)


def write(kind: str, bands: int, driver: str = "GTiff", **options) -> tuple[bytes, np.ndarray]:
    """A file, and the numbers that GDAL reads of it, (bands, H, W)."""
    rng, shape = np.random.default_rng(0), (bands, 70, 90)
    highest = 16 if options.get("nbits") == 4 else 100
    array = rng.normal(0, 9, shape) if kind.startswith("float") else rng.integers(0, highest, shape)
    with rasterio.MemoryFile() as memory:
        size = {"count": bands, "height": shape[1], "width": shape[2]}
        with memory.open(driver=driver, dtype=kind, **size, **options) as file:
            file.write(array.astype(kind))
        content = memory.read()
    with rasterio.MemoryFile(content) as memory, memory.open() as file:
        return content, file.read()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_numbers_are_those_that_gdal_reads(compression: str | None):
    read = 0
    for layout in LAYOUTS:
        for kind, bands, options in KINDS:
            packed = "predictor" in options and compression not in ("lzw", "deflate", "zstd")
            if packed or ("nbits" in options and compression in ("lerc", "lerc_zstd")):
                continue  # GDAL doesn't write such
            how = {**layout, **options} if compression is None else {"compress": compression, **layout, **options}
            content, numbers = write(kind, bands, **how)
            raster = open_raster(content)
            assert raster is not None, (kind, how)
            whole, part = raster.window(0, 0, 70, 90), raster.window(33, 17, 30, 50)
            np.testing.assert_array_equal(np.moveaxis(whole, -1, 0), numbers, str((kind, how)))
            np.testing.assert_array_equal(part, whole[33:63, 17:67], str((kind, how)))
            read += 1
    assert read >= 6


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_overviews_and_tiles_that_are_not_stored():
    """A cloud-optimised file holds smaller copies of itself, and tiles of nothing may be left out."""
    content, numbers = write("uint16", 4, driver="COG", blocksize=128, overview_count=2, overviews="auto")
    raster = open_raster(content)
    assert raster is not None and raster.size == (90, 70)
    np.testing.assert_array_equal(np.moveaxis(raster.window(0, 0, 70, 90), -1, 0), numbers)
    with rasterio.MemoryFile() as memory:
        options = {"dtype": "uint16", "tiled": True, "blockxsize": 32, "blockysize": 32, "sparse_ok": True}
        with memory.open(driver="GTiff", count=1, height=64, width=64, **options) as file:
            file.write(np.full((1, 32, 32), 7, np.uint16), window=((32, 64), (0, 32)))
        raster = open_raster(memory.read())
    assert raster is not None
    seen = raster.window(0, 0, 64, 64)[..., 0]
    assert (seen[32:, :32] == 7).all() and seen.sum() == 7 * 32 * 32
    with rasterio.MemoryFile() as memory:
        options |= {"dtype": "float32", "nodata": -9999.0}
        with memory.open(driver="GTiff", count=1, height=64, width=64, **options) as file:
            file.write(np.full((1, 32, 32), 7, np.float32), window=((32, 64), (0, 32)))
        content = memory.read()
    with rasterio.MemoryFile(content) as memory, memory.open() as file:
        expected = file.read()
    raster = open_raster(content)
    assert raster is not None and (expected == -9999).sum() == 3 * 32 * 32
    np.testing.assert_array_equal(np.moveaxis(raster.window(0, 0, 64, 64), -1, 0), expected)
