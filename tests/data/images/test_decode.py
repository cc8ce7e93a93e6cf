"""Every kind of image file is read rightly, or refused with one line that says why."""

import io
import pickle
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from efficient_mae.data.images.decode import UnreadableImage, decode, to_channels
from efficient_mae.data.images.formats import extensions
from efficient_mae.errors import InputError


def coded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey(height=12, width=20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)


def png(width: int, height: int, body: bytes = b"") -> bytes:
    """A grey PNG made by hand: its size can be a lie."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


# What a viewer must do to the stored pixels, by the EXIF standard's description of the eight values.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_once(kind, orientation):
    stored = grey()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode(coded(Image.fromarray(stored), kind, exif=exif, **options), "x")
    assert np.array_equal(np.asarray(to_channels(image, 1)), UPRIGHT[orientation](stored))


def test_damaged_exif_leaves_the_pixels():
    stored = grey()
    image = decode(coded(Image.fromarray(stored), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"), "x")
    assert np.array_equal(np.asarray(image), stored)


def test_cmyk_has_its_colours():
    colours = {(0, 0, 0, 0): (255, 255, 255), (0, 255, 255, 0): (255, 0, 0), (0, 0, 0, 255): (0, 0, 0)}
    for ink, light in colours.items():
        image = decode(coded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100), "x")
        assert np.allclose(np.asarray(to_channels(image, 3))[8, 8], light, atol=3)


def transparent_files() -> dict[str, bytes]:
    """Files of two pixels: left red (or dark) and opaque, right black and transparent."""
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    rgba = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    la = Image.new("LA", (2, 1), (200, 255))
    la.putpixel((1, 0), (0, 0))
    return {
        "palette": coded(palette, "PNG", transparency=1),
        "gif": coded(palette, "GIF", transparency=1),
        "rgba": coded(rgba, "PNG"),
        "la": coded(la, "PNG"),
        "rgb with a transparent colour": coded(rgba.convert("RGB"), "PNG", transparency=(0, 0, 0)),
        "grey with a transparent shade": coded(la.convert("L"), "PNG", transparency=0),
    }


@pytest.mark.parametrize("kind", transparent_files())
def test_transparency_is_white_or_kept(kind):
    image = decode(transparent_files()[kind], "x")
    left = (200, 200, 200) if kind.startswith(("la", "grey")) else (200, 0, 0)
    rgb, rgba, shade = (to_channels(image, chans) for chans in (3, 4, 1))
    assert [rgb.getpixel((0, 0)), rgb.getpixel((1, 0))] == [left, (255, 255, 255)]
    assert [rgba.getpixel((0, 0)), rgba.getpixel((1, 0))] == [(*left, 255), (0, 0, 0, 0)]
    assert shade.getpixel((1, 0)) == 255


def test_grey_that_is_multiplied_by_its_alpha():
    """A TIFF says so in its tag 338: 64 at half transparency is 127, and 191 on white."""
    grey = Image.new("LA", (2, 1), (64, 128))
    grey.putpixel((1, 0), (90, 255))
    tag = b"\x52\x01\x03\x00\x01\x00\x00\x00"
    file = coded(grey, "TIFF")
    assert file.count(tag + b"\2") == 1
    image = decode(file.replace(tag + b"\2", tag + b"\1"), "x")
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(127, 127, 127, 128), (90, 90, 90, 255)]
    assert [to_channels(image, 1).getpixel((x, 0)) for x in (0, 1)] == [191, 90]


def test_opaque_images_have_full_alpha():
    assert to_channels(decode(coded(Image.new("L", (2, 2), 7), "PNG"), "x"), 4).getpixel((0, 0)) == (7, 7, 7, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "YCbCr", "LAB", "HSV"])
def test_other_modes_convert(mode):
    white = Image.new("RGB", (4, 4), "white")
    image = Image.new("LAB", (4, 4), (255, 128, 128)) if mode == "LAB" else white.convert(mode)
    for chans in (1, 3, 4):
        pixels = np.asarray(to_channels(image, chans))
        assert pixels.shape == ((4, 4) if chans == 1 else (4, 4, chans))
        assert pixels.min() >= 254  # LAB's white in 8 bits is not quite white


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    file = coded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert to_channels(decode(file, "x"), 3).getpixel((4, 4)) == (255, 0, 0)


def test_reads_an_open_file(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(grey()).save(path)
    with path.open("rb") as file:
        assert np.array_equal(np.asarray(decode(file, "a")), grey())


JPEG = coded(Image.fromarray(grey(64, 64)), "JPEG")
DAMAGED = {
    "nothing": (b"", "empty"),
    "text": (b"not an image at all\n" * 10, "not an image"),
    "cut jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "cut png": (coded(Image.fromarray(grey(64, 64)), "PNG")[:2000], ""),
    "bomb": (png(20_000, 20_000, zlib.compress(b"\0" * 1000)), "too many pixels"),
    "small bomb": (png(9_500, 9_500, zlib.compress(b"\0" * 1000)), "too many pixels"),
    "program": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n",
        "not an image",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_named_on_one_line(kind):
    data, reason = DAMAGED[kind]
    for content in (data, io.BytesIO(data)):
        with warnings.catch_warnings(), pytest.raises(UnreadableImage) as caught:
            warnings.simplefilter("error")
            decode(content, "folder/a.jpg")
        error = pickle.loads(pickle.dumps(caught.value))
        assert isinstance(error, InputError)
        assert error.name == "folder/a.jpg"
        assert reason in error.reason and error.reason
        assert str(error) == f"folder/a.jpg: {error.reason}" and "\n" not in str(error)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"]),
    edits=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=20),
    end=st.integers(0, 5000),
)
def test_no_damage_raises_anything_else(kind, edits, end):
    data = bytearray(coded(Image.fromarray(grey(24, 24)), kind))
    for place, value in edits:
        data[place % len(data)] = value
    try:
        assert decode(bytes(data[:end]), "x").mode in ("L", "RGB", "RGBA")
    except UnreadableImage as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("in_chans", [0, 2, 5])
def test_other_channel_counts_are_refused(in_chans):
    with pytest.raises(InputError, match=f"in_chans={in_chans}"):
        to_channels(Image.new("L", (2, 2)), in_chans)


def test_extensions():
    assert {"jpg", "jpeg", "png", "gif", "tif", "tiff", "webp", "bmp", "ppm", "avif"} <= extensions()
    assert not {"eps", "ps", "pdf", "h5", "mpg", "txt"} & extensions()
