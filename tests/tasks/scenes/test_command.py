"""`emae scenes`: two layouts of the same scenes, whose annotations agree, the same wherever they are made."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import efficient_mae as emae
from efficient_mae.cli import main
from efficient_mae.data import open_source
from efficient_mae.data.sources.fashion_mnist import CLASSES, ArraySource
from efficient_mae.errors import InputError
from efficient_mae.tasks.scenes import command

from .test_outlines import inside

SMALL = {"train": 12, "val": 5, "size": 64}
PARTS = {"train": "training", "val": "validation"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "made"
    emae.scenes(out=out, **SMALL)
    return out


def annotations(root: Path, part: str) -> dict[str, Any]:
    return json.loads((root / "coco" / "annotations" / f"instances_{part}2017.json").read_text())


def files(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def rasterised(thing: dict[str, Any], shape: tuple[int, int]) -> np.ndarray:
    segmentation = thing["segmentation"]
    if not thing["iscrowd"]:
        return np.any([inside(polygon, shape) for polygon in segmentation], axis=0)
    assert segmentation["size"] == list(shape)
    values = np.arange(len(segmentation["counts"])) % 2 == 1
    return np.repeat(values, segmentation["counts"]).reshape(shape, order="F")


def test_layouts(made: Path):
    found = {name.rsplit("/", 1)[0] for name in files(made)}
    assert found == {
        "coco/annotations", "coco/train2017", "coco/val2017", "ade20k",
        "ade20k/images/training", "ade20k/images/validation",
        "ade20k/annotations/training", "ade20k/annotations/validation",
    }  # fmt: skip
    for part, name in PARTS.items():
        document = annotations(made, part)
        assert {*document} == {"info", "licenses", "images", "annotations", "categories"}
        names = [image["file_name"] for image in document["images"]]
        assert names == sorted(file.name for file in (made / "coco" / f"{part}2017").iterdir())
        assert len(names) == SMALL[part]
        maps = sorted(file.stem for file in (made / "ade20k" / "annotations" / name).glob("*.png"))
        assert maps == sorted(file.stem for file in (made / "ade20k" / "images" / name).glob("*.jpg"))
        assert [one["name"] for one in document["categories"]] == list(CLASSES)
        ids = [thing["id"] for thing in document["annotations"]]
        assert len({*ids}) == len(ids)
        assert {thing["image_id"] for thing in document["annotations"]} <= {one["id"] for one in document["images"]}
    assert len(open_source(str(made / "coco" / "train2017"))) == SMALL["train"]


@pytest.mark.parametrize("part", PARTS)
def test_masks_are_those_of_the_label_map(made: Path, part: str):
    document = annotations(made, part)
    label_maps = sorted((made / "ade20k" / "annotations" / PARTS[part]).iterdir())
    pictures = sorted((made / "ade20k" / "images" / PARTS[part]).iterdir())
    for image, file, picture in zip(document["images"], label_maps, pictures, strict=True):
        assert (made / "coco" / f"{part}2017" / image["file_name"]).read_bytes() == picture.read_bytes()
        labels = np.asarray(Image.open(file))
        assert labels.dtype == np.uint8 and labels.shape == (image["height"], image["width"]) == (64, 64)
        assert Image.open(picture).size == (64, 64) and Image.open(picture).mode == "RGB"
        times, seen = np.zeros(labels.shape, int), np.zeros_like(labels)
        for thing in document["annotations"]:
            if thing["image_id"] == image["id"]:
                mask = rasterised(thing, labels.shape)
                rows, columns = np.nonzero(mask)
                x, y = columns.min(), rows.min()
                assert thing["bbox"] == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]
                assert thing["area"] == mask.sum()
                times += mask
                seen[mask] = thing["category_id"]
        assert times.max() == 1 and (seen == labels).all()


def test_classes_and_their_shares(made: Path):
    head, *rows = [line.split("\t") for line in (made / "ade20k" / "objectInfo150.txt").read_text().splitlines()]
    assert head == ["Idx", "Ratio", "Train", "Val", "Name"]
    labels = {
        part: np.stack([np.asarray(Image.open(file)) for file in (made / "ade20k" / "annotations" / name).iterdir()])
        for part, name in PARTS.items()
    }
    for number, (row, name) in enumerate(zip(rows, CLASSES, strict=True), start=1):
        pixels = {part: maps == number for part, maps in labels.items()}
        share = np.concatenate([*pixels.values()]).mean()
        holding = [str(pixels[part].any((1, 2)).sum()) for part in PARTS]
        assert row == [str(number), f"{share:.4f}", *holding, name]


def test_files_are_those_of_the_seed(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    flags = [f"--{name}={value}" for name, value in SMALL.items()]
    assert main(["scenes", f"--out={tmp_path}/again", *flags]) == 0
    assert files(tmp_path / "again") == files(made)
    assert "12 training and 5 held-out scenes" in capsys.readouterr().out
    assert main(["scenes", f"--out={tmp_path}/other", *flags, "--seed=1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["train"], shown["val"], shown["classes"]) == (SMALL["train"], SMALL["val"], list(CLASSES))
    things = [thing for part in PARTS for thing in annotations(tmp_path / "other", part)["annotations"]]
    crowds = sum(thing["iscrowd"] for thing in things)
    assert (shown["objects"], shown["crowds"]) == (len(things) - crowds, crowds)
    other = files(tmp_path / "other")
    assert not {*files(made).values()} & {content for name, content in other.items() if name.endswith(".jpg")}


def test_fewer_scenes_are_the_first_ones(made: Path, tmp_path: Path):
    emae.scenes(out=tmp_path / "few", **SMALL | {"train": 3, "val": 2})
    all_of_them = files(made)
    pictures = {name: content for name, content in files(tmp_path / "few").items() if name.endswith((".jpg", ".png"))}
    assert len(pictures) == 3 * 5
    assert all(all_of_them[name] == content for name, content in pictures.items())


def test_each_part_shows_its_own_garments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Those of the training part are made tall here, those of the held-out part wide."""
    bars = np.zeros((2, 28, 28), np.uint8)
    bars[0, 4:24, 10:15] = bars[1, 10:15, 4:24] = 200
    monkeypatch.setattr(
        command,
        "open_source",
        lambda spec, part: ArraySource(spec, ("bar",), bars[[int(part == "test")]], np.zeros(1, np.int64)),
    )
    emae.scenes(out=tmp_path / "bars", objects=(1, 1), **SMALL)
    for part, taller in (("train", True), ("val", False)):
        things = [thing for thing in annotations(tmp_path / "bars", part)["annotations"] if not thing["iscrowd"]]
        assert things
        for _, _, width, height in (thing["bbox"] for thing in things):
            assert (height > 2 * width) == taller and (width > 2 * height) != taller


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"objects": (3, 2)}, r"objects=\[3, 2\]: must be \[least, most\]"),
        ({"objects": (0, 100)}, r"objects\[1\]=100: must be at least 0 and at most 99"),
        ({"size": 16}, "size=16: must be at least 32 and at most 1024"),
        ({"train": 0}, "train=0: must be at least 1"),
    ],
)
def test_what_cannot_be(tmp_path: Path, settings: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        emae.scenes(out=tmp_path / "none", **SMALL | settings)
    assert not any(tmp_path.iterdir())


def test_what_is_there_is_left(made: Path):
    before = files(made)
    with pytest.raises(InputError, match="isn't an empty folder"):
        emae.scenes(out=made, **SMALL)
    assert files(made) == before
