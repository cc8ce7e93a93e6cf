"""What a model sees of files of every type, number of bands and container: what was written, or why not."""

import dataclasses
import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from efficient_mae.data import EvalTransform, PretrainTransform, Reading, UnreadableImage, open_source
from efficient_mae.data.images.crops import Crop, cut
from efficient_mae.data.sources.measure import ReadingSettings, measure_statistics
from efficient_mae.errors import InputError
from tests.data.images.value_files import (
    BANDS4,
    HEIGHT,
    I16,
    READ,
    REFUSED,
    U16,
    WIDTH,
    dicom,
    npy,
    pil,
    share,
    tiff,
)


def source_of(folder: Path, name: str, content: bytes):
    (folder / name).write_bytes(content)
    return open_source(str(folder))


def as_shares(pixels: torch.Tensor) -> np.ndarray:
    return (pixels.permute(1, 2, 0).double() / (255 if pixels.dtype == torch.uint8 else 1)).numpy()


@pytest.mark.parametrize("case", READ)
def test_numbers_are_seen_as_they_are(case: str, tmp_path: Path):
    name, content, reading, seen = READ[case]
    image = source_of(tmp_path, name, content).open(0)
    assert image.size == (WIDTH, HEIGHT)
    transform = EvalTransform((HEIGHT, WIDTH), reading)
    pixels = transform(image)
    assert pixels.dtype == (torch.uint8 if reading.value_range is None else torch.float32)
    tolerance = 1 / 255 if pixels.dtype == torch.uint8 and reading.in_chans == 1 else 1e-6
    np.testing.assert_allclose(as_shares(pixels), seen, rtol=0, atol=tolerance)
    # A crop of its own size, mirrored, of the file and of its content, as a shard holds it.
    crop = Crop(top=9, left=13, height=24, width=30, flip=True)
    part = cut(image, [crop], reading, (24, 30))[0]
    np.testing.assert_allclose(as_shares(part), seen[9:33, 13:43][:, ::-1], rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_named(case: str, tmp_path: Path):
    name, content, reading, reason = REFUSED[case]
    source = source_of(tmp_path, name, content)
    with pytest.raises(UnreadableImage) as caught:
        EvalTransform((HEIGHT, WIDTH), reading)(source.open(0))
    assert reason in caught.value.reason and caught.value.reason and "\n" not in str(caught.value)
    assert caught.value.name == f"{tmp_path}/{name}"


@pytest.mark.parametrize("case", READ)
def test_no_more_pixels_are_decoded_than_allowed(case: str, tmp_path: Path):
    """Of formats that are decoded whole, and of windows of the others."""
    name, content, reading, _ = READ[case]
    image = source_of(tmp_path, name, content).open(0)
    few = dataclasses.replace(reading, max_megapixels=0.002)
    with pytest.raises(UnreadableImage, match="too many pixels: 56 x 40, and max_megapixels is 0.002"):
        EvalTransform((HEIGHT, WIDTH), few)(image)


@pytest.mark.parametrize("case", ["RGB of 16 bits in PNG", "RGB of 16 bits in JPEG 2000"])
def test_a_huge_claim_is_not_decoded(case: str, tmp_path: Path):
    name, content, reading, _ = READ[case]
    sides = struct.pack(">II", 56, 40) if name == "a.png" else struct.pack(">II", 40, 56)
    start = content.index(sides)
    huge = content[:start] + struct.pack(">II", 60_000, 60_000) + content[start + 8 :]
    if name == "a.png":  # what it claims has a checksum
        huge = huge[:29] + struct.pack(">I", zlib.crc32(huge[12:29])) + huge[33:]
    with pytest.raises(UnreadableImage, match="too many pixels: 60,000 x 60,000"):
        EvalTransform((HEIGHT, WIDTH), reading)(source_of(tmp_path, name, huge).open(0))


def test_dicom(tmp_path: Path):
    """Rescaled as the file says; of MONOCHROME1 the lowest is white."""
    stored = I16[..., 0] + np.int16(1000)
    window = Reading(1, (-160, 240))
    for facts, seen in (
        ({"RescaleSlope": 1, "RescaleIntercept": -1000}, share(I16, -160, 240)),
        ({"RescaleSlope": 0.5, "RescaleIntercept": 0}, share(stored[..., None] * 0.5, -160, 240)),
        ({"PhotometricInterpretation": "MONOCHROME1"}, 1 - share(stored[..., None], -160, 240)),
    ):
        image = source_of(tmp_path, "a.dcm", dicom(stored, **facts)).open(0)
        np.testing.assert_allclose(as_shares(EvalTransform((HEIGHT, WIDTH), window)(image)), seen, rtol=0, atol=1e-6)


def test_colours_of_a_palette(tmp_path: Path):
    """DICOM's are looked up; of a TIFF whose palette no picture of 8 bits has, nothing is guessed."""
    stored = np.random.default_rng(0).integers(0, 4, (HEIGHT, WIDTH), dtype=np.uint8)
    colours = np.array([[0, 0, 0], [255, 0, 0], [10, 200, 30], [255, 255, 255]], np.uint8)
    facts: dict = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, values in zip(("Red", "Green", "Blue"), colours.T, strict=True):
        facts[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, 8]
        facts[f"{name}PaletteColorLookupTableData"] = values.tobytes()
    image = source_of(tmp_path, "a.dcm", dicom(stored, **facts)).open(0)
    seen = EvalTransform((HEIGHT, WIDTH), Reading(3))(image).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(seen, colours[stored])
    deep, file = np.random.default_rng(1).integers(0, 999, (3, 2**16), dtype=np.uint16), io.BytesIO()
    tifffile.imwrite(file, stored.astype(np.uint16), photometric="palette", colormap=deep)
    (tmp_path / "t").mkdir()
    with pytest.raises(UnreadableImage, match="a palette of more than 256 colours"):
        source_of(tmp_path / "t", "a.tif", file.getvalue()).open(0)


def test_other_sizes_are_a_pictures(tmp_path: Path):
    """A raster of 8 bits is resized as a picture is, in training and in evaluation."""
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    (tmp_path / "a.npy").write_bytes(npy(picture))
    (tmp_path / "b.png").write_bytes(pil(picture, "PNG"))
    raster, plain = (open_source(str(tmp_path)).open(index) for index in (0, 1))
    for size in ((32, 32), (64, 40), (90, 120)):
        ours, theirs = (EvalTransform(size, Reading(3))(image) for image in (raster, plain))
        assert (ours.int() - theirs.int()).abs().max() <= 2
        ours, theirs = (
            PretrainTransform(size, Reading(3)).crops(image, [np.random.default_rng(1)]) for image in (raster, plain)
        )
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("side, size", [(72, 70), (48, 50)])
def test_a_window_of_the_size_that_is_wanted_is_resized_all_the_same(side: int, size: int, tmp_path: Path):
    """With what the interpolation weighs in, 72 pixels are read from 1 to 71 for 70."""
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    (tmp_path / "a.npy").write_bytes(npy(picture))
    (tmp_path / "b.png").write_bytes(pil(picture, "PNG"))
    source, transform = open_source(str(tmp_path)), EvalTransform((size, size), Reading(3))
    assert (transform(source.open(0)).int() - transform(source.open(1)).int()).abs().max() <= 2


@pytest.mark.parametrize(
    "write", [lambda a: tiff(a, tile=(64, 64)), lambda a: tiff(a), npy], ids=["tiles", "TIFF", "npy"]
)
def test_a_crop_of_a_scene_costs_a_crop(write: Callable[[np.ndarray], bytes], tmp_path: Path, monkeypatch):
    """Bytes that are read for a crop, of a file of 32 MB."""
    scene = np.random.default_rng(0).integers(0, 9000, (2000, 2000, 4), dtype=np.uint16)
    image = source_of(tmp_path, "a.npy" if write is npy else "a.tif", write(scene)).open(0)
    read = []
    monkeypatch.setattr(Path, "open", lambda self, mode="r": read.append(file := Counted(self)) or file)
    crop = Crop(top=700, left=1100, height=100, width=90, flip=False)
    pixels = cut(image, [crop], Reading(4, (0, 9000)), (100, 90))[0]
    np.testing.assert_allclose(as_shares(pixels), share(scene[700:800, 1100:1190], 0, 9000), rtol=0, atol=1e-6)
    assert sum(file.bytes for file in read) <= 9 * 64 * 64 * 8  # nothing of a file that is mapped into memory


class Counted(io.FileIO):
    bytes = 0

    def read(self, size: int = -1) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        data = super().read(size)
        self.bytes += len(data or b"")
        return data or b""


def test_a_range_is_measured(tmp_path: Path):
    """In every band between the numbers beyond which one in a thousand lies, whatever a few are."""
    generator = np.random.default_rng(0)
    for number in range(6):
        scene = generator.uniform((100, -5), (4000, 5), (300, 300, 2)).astype(np.float32)
        scene[0, :3] = 1e9, -1e9
        np.save(tmp_path / f"{number}.npy", scene)
    source = open_source(str(tmp_path))
    reading = ReadingSettings(value_range="measure").reading(source, 2)
    assert reading.value_range is not None
    np.testing.assert_allclose(reading.value_range, [104, 3996, -4.99, 4.99], rtol=0.01)
    mean, std = measure_statistics(source, reading)
    np.testing.assert_allclose(mean, 0.5, atol=0.01)
    np.testing.assert_allclose(std, 12**-0.5, atol=0.01)


def test_where_nothing_was_measured_no_range_is(tmp_path: Path):
    """Infinite numbers, and those that GDAL's tag names, in a third of a scene."""
    scene = np.random.default_rng(0).uniform(100, 4000, (90, 90)).astype(np.float32)
    scene[:20], scene[20:30] = -9999, np.inf
    tag = (42113, 2, 6, "-9999", True)
    tifffile.imwrite(tmp_path / "plain.tif", scene, extratags=[tag])
    tifffile.imwrite(tmp_path / "tiles.tif", scene, extratags=[tag], tile=(32, 32), compression="zlib")
    reading = ReadingSettings(value_range="measure").reading(open_source(str(tmp_path)), 1)
    assert np.allclose(reading.value_range or (), (100, 4000), atol=20)


@pytest.mark.parametrize(("nothing", "dtype"), [(-9999, np.int16), (0, np.uint16), (65535, np.uint16)])
def test_where_nothing_seems_measured_it_is_said(nothing: int, dtype: type, tmp_path: Path):
    """Of the one band in which it is so; the number counts all the same."""
    scene = np.random.default_rng(0).uniform(700, 1300, (100, 100, 2)).astype(dtype)
    scene[:10, :, 1] = nothing  # a tenth
    np.save(tmp_path / "a.npy", scene)
    with pytest.warns(UserWarning) as said:
        reading = ReadingSettings(value_range="measure").reading(open_source(str(tmp_path)), 2)
    (told,) = [str(one.message) for one in said]
    what = rf"10% of band 2 of {tmp_path} are {nothing}, and the others 70\d to 129\d"
    mend = r"if nothing was measured there, say so in the files \(GDAL_NODATA\), or give a range without it"
    assert re.fullmatch(f"value_range=measure: {what}; {mend}", told)
    assert nothing in (reading.value_range or ())


@pytest.mark.parametrize("kind", ["clipped", "few", "two levels", "named"])
def test_where_all_was_measured_nothing_is_said(kind: str, tmp_path: Path):
    """Many numbers at the edge of the others; under a twentieth; a mask; those that the file names."""
    scene = np.random.default_rng(0).normal(1000, 100, (90, 90)).astype(np.float32)
    scene = {"clipped": scene.clip(900, 1100), "two levels": (scene > 1000).astype(np.float32)}.get(kind, scene)
    tags = [(42113, 2, 6, "-9999", True)] if kind == "named" else []
    scene[: {"few": 4, "named": 30}.get(kind, 0)] = -9999
    tifffile.imwrite(tmp_path / "a.tif", scene, extratags=tags)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ReadingSettings(value_range="measure").reading(open_source(str(tmp_path)), 1)


def test_what_is_damaged_is_not_measured(tmp_path: Path):
    """Nor does it end the measuring, or hide why others are refused."""
    for number in range(3):
        (tmp_path / f"{number}.tif").write_bytes(tiff(U16, compression="zlib"))
    whole = tiff(U16, compression="zlib")
    pixels = whole.index(b"\x78")  # where zlib's stream begins
    (tmp_path / "3.tif").write_bytes(whole[: pixels + 4] + bytes(60) + whole[pixels + 64 :])
    source = open_source(str(tmp_path))
    with pytest.raises(UnreadableImage):
        EvalTransform((HEIGHT, WIDTH), Reading(1, (0, 4095)))(source.open(3))
    reading = ReadingSettings(value_range="measure").reading(source, 1)
    assert reading.value_range == pytest.approx((100, 4000), rel=0.1)
    with pytest.raises(InputError, match="numbers from 100 to 4000"):
        ReadingSettings().reading(source, 1)


def test_pictures_need_no_range(tmp_path: Path):
    source = source_of(tmp_path, "a.png", pil(BANDS4[..., :3], "PNG"))
    assert ReadingSettings(value_range="measure").reading(source, 3) == Reading(3)
    mean, std = measure_statistics(source, Reading(3))
    np.testing.assert_allclose(mean, BANDS4[..., :3].mean((0, 1)) / 255, rtol=1e-3)
    np.testing.assert_allclose(std, BANDS4[..., :3].std((0, 1)) / 255, rtol=1e-3)


def test_unsuited_data_are_refused_with_what_was_seen(tmp_path: Path):
    for number in range(3):
        (tmp_path / f"{number}.tif").write_bytes(tiff(U16 + np.uint16(number)))
    (tmp_path / "damaged.png").write_bytes(b"nothing")
    with pytest.raises(InputError) as caught:
        ReadingSettings().reading(open_source(str(tmp_path)), 3)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/0.tif (and 2 others of 4 looked at): uint16, one band: --value_range")
    assert "numbers from 100 to 4002" in text and "\n" not in text


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"value_range": (3, 3)}, "must be less"),
        ({"value_range": (0, 1, 0, 1)}, "4 numbers for 3 bands"),
        ({"bands": (1, 2)}, "2 for in_chans=3"),
        ({"bands": (0, 1, 2)}, "bands"),
        ({"value_range": (0, float("inf"))}, "value_range"),
    ],
)
def test_readings_that_cannot_be(settings: dict, reason: str):
    with pytest.raises(InputError, match=reason):
        Reading(3, **settings)
