"""Builds the photographs that ship in the package, from packages that are installed.

    python benchmarks/build_photographs.py [--out FOLDER]

photographs.tsv beside it says of each in which package it lies, and its title, author, licence and source, as that
package has them: in /usr/share/doc/lomiri-wallpapers-*/copyright, in the README beside the picture within
gcompris-qt-data (Debian's copyright file names pictures that were there before), in scikit-image's docstrings and
in scikit-learn's README. Taken were photographs alone, under CC0, CC BY or CC BY-SA.

Needed are Debian's lomiri-wallpapers-16.04, lomiri-wallpapers-20.04 and gcompris-qt-data, scikit-image and
scikit-learn. The bytes are the same every time for one version of Pillow's libraries.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import shutil
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from PIL import Image

from efficient_mae.data.sources.photographs import PHOTOGRAPHS

TABLE = Path(__file__).with_name("photographs.tsv")
SIDE = 384  # pixels of the shorter side, at most
TRAIN = 0.62  # of the longer side is the training part
GAP = 8  # pixels between the parts are in neither, for resizing mixes neighbours
QUALITY = 85

URLS = {
    "CC0 1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC BY 2.0": "https://creativecommons.org/licenses/by/2.0/",
    "CC BY 4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC BY-SA 3.0": "https://creativecommons.org/licenses/by-sa/3.0/",
    "CC BY-SA 4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
}
HEAD = """\
These photographs are not under this package's licence, but each under its own, below. Changes made to them: each is
reduced, and cut in two, a training part (train/) and a held-out part (test/) of the same name, with a strip between
them left out. What is made so from one under CC BY-SA is under the same licence. benchmarks/build_photographs.py
made them.

"""


def rows() -> list[dict[str, str]]:
    """What there is, by name."""
    with TABLE.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def photograph(package: str, file: str) -> Image.Image:
    """A picture of an installed package."""
    if package == "gcompris-qt-data":
        archive = Path("/usr/share/gcompris-qt/rcc") / f"{file.partition('/')[0]}.rcc"
        held = dict(read_rcc(archive.read_bytes()))
        return Image.open(BytesIO(held[f"gcompris/src/activities/{file}"]))
    folder = {
        "scikit-image": lambda: installed("skimage") / "data",
        "scikit-learn": lambda: installed("sklearn") / "datasets" / "images",
    }.get(package, lambda: Path("/usr/share/backgrounds"))()
    return Image.open(folder / file)


def installed(module: str) -> Path:
    """The folder of a Python package."""
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None, f"{module} is not installed"
    return Path(found.origin).parent


def read_rcc(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files of Qt's binary resources."""
    magic, version, tree, contents, names = struct.unpack(">4s4I", data[:20])
    assert magic == b"qres", "no binary resources of Qt's"
    size = 14 if version == 1 else 22

    def name(place: int) -> str:
        (length,) = struct.unpack_from(">H", data, names + place)
        return data[names + place + 6 : names + place + 6 + 2 * length].decode("utf-16-be")

    def walk(number: int, before: str) -> Iterator[tuple[str, bytes]]:
        place, flags, first, second = struct.unpack_from(">IHII", data, tree + number * size)
        path = before + name(place) if number else ""
        if flags & 2:  # a folder, of `first` entries from `second` on
            for child in range(second, second + first):
                yield from walk(child, f"{path}/" if path else "")
        else:
            (length,) = struct.unpack_from(">I", data, contents + second)
            content = data[contents + second + 4 : contents + second + 4 + length]
            yield path, zlib.decompress(content[4:]) if flags & 1 else content

    return walk(0, "")


def reduce(image: Image.Image) -> Image.Image:
    """In RGB, its shorter side SIDE pixels at most."""
    image = image.convert("RGB")
    scale = min(1.0, SIDE / min(image.size))
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS) if scale < 1 else image


def cut(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """The training part and the held-out part: left and right, or upper and lower if it is higher than wide."""
    width, height = image.size
    if width >= height:
        first = round(width * TRAIN)
        return image.crop((0, 0, first, height)), image.crop((first + GAP, 0, width, height))
    first = round(height * TRAIN)
    return image.crop((0, 0, width, first)), image.crop((0, first + GAP, width, height))


def notice() -> str:
    """Who made each, and on which terms it may be used."""
    lines = [HEAD]
    for row in rows():
        licence = f"{row['licence']} ({URLS[row['licence']]})"
        lines.append(f'{row["name"]}.jpg: "{row["title"]}" by {row["author"]}\n')
        lines.append(f"    licence: {licence}\n    source: {row['source']} (in {row['package']})\n")
    return "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PHOTOGRAPHS)
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    for row in rows():
        parts = cut(reduce(photograph(row["package"], row["file"])))
        for folder, part in zip(("train", "test"), parts):
            file = args.out / folder / f"{row['name']}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            part.save(file, quality=QUALITY, optimize=True)
    (args.out / "NOTICE").write_text(notice(), encoding="utf-8")
    total = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(f"{args.out}: {len(rows())} photographs, {total:,} bytes")


if __name__ == "__main__":
    main()
