from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficient_mae.data import Subset, open_labelled, open_source, spread
from efficient_mae.data.sources import labelled
from efficient_mae.data.sources.fashion_mnist import ArraySource


def write(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        folder = root / name.replace("__", "/")
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("L", (8, 8), number).save(folder / f"{number}.png")
    return root


def array(classes: tuple[str, ...], labels: list[int]) -> ArraySource:
    return ArraySource("array", classes, np.zeros((len(labels), 8, 8), np.uint8), np.array(labels))


def test_a_folder_with_a_held_out_part(tmp_path: Path):
    found = open_labelled(str(write(tmp_path, train__a=3, train__b=2, val__a=1, val__b=1)))
    assert found.classes == ("a", "b") and (len(found.train), len(found.test)) == (5, 2)


def test_held_out_images_elsewhere_go_by_their_classes_names(tmp_path: Path):
    train = write(tmp_path / "one", a=2, b=2, c=2)
    elsewhere = write(tmp_path / "two", b=1, c=3)
    found = open_labelled(str(train), str(elsewhere))
    assert found.classes == ("a", "b", "c")
    assert [found.test.label(index) for index in range(4)] == [1, 2, 2, 2]
    assert found.test.sample_name(1).endswith("c/0.png") and np.array(found.test.image(3)).max() == 2
    with pytest.raises(ValueError, match=r"val_data=.*two: held-out images of 1 classes .* the first 'c'"):
        open_labelled(str(write(tmp_path / "three", a=1, b=1)), str(elsewhere))


def test_held_out_images_of_one_class(tmp_path: Path):
    train, one = write(tmp_path / "one", a=2, b=2), write(tmp_path / "two", b=3)
    found = open_labelled(str(train), str(one))
    assert [found.test.label(index) for index in range(3)] == [1, 1, 1]
    # Classes are numbered by name where both parts are split, too.
    both = open_labelled(str(write(tmp_path / "three", train__a=1, train__b=1, valid__b=1)))
    assert both.test.label(0) == 1


def test_the_held_out_part_of_other_data_is_not_their_training_part(tmp_path: Path):
    train = write(tmp_path / "one", a=2, b=2)
    with pytest.raises(ValueError, match=r"val_data=.*two: held-out images of 1 classes .* the first 'c'"):
        open_labelled(str(train), str(write(tmp_path / "two", train__a=1, val__c=1)))


@pytest.mark.parametrize(
    ("counts", "what"),
    [
        ({"train__a": 3, "val__a": 1}, "data=.*: all 3 images are of one class, 'a'; give two at least"),
        (
            {"": 5},
            r"data=.*: has no labels: 5 of 5 images lie in no folder of a class, the first .*/0.png; a class is",
        ),
        (
            {"train__a": 2, "train__b": 2, "val": 3},
            r"has no labels: 3 of 3 images lie in no .*, the first .*/val/0.png",
        ),
        (
            {"train__a": 2, "train__b": 2, "train": 1, "val__a": 1},
            r"1 of 5 images lie in no .*, the first .*train/0.png",
        ),
        (
            {"train__a": 2, "train__b__c": 2, "val__a": 1},
            r"2 of 4 images lie deeper .*, the first .*/train/b/c/0.png",
        ),
        ({"a": 2, "b": 2}, "has no held-out part"),
        (
            {"train__a": 2, "train__b": 2, "val__a": 1, "val__c": 1},
            "1 classes that no training image has, the first 'c'",
        ),
    ],
)
def test_folders_that_cannot_be_learned_from(tmp_path: Path, counts: dict[str, int], what: str):
    with pytest.raises(ValueError, match=what):
        open_labelled(str(write(tmp_path, **counts)))


@pytest.mark.parametrize(
    ("train", "test", "what"),
    [
        ([0, 1, 2], [0], r"1 of 3 labels lie outside the range 0 to 1 of its 2 classes, the first 2 of array\[2\]"),
        ([0, 0, 0], [0], "all 3 images are of one class, 'a'"),
        ([0, 1, 1], [0, 5], "1 of 2 labels lie outside"),
        ([0, -1, 1], [0], r"1 of 3 images have no label, the first array\[1\]"),
    ],
)
def test_labels_that_make_no_sense(monkeypatch: pytest.MonkeyPatch, train: list[int], test: list[int], what: str):
    parts = {"train": array(("a", "b"), train), "test": array(("a", "b"), test)}
    monkeypatch.setattr(labelled, "open_source", lambda spec, part, choice: parts[part])
    with pytest.raises(ValueError, match=what):
        open_labelled("somewhere")


def test_a_held_out_class_without_training_images(monkeypatch: pytest.MonkeyPatch):
    parts = {"train": array(("a", "b", "c"), [0, 1, 1]), "test": array(("a", "b", "c"), [0, 2])}
    monkeypatch.setattr(labelled, "open_source", lambda spec, part, choice: parts[part])
    with pytest.raises(ValueError, match="1 classes that no training image has, the first 'c'"):
        open_labelled("somewhere")


def test_spread():
    source = open_source("fashion-mnist-sample")
    assert spread(source, 10_000) is source
    part = spread(source, 11)
    assert len(part) == 11 and part.classes == source.classes and isinstance(part, Subset)
    assert part.label(0) == source.label(0) and part.label(10) == source.label(9999)
    assert np.array_equal(np.array(part.image(10)), np.array(source.image(9999)))
