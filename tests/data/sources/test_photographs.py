"""The bundled photographs are what they say: free, small, and each cut in two parts that share nothing."""

import re
import runpy
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficient_mae.data import open_labelled, open_source
from efficient_mae.data.sources.photographs import PHOTOGRAPHS
from efficient_mae.errors import InputError

ROOT = Path(__file__).parents[3]
SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "build_photographs.py"))
NAMES = sorted(file.name for file in (PHOTOGRAPHS / "train").iterdir())
PARTS = ("train", "test")


@pytest.mark.parametrize("part", PARTS)
def test_opens(part: str):
    source = open_source("photographs-sample", part)
    assert len(source) == len(NAMES) >= 30
    assert source.classes is None and source.name == "photographs-sample"
    for index, name in enumerate(NAMES):
        image = source.image(index)
        assert image.mode == "RGB" and min(image.size) >= 120 and source.sample_name(index).endswith(f"{part}/{name}")


def test_labels_are_asked_for_in_vain():
    with pytest.raises(InputError, match="photographs-sample.*labels"):
        open_labelled("photographs-sample")


def test_parts_share_no_pixel():
    """Of a picture whose pixels all differ, and so of the photographs, which are cut at the same places."""
    for shape in ((90, 130), (130, 90), (100, 100)):
        picture = np.zeros((*shape, 3), np.uint8)
        picture[..., 0], picture[..., 1] = np.indices(shape)
        first, second = ({tuple(pixel) for row in np.asarray(part) for pixel in row} for part in cut(picture))
        assert not first & second
        assert len(first | second) == (max(shape) - SCRIPT["GAP"]) * min(shape)
    for name in NAMES:
        (width, height), (other, lower) = (Image.open(PHOTOGRAPHS / part / name).size for part in PARTS)
        gap = SCRIPT["GAP"]
        whole = (height, width + gap + other) if height == lower else (height + gap + lower, width)
        assert [part.size for part in cut(np.zeros((*whole, 3), np.uint8))] == [(width, height), (other, lower)]


def cut(picture: np.ndarray) -> tuple[Image.Image, Image.Image]:
    return SCRIPT["cut"](Image.fromarray(picture))


def test_each_has_its_notice():
    notice = (PHOTOGRAPHS / "NOTICE").read_text()
    assert notice == SCRIPT["notice"]()
    entry = (
        r'^(\S+\.jpg): "(.+)" by (.+)\n    licence: (CC(?:0| BY| BY-SA) [\d.]+) \((\S+)\)\n    source: (https://\S+)'
    )
    found = re.findall(entry, notice, re.MULTILINE)
    assert [name for name, *_ in found] == NAMES == sorted(file.name for file in (PHOTOGRAPHS / "test").iterdir())
    for _, _, _, licence, address, _ in found:
        kind, version = licence.removeprefix("CC").strip().lower().rsplit(" ", 1)
        path = f"publicdomain/zero/{version}" if kind == "0" else f"licenses/{kind}/{version}"
        assert address == f"https://creativecommons.org/{path}/"


def test_they_are_small_and_packaged():
    files = [file for file in PHOTOGRAPHS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    package = ROOT / "src" / "efficient_mae"
    packaged = {
        file
        for pattern in settings["tool"]["setuptools"]["package-data"]["efficient_mae"]
        for file in package.glob(pattern)
    }
    assert {*files} <= packaged
    assert str((PHOTOGRAPHS / "NOTICE").relative_to(ROOT)) in settings["project"]["license-files"]


@pytest.mark.skipif(
    not all(Path("/usr/share/doc", name).exists() for name in ("gcompris-qt-data", "lomiri-wallpapers-20.04")),
    reason="gcompris-qt-data and lomiri-wallpapers are not installed",
)
def test_they_are_what_the_script_makes():
    """One of each package, but for what a version of Pillow makes of JPEG and WebP."""
    for row in {row["package"]: row for row in SCRIPT["rows"]()}.values():
        made = SCRIPT["cut"](SCRIPT["reduce"](SCRIPT["photograph"](row["package"], row["file"])))
        for folder, part in zip(PARTS, made, strict=True):
            shipped = np.asarray(Image.open(PHOTOGRAPHS / folder / f"{row['name']}.jpg"), int)
            assert shipped.shape == np.asarray(part).shape
            assert np.abs(shipped - np.asarray(part, int)).mean() < 10
