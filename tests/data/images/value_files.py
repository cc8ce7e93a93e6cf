"""Files of every type, number of bands and container, how they are read, and what must be seen of them or said.

They are made by tifffile, imagecodecs, PIL, numpy and pydicom; what must be seen is worked out from the arrays.
"""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from efficient_mae.data import Reading

HEIGHT, WIDTH = 40, 56
LUMA = np.array([0.299, 0.587, 0.114])


def values(dtype: Any, bands: int, low: float, high: float) -> np.ndarray:
    """Smooth and different in every band, from `low` to `high`; (H, W, bands)."""
    y, x, band = np.ogrid[:HEIGHT, :WIDTH, :bands]
    shares = (x / (WIDTH - 1) + y / (HEIGHT - 1) + band / max(1, bands - 1)) / 3
    return (low + (high - low) * shares / shares.max()).astype(dtype)


def tiff(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    if array.shape[-1] == 1:
        array = array[..., 0]
    elif options.setdefault("planarconfig", "contig") == "separate":
        array = np.moveaxis(array, -1, 0)
    tifffile.imwrite(file, array, **{"photometric": "minisblack", **options})
    return file.getvalue()


def pil(array: np.ndarray, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(file, kind, **options)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def png16(array: np.ndarray) -> bytes:
    """Of 16 bits a channel, which PIL doesn't write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, bands = array.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def jpeg2000(array: np.ndarray) -> bytes:
    import imagecodecs

    return imagecodecs.jpeg2k_encode(array, level=0, reversible=True)


def jpeg_xl(array: np.ndarray, **options: Any) -> bytes:
    import imagecodecs

    return imagecodecs.jpegxl_encode(array, lossless=True, **options)


def avif(array: np.ndarray, bits: int) -> bytes:
    import imagecodecs

    return imagecodecs.avif_encode(array, bitspersample=bits, level=100)


def heif(array: np.ndarray) -> bytes:
    """Without loss: RGB of 8 bits, or of 10."""
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    if array.dtype == np.uint16:
        picture = pillow_heif.from_bytes("RGB;16", (WIDTH, HEIGHT), (array << 6).tobytes())
    else:
        picture = pillow_heif.from_pillow(Image.fromarray(array))
    picture.save(file, quality=-1, chroma=444, matrix_coefficients=0)
    return file.getvalue()


def dicom(stored: np.ndarray, **facts: Any) -> bytes:
    pydicom = pytest.importorskip("pydicom")
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = "1.2.3"
    file.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    file.Rows, file.Columns, file.SamplesPerPixel = *stored.shape[:2], 1
    file.BitsAllocated = file.BitsStored = 8 * stored.dtype.itemsize
    file.HighBit, file.PixelRepresentation = file.BitsStored - 1, int(stored.dtype.kind == "i")
    file.PhotometricInterpretation = "MONOCHROME2"
    for name, value in facts.items():
        setattr(file, name, value)
    file.PixelData = stored.tobytes()
    saved = io.BytesIO()
    pydicom.dcmwrite(saved, file, enforce_file_format=True)
    return saved.getvalue()


def share(array: np.ndarray, low: Any, high: Any) -> np.ndarray:
    """What a model sees: 0 at `low`, 1 at `high`, a pair for all bands or one each."""
    return ((array.astype(np.float64) - low) / (np.asarray(high, np.float64) - low)).clip(0, 1)


def grey(seen: np.ndarray, bands: int = 3) -> np.ndarray:
    return np.repeat(seen, bands, axis=-1)


U16, F32, I16, U32 = (
    values(*what)
    for what in (("u2", 1, 100, 4000), ("f4", 1, 200, 2500), ("i2", 1, -1000, 3000), ("u4", 1, 1e5, 4e9))
)
RGB10 = values("u2", 3, 0, 1023)
RGB16, BANDS13, RGB32 = values("u2", 3, 0, 65535), values("u2", 13, 50, 9000), values("f4", 3, -2, 2)
BANDS4, BANDS5 = values("u1", 4, 0, 255), values("u1", 5, 0, 255)
HOLES = np.where(np.indices((HEIGHT, WIDTH)).sum(0)[..., None] % 7 == 0, np.nan, F32)
UNIT = values("f4", 1, 0, 1)
ALMOST_UNIT = UNIT * np.float32(1.0001)

Row = tuple[str, bytes, Reading, np.ndarray]
TWELVE = (0, 4095)
# Of each file its name, its content, how it is read, and what is seen, from 0 to 1; in uint8 where no range is given.
READ: dict[str, Row] = {
    "12 bits in PNG": ("a.png", pil(U16, "PNG"), Reading(1, TWELVE), share(U16, 0, 4095)),
    "12 bits in PNG as RGB": ("a.png", pil(U16, "PNG"), Reading(3, TWELVE), grey(share(U16, 0, 4095))),
    **{
        f"12 bits in TIFF, {name}": ("a.tif", tiff(U16, **options), Reading(1, TWELVE), share(U16, 0, 4095))
        for name, options in {
            "plain": {},
            "big-endian": {"byteorder": ">"},
            "BigTIFF": {"bigtiff": True},
            "strips": {"rowsperstrip": 7},
            "LZW": {"compression": "lzw", "rowsperstrip": 7},
            "deflate with predictor": {"compression": "zlib", "predictor": True},
            "zstd": {"compression": "zstd"},
            "LERC": {"compression": "lerc"},
            "tiles": {"tile": (16, 32)},
            "LZW tiles": {"tile": (32, 16), "compression": "lzw"},
        }.items()
    },
    "uint16, white is 0": ("a.tif", tiff(U16, photometric="miniswhite"), Reading(1, TWELVE), 1 - share(U16, 0, 4095)),
    "uint16 in PGM": (
        "a.pgm",
        pil(values("i4", 1, 0, 65535), "PPM"),
        Reading(1, (0, 65535)),
        share(values("i4", 1, 0, 65535), 0, 65535),
    ),
    "uint32": ("a.tif", tiff(U32), Reading(1, (0, 4294967295)), share(U32, 0, 4294967295)),
    "int16": ("a.tif", tiff(I16), Reading(1, (-1000, 3000)), share(I16, -1000, 3000)),
    "int16, a window": ("a.tif", tiff(I16), Reading(1, (-160, 240)), share(I16, -160, 240)),
    "int8": (
        "a.tif",
        tiff(values("i1", 1, -100, 100)),
        Reading(1, (-128, 127)),
        share(values("i1", 1, -100, 100), -128, 127),
    ),
    "int32": (
        "a.tif",
        tiff(values("i4", 1, -9e5, 9e5)),
        Reading(1, (-1e6, 1e6)),
        share(values("i4", 1, -9e5, 9e5), -1e6, 1e6),
    ),
    "heights": ("a.tif", tiff(F32), Reading(1, (0, 3000)), share(F32, 0, 3000)),
    "floats to 1": ("a.tif", tiff(UNIT), Reading(1, (0, 1)), share(UNIT, 0, 1)),
    "floats to 1.0001": ("a.tif", tiff(ALMOST_UNIT), Reading(1, (0, 1)), share(ALMOST_UNIT, 0, 1)),
    "floats by PIL": ("a.tif", pil(UNIT, "TIFF"), Reading(1, (0, 1)), share(UNIT, 0, 1)),
    "float16": ("a.tif", tiff(UNIT.astype("f2")), Reading(1, (0, 1)), share(UNIT.astype("f2"), 0, 1)),
    "float64": ("a.tif", tiff(F32.astype("f8")), Reading(1, (0, 3000)), share(F32, 0, 3000)),
    "floats with holes": ("a.tif", tiff(HOLES), Reading(1, (200, 2500)), np.nan_to_num(share(HOLES, 200, 2500))),
    "z-scores": ("a.tif", tiff(RGB32), Reading(3, (-3, 3)), share(RGB32, -3, 3)),
    "z-scores, a plane each": (
        "a.tif",
        tiff(RGB32, planarconfig="separate"),
        Reading(3, (-3, 3)),
        share(RGB32, -3, 3),
    ),
    "RGB of 16 bits in TIFF": (
        "a.tif",
        tiff(RGB16, photometric="rgb"),
        Reading(3, (0, 65535)),
        share(RGB16, 0, 65535),
    ),
    "RGB of 16 bits in PNG": ("a.png", png16(RGB16), Reading(3, (0, 65535)), share(RGB16, 0, 65535)),
    "RGB of 16 bits as grey": (
        "a.png",
        png16(RGB16),
        Reading(1, (0, 65535)),
        (share(RGB16, 0, 65535) @ LUMA)[..., None],
    ),
    "RGB of 16 bits in JPEG 2000": ("a.jp2", jpeg2000(RGB16), Reading(3, (0, 65535)), share(RGB16, 0, 65535)),
    "grey of 16 bits in JPEG 2000": ("a.jp2", jpeg2000(U16[..., 0]), Reading(1, TWELVE), share(U16, 0, 4095)),
    "grey and alpha of 16 bits": (
        "a.png",
        png16(RGB16[..., :2]),
        Reading(1, (0, 65535), (1,)),
        share(RGB16[..., :1], 0, 65535),
    ),
    "13 bands": ("a.tif", tiff(BANDS13), Reading(13, (0, 10000)), share(BANDS13, 0, 10000)),
    "13 bands, a plane each": (
        "a.tif",
        tiff(BANDS13, planarconfig="separate"),
        Reading(13, (0, 10000)),
        share(BANDS13, 0, 10000),
    ),
    "13 bands, a plane each, LZW": (
        "a.tif",
        tiff(BANDS13, planarconfig="separate", compression="lzw", rowsperstrip=9),
        Reading(13, (0, 10000)),
        share(BANDS13, 0, 10000),
    ),
    "13 bands, tiles": (
        "a.tif",
        tiff(BANDS13, tile=(16, 16), compression="zlib"),
        Reading(13, (0, 10000)),
        share(BANDS13, 0, 10000),
    ),
    "13 bands, a page each": (
        "a.tif",
        tiff(np.moveaxis(BANDS13, -1, 0), planarconfig=None),
        Reading(13, (0, 10000)),
        share(BANDS13, 0, 10000),
    ),
    "13 bands of ImageJ": (
        "a.tif",
        tiff(np.moveaxis(BANDS13, -1, 0), planarconfig=None, imagej=True),
        Reading(13, (0, 10000)),
        share(BANDS13, 0, 10000),
    ),
    "3 of 13 bands": (
        "a.tif",
        tiff(BANDS13),
        Reading(3, (0, 10000), (4, 3, 2)),
        share(BANDS13[..., [3, 2, 1]], 0, 10000),
    ),
    "one of 13 bands": ("a.tif", tiff(BANDS13), Reading(1, (0, 10000), (8,)), share(BANDS13[..., 7:8], 0, 10000)),
    "a band twice": (
        "a.tif",
        tiff(BANDS13),
        Reading(2, (0, 10000), (8, 8)),
        share(BANDS13[..., [7, 7]], 0, 10000),
    ),
    "a range for each band": (
        "a.tif",
        tiff(BANDS13),
        Reading(13, tuple(edge for n in range(13) for edge in (0, 1000 + 500 * n))),
        share(BANDS13, 0, [1000 + 500 * n for n in range(13)]),
    ),
    "a range for each band taken": (
        "a.tif",
        tiff(BANDS13),
        Reading(2, (0, 5000, 0, 9000), (9, 2)),
        share(BANDS13[..., [8, 1]], 0, [5000, 9000]),
    ),
    "unspecified fourth band": (
        "a.tif",
        tiff(BANDS4, photometric="rgb", extrasamples=["unspecified"]),
        Reading(4),
        BANDS4 / 255,
    ),
    "its RGB": (
        "a.tif",
        tiff(BANDS4, photometric="rgb", extrasamples=["unspecified"]),
        Reading(3, bands=(1, 2, 3)),
        BANDS4[..., :3] / 255,
    ),
    "infrared tagged as alpha": (
        "a.tif",
        tiff(BANDS4, photometric="rgb", extrasamples=["unassalpha"]),
        Reading(4, bands=(1, 2, 3, 4)),
        BANDS4 / 255,
    ),
    "infrared alone": ("a.png", pil(BANDS4, "PNG"), Reading(1, bands=(4,)), BANDS4[..., 3:] / 255),
    "5 bands of 8 bits": ("a.tif", tiff(BANDS5), Reading(5), BANDS5 / 255),
    "two of 8 bits": ("a.npy", npy(BANDS5), Reading(2, bands=(5, 1)), BANDS5[..., [4, 0]] / 255),
    "RGB in another order": (
        "a.png",
        pil(BANDS4[..., :3], "PNG"),
        Reading(3, bands=(3, 2, 1)),
        BANDS4[..., 2::-1] / 255,
    ),
    "8 bits": ("a.png", pil(BANDS4[..., :1], "PNG"), Reading(1), BANDS4[..., :1] / 255),
    "8 bits among deeper ones": ("a.png", pil(BANDS4[..., :3], "PNG"), Reading(3, TWELVE), BANDS4[..., :3] / 255),
    "HEIF": ("a.heic", heif(BANDS4[..., :3]), Reading(3), BANDS4[..., :3] / 255),
    "HEIF of 10 bits": ("a.heic", heif(RGB10), Reading(3, (0, 1023)), share(RGB10, 0, 1023)),
    "AVIF of 10 bits": ("a.avif", avif(RGB10, 10), Reading(3, (0, 1023)), share(RGB10, 0, 1023)),
    "AVIF": ("a.avif", avif(BANDS4[..., :3], 8), Reading(3), BANDS4[..., :3] / 255),
    "JPEG XL": ("a.jxl", jpeg_xl(BANDS4[..., :3]), Reading(3), BANDS4[..., :3] / 255),
    "JPEG XL of 16 bits": ("a.jxl", jpeg_xl(RGB16), Reading(3, (0, 65535)), share(RGB16, 0, 65535)),
    "JPEG XL of 16 bits, no container": (
        "a.jxl",
        jpeg_xl(U16[..., 0], usecontainer=False),
        Reading(1, TWELVE),
        share(U16, 0, 4095),
    ),
    "JPEG XL of floats": ("a.jxl", jpeg_xl(UNIT[..., 0]), Reading(1, (0, 1)), share(UNIT, 0, 1)),
    "8 bits in TIFF": ("a.tif", tiff(BANDS4[..., :3], photometric="rgb"), Reading(3), BANDS4[..., :3] / 255),
    "1 bit": ("a.tif", pil(BANDS4[..., :1] > 99, "TIFF"), Reading(1), (BANDS4[..., :1] > 99) * 1.0),
    "1 bit among deeper ones": ("a.npy", npy(BANDS4[..., 0] > 99), Reading(1, TWELVE), (BANDS4[..., :1] > 99) * 1.0),
    "array (H, W)": ("a.npy", npy(F32[..., 0]), Reading(1, (0, 3000)), share(F32, 0, 3000)),
    "array (H, W) as RGB": ("a.npy", npy(F32[..., 0]), Reading(3, (0, 3000)), grey(share(F32, 0, 3000))),
    "array (H, W, C)": ("a.npy", npy(BANDS13), Reading(13, (0, 10000)), share(BANDS13, 0, 10000)),
    "array in Fortran's order": (
        "a.npy",
        npy(np.asfortranarray(BANDS13)),
        Reading(13, (0, 10000)),
        share(BANDS13, 0, 10000),
    ),
    "array, big-endian": ("a.npy", npy(U16.astype(">u2")), Reading(1, TWELVE), share(U16, 0, 4095)),
    "int64": ("a.npy", npy(U16.astype("i8") - 2**40), Reading(1, (-(2**40), 4095 - 2**40)), share(U16, 0, 4095)),
    "compressed array": ("a.npz", npz(image=BANDS13), Reading(13, (0, 10000)), share(BANDS13, 0, 10000)),
    "booleans": ("a.npy", npy(BANDS4[..., 0] > 99), Reading(1), (BANDS4[..., :1] > 99) * 1.0),
}

REFUSED: dict[str, tuple[str, bytes, Reading, str]] = {
    "uint16 without a range": ("a.png", pil(U16, "PNG"), Reading(1), "uint16, one band: --value_range"),
    "RGB of 16 bits without": ("a.png", png16(RGB16), Reading(3), "uint16, 3 bands: --value_range"),
    "10 bits in AVIF without": ("a.avif", avif(RGB10, 10), Reading(3), "uint16, 3 bands: --value_range"),
    "10 bits in HEIF without": ("a.heic", heif(RGB10), Reading(3), "uint16, 3 bands: --value_range"),
    "a cut JPEG XL": ("a.jxl", jpeg_xl(RGB16)[:200], Reading(3, (0, 1)), ""),
    "floats without": ("a.tif", tiff(UNIT), Reading(1), "float32, one band: --value_range"),
    "int16 without": ("a.npy", npy(I16), Reading(1), "int16, one band: --value_range"),
    "13 bands as RGB": ("a.tif", tiff(BANDS13), Reading(3, (0, 1)), "uint16, 13 bands, for in_chans=3"),
    "13 bands for 4": ("a.npy", npy(BANDS13), Reading(4, (0, 1)), "--in_chans 13"),
    "a band that isn't there": ("a.npy", npy(BANDS5), Reading(3, bands=(1, 2, 6)), "there is no band 6"),
    "RGB for 13": ("a.png", pil(BANDS4[..., :3], "PNG"), Reading(13), "uint8, 3 bands, for in_chans=13"),
    "grey for 2": ("a.png", pil(BANDS4[..., :1], "PNG"), Reading(2), "for in_chans=2"),
    "complex numbers": ("a.npy", npy(F32.astype(complex)), Reading(1, (0, 1)), "complex128"),
    "objects": ("a.npy", npy(np.array([None])), Reading(1), "objects"),
    "text": ("a.npy", npy(np.array(["text"])), Reading(1), "not numbers"),
    "one axis": ("a.npy", npy(np.arange(9.0)), Reading(1), "not (H, W)"),
    "nothing": ("a.npy", npy(np.zeros((0, 4))), Reading(1), "not (H, W)"),
    "two arrays": ("a.npz", npz(one=U16, two=U16), Reading(1), "2 arrays (one, two), not one"),
    "a cut array": ("a.npy", npy(BANDS13)[:900], Reading(13, (0, 1)), ""),
    "a cut TIFF": ("a.tif", tiff(BANDS13, compression="zlib")[:300], Reading(13, (0, 1)), ""),
    "a raster to be turned": ("a.tif", tiff(U16, extratags=[(274, 3, 1, 6, True)]), Reading(1, TWELVE), "turned"),
    "too many pixels": (
        "a.png",
        pil(np.zeros((300, 400, 1), np.uint8), "PNG"),
        Reading(1, max_megapixels=0.1),
        "max_megapixels is 0.1",
    ),
}
