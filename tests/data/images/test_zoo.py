"""A zoo of image files, good, odd and bad: read as what was drawn, or skipped, counted and named.

What was drawn is a picture of smooth colours, made here with numpy; what must come of a file is worked out from it.
"""

import html
import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from efficient_mae.cli import main
from efficient_mae.data import (
    DeviceDecodeDataset,
    EvalTransform,
    PretrainTransform,
    Reading,
    Source,
    TrainDataset,
    UnreadableImage,
    open_source,
    to_channels,
)
from efficient_mae.data.images.crops import Crop, cut
from tests.tasks.conftest import TINY, flags

HEIGHT, WIDTH = 48, 64


def scene() -> np.ndarray:
    """Smooth, and different in every corner and channel; uint8 (H, W, 3)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    channels = (x * 255 / (WIDTH - 1), y * 255 / (HEIGHT - 1), 255 - (x + y) * 255 / (WIDTH + HEIGHT - 2))
    return np.stack(channels, -1).round().astype(np.uint8)


SCENE = scene()
GREY = SCENE[..., 0]


def coded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(pixels: np.ndarray, **options) -> bytes:
    return coded(Image.fromarray(pixels), "JPEG", quality=95, subsampling=0, **options)


# How a camera that was held so stores what was seen: the inverse of what a viewer does, by the EXIF standard.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(np.ascontiguousarray(STORED[orientation](SCENE)), exif=exif)


def png16(values: np.ndarray, colour_type: int, size: tuple[int, int] | None = None) -> bytes:
    """A PNG of 16 bits a channel made by hand, for PIL writes only grey ones; (height, width) may be a lie."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = size or values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def cmyk() -> bytes:
    ink = np.concatenate([255 - SCENE, np.zeros((HEIGHT, WIDTH, 1), np.uint8)], -1)
    return coded(Image.fromarray(ink, "CMYK"), "JPEG", quality=95, subsampling=0)


def transparent_palette() -> tuple[bytes, np.ndarray]:
    """Vertical bars in 16 colours, of which four are transparent: to be white."""
    bars = np.broadcast_to(np.arange(WIDTH) * 16 // WIDTH, (HEIGHT, WIDTH)).astype(np.uint8)
    colours = np.stack([np.arange(16) * 16, 255 - np.arange(16) * 16, np.arange(16) * 8], -1).astype(np.uint8)
    image = Image.fromarray(bars, "P")
    image.putpalette(colours.tobytes())
    alpha = bytes([0, 0, 0, 0] + [255] * 12)
    shown = colours.copy()
    shown[:4] = 255
    return coded(image, "PNG", transparency=alpha), shown[bars]


def half_transparent() -> tuple[bytes, np.ndarray]:
    alpha = np.full((HEIGHT, WIDTH, 1), 128, np.uint8)
    mixed = (SCENE * 128.0 + 255.0 * 127) / 255
    return coded(Image.fromarray(np.concatenate([SCENE, alpha], -1)), "PNG"), mixed.round().astype(np.uint8)


def animation(kind: str) -> bytes:
    frames = [Image.fromarray(SCENE), Image.new("RGB", (WIDTH, HEIGHT), "red"), Image.new("RGB", (WIDTH, HEIGHT))]
    options = {"lossless": True} if kind == "WEBP" else {}
    return coded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)


def grey_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, -1)


LINE = np.resize(SCENE, (2, 30_000, 3))
DEEP = SCENE.astype(np.uint16) * 257
# By name: the file, what is seen in it, and the largest error of a pixel in levels of 255, of what loses nothing 1.
READ: dict[str, tuple[bytes, np.ndarray, int]] = {
    **{f"turned{n}.jpg": (rotated(n), SCENE, 8) for n in STORED},
    "ink.jpg": (cmyk(), SCENE, 8),
    "grey.jpg": (jpeg(GREY), grey_rgb(GREY), 8),
    "bars.png": (*transparent_palette(), 0),
    "glass.png": (*half_transparent(), 1),
    "moving.webp": (animation("WEBP"), SCENE, 0),
    "moving.gif": (animation("GIF"), SCENE, 48),  # 256 colours
    "moving.png": (animation("PNG"), SCENE, 0),
    "dot.png": (coded(Image.fromarray(SCENE[:1, :1]), "PNG"), SCENE[:1, :1], 0),
    "line.png": (coded(Image.fromarray(LINE), "PNG"), LINE, 0),
    "with space.png": (coded(Image.fromarray(SCENE), "PNG"), SCENE, 0),
    "line\nbreak.png": (coded(Image.fromarray(SCENE), "PNG"), SCENE, 0),
    "\x1b[31mred\x1b[0m [bold]<b>.png": (coded(Image.fromarray(SCENE), "PNG"), SCENE, 0),
    os.fsdecode(b"not utf-8 \xff\xfe.png"): (coded(Image.fromarray(SCENE), "PNG"), SCENE, 0),
}

UNREADABLE: dict[str, tuple[bytes, str]] = {
    "deep grey.png": (coded(Image.fromarray(DEEP[..., 0]), "PNG"), "uint16, one band: --value_range"),
    "deep grey.tif": (coded(Image.fromarray(DEEP[..., 0]), "TIFF"), "uint16, one band: --value_range"),
    "deep colour.png": (png16(DEEP, 2), "uint16, 3 bands: --value_range"),
    "deep alpha.png": (png16(np.concatenate([DEEP, np.full((HEIGHT, WIDTH, 1), 65535)], -1), 6), "--bands 1,2,3"),
    "cut.jpg": (jpeg(SCENE)[:700], "truncated"),
    "cut header.jpg": (jpeg(SCENE)[:100], ""),
    "cut.png": (coded(Image.fromarray(SCENE), "PNG")[:200], ""),
    "empty.jpg": (b"", "empty"),
    "zeros.jpg": (bytes(3000), "not an image"),
    "text.jpg": (b"once upon a time\n" * 50, "not an image"),
    "bomb.png": (png16(np.zeros((100, 100), np.uint16), 0, size=(60_000, 60_000)), "too many pixels"),
    "bad [red]name\n\x1b[2J.jpg": (b"", "empty"),
    os.fsdecode(b"bad \xff.jpg"): (b"", "empty"),
}
# Made with links or permissions, so in a folder alone.
ELSEWHERE = {
    "nowhere.jpg": "No such file",
    "circle.jpg": "Too many levels of symbolic links",
    "pipe.jpg": "not a file",
    "locked.jpg": "Permission denied",
    "vanished.jpg": "No such file",
}


def write_zoo(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, (content, *_) in (READ | UNREADABLE).items():
        (root / name).write_bytes(content)
    (root / "nowhere.jpg").symlink_to(root / "gone.jpg")
    (root / "circle.jpg").symlink_to(root / "circle.jpg")
    (root / "round").symlink_to(root)
    os.mkfifo(root / "real pipe")
    (root / "pipe.jpg").symlink_to(root / "real pipe")
    (root / "locked.jpg").write_bytes(jpeg(SCENE))
    (root / "locked.jpg").chmod(0)
    (root / "vanished.jpg").write_bytes(jpeg(SCENE))


@pytest.fixture
def locks_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the tests didn't run as root, whom no permission stops."""
    opened = os.open

    def refusing(path, *arguments, **options):
        if os.fspath(path).endswith(b"locked.jpg" if isinstance(path, bytes) else "locked.jpg"):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)


def printed(name: str) -> str:
    """A file's name as a log shows it, by Python's own escapes."""
    stray = {chr(0xDC00 + byte): f"\\x{byte:02x}" for byte in range(128, 256)}
    return "".join(c if c.isprintable() else stray.get(c, repr(c)[1:-1]) for c in name)


def look(source: Source) -> Iterator[tuple[str, int, UnreadableImage | None]]:
    """(name, number, what is wrong) of each image."""
    for index in range(len(source)):
        error = None
        try:
            EvalTransform((8, 8), Reading(3))(source.open(index))
        except UnreadableImage as caught:
            error = caught
            assert caught.name == source.sample_name(index)
            assert str(caught).isprintable() and json.loads(json.dumps(str(caught))) == str(caught)
        yield source.sample_name(index), index, error


def as_folder(root: Path) -> Source:
    write_zoo(root)
    source = open_source(str(root))
    (root / "vanished.jpg").unlink()
    return source


def as_shard(root: Path) -> Source:
    root.mkdir()
    with tarfile.open(root / "0.tar", "w") as tar:
        for number, (name, (content, *_)) in enumerate((READ | UNREADABLE).items()):
            # WebDataset's samples go by what stands before a name's first dot; and some paths climb out.
            info = tarfile.TarInfo(("../../", "/tmp/", "a/")[number % 3] + name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return open_source(f"wds:{root}")


def as_hub(root: Path) -> Source:
    cells = [{"bytes": content, "path": None} for content, *_ in (READ | UNREADABLE).values()]
    features = datasets.Features({"photo": datasets.Image()})
    datasets.Dataset.from_dict({"photo": cells}, features=features).save_to_disk(root / "set")
    return open_source(f"hf:{root}/set")


@pytest.mark.parametrize("kind", [as_folder, as_shard, as_hub])
def test_every_image_is_read_rightly_or_named(kind: Callable[[Path], Source], tmp_path: Path, locks_hold: None):
    source = kind(tmp_path / "zoo")
    seen = list(look(source))
    if kind is as_hub:  # rows have numbers
        numbers = {name: number for number, name in enumerate(READ | UNREADABLE)}
    else:
        base = {name.rpartition("/")[2]: index for name, index, _ in seen}
        wanted = [*READ, *UNREADABLE, *(ELSEWHERE if kind is as_folder else ())]
        assert len(base) == len(seen)
        numbers = {name: base.pop(printed(name)) for name in wanted}
        assert not base
    for name, (_, picture, tolerance) in READ.items():
        pixels = np.asarray(to_channels(source.image(numbers[name]), 3)).astype(int)
        assert pixels.shape == picture.shape, name
        assert abs(pixels - picture).max() <= tolerance, name
    reasons = {name: reason for name, (_, reason) in UNREADABLE.items()} | (ELSEWHERE if kind is as_folder else {})
    for name, reason in reasons.items():
        error = seen[numbers[name]][2]
        assert error is not None and reason in error.reason and error.reason, (name, error)
    assert not (tmp_path.parent / "dot.png").exists()


@pytest.mark.parametrize("name", [name for name in READ if name.endswith(".jpg")])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_jpegs_that_are_decoded_in_part(name: str, in_chans: int, tmp_path: Path):
    """A quarter of the size by libjpeg, then a crop: what was drawn, averaged over 4 x 4 pixels."""
    (tmp_path / "a.jpg").write_bytes(READ[name][0])
    image = open_source(str(tmp_path)).open(0)
    assert image.size == (WIDTH, HEIGHT)
    decoded = image.decode(in_chans, 4)
    assert decoded.reduction == 4
    crop = Crop(top=16, left=8, height=32, width=48, flip=False)
    pixels = cut(image, [crop], Reading(in_chans), (8, 12))[0].permute(1, 2, 0).numpy().astype(int)
    picture = READ[name][1].astype(float)
    if in_chans == 1:
        picture = picture @ np.array([[0.299], [0.587], [0.114]])
    picture = picture[16:48, 8:56].reshape(8, 4, 12, 4, in_chans).mean((1, 3))
    assert abs(pixels - picture)[1:-1, 1:-1].max() <= 8


@pytest.mark.parametrize("dataset", [TrainDataset, DeviceDecodeDataset])
def test_batches_of_the_zoo(dataset: type[TrainDataset], tmp_path: Path, locks_hold: None):
    """Damage is replaced and named, whichever way JPEGs are decoded, and what is read is the same."""
    source = as_folder(tmp_path / "zoo")
    data = dataset(source, PretrainTransform((16, 16), Reading(3)), 0)
    batch = data.__getitems__([(0, index) for index in range(len(source))]).to("cpu")
    bad = {printed(name) for name in (*UNREADABLE, *ELSEWHERE)}
    assert {name.rpartition("/")[2] for name, _ in batch.damaged} == bad
    assert len(batch.images) == len(source)
    plain = TrainDataset(source, PretrainTransform((16, 16), Reading(3)), 0)
    reference = plain.__getitems__([(0, index) for index in range(len(source))])
    whole = batch.indices == reference.indices  # a cut JPEG's stand-in is another one where it is found out later
    assert whole.float().mean() > 0.9
    assert (batch.images[whole].int() - reference.images[whole].int()).abs().max() <= 12


def test_a_run_over_the_zoo(tmp_path: Path, locks_hold: None, capsys: pytest.CaptureFixture[str]):
    root = tmp_path / "zoo"
    write_zoo(root)
    # Of a thousand images and more, for no more than one in a hundred may be bad.
    for number in range(1800):
        (root / f"good{number}.png").hardlink_to(root / "with space.png")
    settings = TINY | {"in_chans": 3, "img_size": 8}
    assert main(["pretrain", *flags(data=root, out=tmp_path / "run", epochs=1, batch_size=128, **settings)]) == 0
    named = dict(json.loads((tmp_path / "run" / "damaged.json").read_text()))
    small = {"dot.png", "line.png"}  # smaller than a patch
    bad = {printed(name) for name in (*UNREADABLE, *ELSEWHERE)} - {"vanished.jpg"} | small
    found = {name.rpartition("/")[2] for name in named}
    # The last images of an epoch that make no whole batch are not looked at.
    assert found <= bad and len(found) >= len(bad) - 4
    err = capsys.readouterr().err
    assert f"{len(found)} of " in err and "images could not be read and others took their place" in err
    assert all(f"skipped {name}: {reason}" in err for name, reason in named.items())
    assert "\x1b" not in err
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(html.escape(name, quote=False) in page for name in named) and "<b>" not in page


def test_a_file_that_vanishes_while_workers_read(tmp_path: Path):
    for number in range(40):
        (tmp_path / f"{number:02}.png").write_bytes(READ["with space.png"][0])
    data = TrainDataset(open_source(str(tmp_path)), PretrainTransform((8, 8), Reading(3)), 0)
    before = data[0, 7]
    (tmp_path / "07.png").unlink()
    after = data[0, 7]
    assert before.indices.tolist() == [7] and not before.damaged
    assert after.indices.tolist() == [8]
    assert after.damaged == [(f"{tmp_path}/07.png", "No such file or directory")]
    assert torch.equal(before.images, after.images)
