"""Instances files: read as pycocotools reads them, and what is wrong with one is one line."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from PIL import Image
from pycocotools.coco import COCO

from efficient_mae.data import UnreadableImage
from efficient_mae.errors import InputError
from efficient_mae.tasks.detect.annotations import read_annotations
from efficient_mae.tasks.detect.config import DetectConfig
from efficient_mae.tasks.detect.data import open_coco

from .conftest import CATEGORIES, SIDE, write_coco

Changed = Callable[[Callable[[dict[str, Any]], None]], Path]
TRAIN = "annotations/instances_train2017.json"


def config(data: Path, **settings) -> DetectConfig:
    return DetectConfig(data=str(data), out="nowhere", from_scratch=True, **settings)


def test_it_is_read_as_pycocotools_reads_it(shapes: Path, capsys):
    for part in ("train2017", "val2017"):
        file = shapes / "annotations" / f"instances_{part}.json"
        read, theirs = read_annotations(file), COCO(str(file))
        assert read.ids.tolist() == sorted(theirs.getImgIds()) and not read.left_out
        for place, number in enumerate(read.ids.tolist()):
            objects, expected = read.objects(place), theirs.loadAnns(theirs.getAnnIds(imgIds=number))
            assert objects.boxes.tolist() == [one["bbox"] for one in expected]
            assert objects.areas.tolist() == [one["area"] for one in expected]
            assert objects.crowd.tolist() == [bool(one["iscrowd"]) for one in expected]
            names = [CATEGORIES[label]["id"] for label in objects.labels]
            assert names == [one["category_id"] for one in expected]
            for mask, one in zip(objects.masks(), expected, strict=True):
                assert np.array_equal(mask, theirs.annToMask(one))
    data = open_coco(config(shapes))
    assert data.classes == ("square", "disc") and data.categories == {3: "square", 7: "disc"}
    assert (len(data.train), len(data.test)) == (16, 8) and not data.notes
    assert data.test.objects(1).crowd.any() and not data.test.objects(1).alone().crowd.any()
    assert data.test.image_id(1) == 101 and data.test.objects(0).masks().shape == (0, 64, 48)


def rle(size: list[int], counts: Any) -> dict[str, Any]:
    return {"size": size, "counts": counts}


def first(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][0].update(changes)


def twice(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content[name].append(copy.deepcopy(content[name][0]))


# A code of 100 pixels, all of an object.
FULL = coco_mask.encode(np.ones((10, 10), np.uint8, order="F"))["counts"].decode()

REFUSED = {
    "image": (first(image_id=9), "annotation 1: is of image 9, which isn't listed"),
    "category": (first(category_id=4), "annotation 1: is of category 4, which isn't listed"),
    "ids": (twice("annotations"), "two annotations have the id 1"),
    "image ids": (twice("images"), "two images have the id 100"),
    "category ids": (twice("categories"), "two categories have the id 3"),
    "names": (lambda content: content["categories"][1].update(name="square"), "two categories are called 'square'"),
    "no list": (lambda content: content.pop("annotations"), "has no list of annotations"),
    "no images": (lambda content: content.update(images=[]), "lists no images"),
    "no id": (lambda content: content["annotations"][0].pop("id"), "entry 0 of annotations has no id that is a"),
    "no name": (lambda content: content["images"][0].pop("file_name"), "entry 0 of images has no file_name that is"),
    "a way out": (lambda content: content["images"][0].update(file_name="../a.png"), "leads out of the folder"),
    "no pixels": (lambda content: content["images"][0].update(height=0), "image 100: is 48 x 0 pixels"),
    "three sides": (first(bbox=[1, 2, 3]), "annotation 1: bbox must be four numbers"),
    "no number": (first(bbox=[1, 2, 3, float("nan")]), "annotation 1: bbox must be four numbers"),
    "area": (first(area="large"), "annotation 1: area='large': must be a number"),
    "no polygon": (first(segmentation=[1, 2, 3]), "annotation 1: segmentation must be polygons or a run-length code"),
    "a word": (first(segmentation=[[1, 2, 3, 4, 5, "six"]]), "annotation 1: a polygon holds something else"),
    "code's size": (first(segmentation=rle([48, SIDE], [])), r"\[48, 64\], and the image is \[64, 48\]"),
    "code's counts": (first(segmentation=rle([SIDE, 48], [7])), "code is of 7 pixels, and the image has 3072"),
    "code's text": (first(segmentation=rle([SIDE, 48], FULL)), r"none of \[64, 48\] .* pixels: .*expected"),
    "code's long text": (first(segmentation=rle([SIDE, 48], 9 * FULL)), r"none of \[64, 48\] .* pixels: "),
    "no code": (first(segmentation=rle([SIDE, 48], "no code")), r"none of \[64, 48\] .* pixels: "),
    "no text": (first(segmentation=rle([SIDE, 48], "")), r"none of \[64, 48\] .* pixels: "),
    "no counts": (first(segmentation=rle([SIDE, 48], None)), "counts of a run-length code must be a text"),
    "nothing to learn": (lambda content: content.update(annotations=[]), "no image with an object to learn from"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_makes_no_sense_is_refused_in_one_line(changed: Changed, kind: str):
    change, what = REFUSED[kind]
    with pytest.raises(InputError, match=what) as raised:
        open_coco(config(changed(change)))
    assert "\n" not in str(raised.value)


LEFT_OUT = {
    "empty": (first(bbox=[5, 5, 0, 4]), "1 of an empty or negative box, the first 1"),
    "negative": (first(bbox=[5, 5, 6, -4]), "1 of an empty or negative box, the first 1"),
    "outside": (first(bbox=[48, 5, 6, 4]), "1 of a box outside the image, the first 1"),
    "two points": (first(segmentation=[[1, 2, 3, 4]]), "1 of polygons of less than three points, the first 1"),
    "polygon outside": (first(segmentation=[[50, 2, 60, 4, 55, 9]]), "1 of polygons outside the image, the first 1"),
    "far outside": (first(segmentation=[[1, 2, 1e12, 4, 9, 9]]), "1 of polygons outside the image, the first 1"),
    "no mask": (first(segmentation=[]), "1 without a mask, the first 1"),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_what_is_nowhere_is_left_out_and_counted(changed: Changed, kind: str):
    change, what = LEFT_OUT[kind]
    data = open_coco(config(changed(change)))
    assert "left out 1 annotations: " in data.notes[0] and data.notes[0].endswith(what)
    shown = sum(len(data.train.objects(number).labels) for number in range(len(data.train)))
    file = json.loads((Path(data.train.name) / TRAIN).read_text())
    assert shown == len(file["annotations"]) - 1


def test_a_polygon_that_ends_beyond_the_image_is_cut(changed: Changed):
    data = open_coco(config(changed(first(segmentation=[[40, 10, 90, 10, 90, 30, 40, 30], [1, 2, 3, 4]]))))
    (mask, *_), expected = data.train.objects(0).masks(), np.zeros((SIDE, 48), np.uint8)
    expected[10:30, 40:] = 1
    assert np.array_equal(mask, expected)


def test_a_file_that_is_cut_short(changed: Changed):
    file = changed(lambda content: None) / TRAIN
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"instances_train2017.json: not readable as JSON \(") as raised:
        open_coco(config(file.parents[1]))
    assert "\n" not in str(raised.value)


def test_where_files_lie(tmp_path: Path):
    folder = write_coco(tmp_path / "data", train=2, val=1)
    annotations = folder / "annotations"
    with pytest.raises(InputError, match="data=/nowhere: no such folder"):
        open_coco(config(Path("/nowhere")))
    (annotations / "instances_train2014.json").write_text("{}")
    with pytest.raises(InputError, match=r"2 files .* name the file by --train_annotations"):
        open_coco(config(folder))
    named = {"train_annotations": str(annotations / "instances_train2017.json")}
    assert len(open_coco(config(folder, **named)).train) == 2
    (folder / "images").mkdir()
    (folder / "val2017").rename(folder / "images" / "val2017")
    assert len(open_coco(config(folder, **named)).test) == 1
    (folder / "images" / "val2017").rename(folder / "elsewhere")
    with pytest.raises(InputError, match=r"no such folder of the images .* name it by --val_images"):
        open_coco(config(folder, **named))
    assert len(open_coco(config(folder, **named, val_images=str(folder / "elsewhere"))).test) == 1
    file = annotations / "instances_val2017.json"
    file.write_text(file.read_text().replace('"disc"', '"ring"'))
    with pytest.raises(InputError, match="its categories are not those of .* the first that differs is 7"):
        open_coco(config(folder, **named, val_images=str(folder / "elsewhere")))


def test_images_that_are_not_there_or_of_another_size_are_named(changed: Changed):
    folder = changed(lambda content: None)
    (folder / "train2017" / "000000.png").unlink()
    Image.new("RGB", (20, 30)).save(folder / "train2017" / "000001.png")
    train = open_coco(config(folder)).train
    for number, reason in (
        (0, "No such file or directory"),
        (1, "is of 20 x 30 pixels, and its annotations are of 64 x 64"),
    ):
        with pytest.raises(UnreadableImage) as raised:
            train.open(number)
        assert raised.value.reason == reason
