"""Hugging Face datasets from local disk, and what is said when they cannot be had."""

import io
import pickle
import sys

import datasets
import numpy as np
import pytest
from PIL import Image

from efficient_mae.data import DataChoice, UnreadableImage, open_labelled, open_source
from efficient_mae.errors import InputError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 6), shade).save(file, "PNG")
    return file.getvalue()


def photo(shade: int) -> dict:
    return {"bytes": png(shade), "path": None}


def rows(cells, labels=(1, 0, -1), **others) -> datasets.Dataset:
    features = {"id": datasets.Value("string"), "photo": datasets.Image(), **others}
    data = {"id": [str(i) for i in range(len(cells))], "photo": cells}
    if labels:
        features["kind"] = datasets.ClassLabel(names=["cat", "dog"])
        data["kind"] = list(labels)
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


def test_images_are_told_by_a_digest(tmp_path):
    """Wherever they lie; as rows have no names, of a few that are stored."""
    digests = []
    for name, shades in (("a", (3, 4)), ("b", (3, 4)), ("c", (3, 5))):
        rows([photo(shade) for shade in shades], labels=()).save_to_disk(tmp_path / name)
        digests.append(open_source(f"hf:{tmp_path}/{name}").fingerprint())
    assert digests[0] == digests[1] != digests[2]


def test_saved_to_disk(tmp_path):
    good, bad = {"bytes": png(7), "path": None}, {"bytes": png(7)[:50], "path": None}
    rows([good, bad, None]).save_to_disk(tmp_path / "set")
    source = open_source(f"hf:{tmp_path}/set")
    assert len(source) == 3
    assert source.classes == ("cat", "dog")
    assert [source.label(i) for i in range(3)] == [1, 0, None]
    assert source.image(0).getpixel((0, 0)) == 7
    for index in (1, 2):
        with pytest.raises(UnreadableImage) as caught:
            source.image(index)
        assert caught.value.name == source.sample_name(index) == f"hf:{tmp_path}/set train[{index}]"
    with pytest.raises(InputError, match="no held-out part"):
        open_source(f"hf:{tmp_path}/set", "test")


@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_splits(tmp_path, held_out):
    train, test = rows([{"bytes": png(1), "path": None}] * 3), rows([{"bytes": png(2), "path": None}], [1])
    datasets.DatasetDict({"train": train, held_out: test}).save_to_disk(tmp_path / "set")
    assert open_source(f"hf:{tmp_path}/set").image(0).getpixel((0, 0)) == 1
    assert open_source(f"hf:{tmp_path}/set", "test").image(0).getpixel((0, 0)) == 2


def test_an_only_split_is_the_training_part(tmp_path):
    datasets.DatasetDict({"everything": rows([photo(3)], [0])}).save_to_disk(tmp_path / "s")
    assert open_source(f"hf:{tmp_path}/s").image(0).getpixel((0, 0)) == 3


def test_rows_chosen_by_datasets_itself(tmp_path):
    cells = [{"bytes": png(shade), "path": None} for shade in range(6)]
    rows(cells, [0, 1, 0, 1, 0, 1]).select([5, 2, 3]).save_to_disk(tmp_path / "s")
    source = open_source(f"hf:{tmp_path}/s")
    assert [source.image(i).getpixel((0, 0)) for i in range(3)] == [5, 2, 3]
    assert [source.label(i) for i in range(3)] == [1, 0, 1]


def test_parquet_file(tmp_path):
    rows([{"bytes": png(4), "path": None}], labels=None).to_parquet(tmp_path / "a.parquet")
    source = open_source(f"hf:{tmp_path}/a.parquet")
    assert source.image(0).getpixel((0, 0)) == 4
    assert source.classes is None and source.label(0) is None


@pytest.mark.parametrize(
    ("column", "kind", "cells", "classes", "labels"),
    [
        ("label", "int64", [2, 0, None, -1], ("0", "2"), [1, 0, None, None]),
        ("labels", "int8", [1, 2, 10, 2], ("1", "2", "10"), [0, 1, 2, 1]),
        ("label", "string", ["dog", "cat", None, "dog"], ("cat", "dog"), [1, 0, None, 1]),
        ("labels", "large_string", ["cafe\u0301", "caf\u00e9", "tea", ""], ("caf\u00e9", "tea"), [0, 0, 1, None]),
        ("label", "bool", [True, False, None, True], ("False", "True"), [1, 0, None, 1]),
        ("label", "string", ["3", "1", "3", "11"], ("1", "3", "11"), [1, 0, 1, 2]),
    ],
)
def test_labels_of_any_type(tmp_path, column, kind, cells, classes, labels):
    features = {column: datasets.Value(kind), "photo": datasets.Image()}
    data = {column: cells, "photo": [photo(4)] * 4}
    datasets.Dataset.from_dict(data, features=datasets.Features(features)).save_to_disk(tmp_path / "s")
    source = open_source(f"hf:{tmp_path}/s")
    assert source.classes == classes and source.why_unlabelled == ""
    assert [source.label(i) for i in range(4)] == labels


def test_names_of_classes_that_differ_in_unicodes_normal_form(tmp_path):
    kinds = datasets.ClassLabel(names=["cafe\u0301", "tea", "caf\u00e9"])
    features = datasets.Features({"kind": kinds, "photo": datasets.Image()})
    data = {"kind": [2, 1, 0, -1], "photo": [photo(4)] * 4}
    datasets.Dataset.from_dict(data, features=features).save_to_disk(tmp_path / "s")
    source = open_source(f"hf:{tmp_path}/s")
    assert source.classes == ("caf\u00e9", "tea")
    assert [source.label(i) for i in range(4)] == [0, 1, 0, None]


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        (
            {"fine": datasets.ClassLabel(names=["a"]), "coarse": datasets.ClassLabel(names=["b"])},
            "fine and coarse may",
        ),
        (
            {"species": datasets.Value("int64")},
            "no column is called label or labels or cls or class, to be the class",
        ),
        ({"label": datasets.Value("float32")}, "the column label holds float32, not one number, word or truth value"),
        ({"label": datasets.List(datasets.Value("int64"))}, "the column label holds List, not one number"),
        ({"label": datasets.Value("int64"), "class": datasets.Value("int64")}, "label and class may be the class"),
    ],
)
def test_why_there_are_no_labels(tmp_path, columns, why):
    cells = {name: [[0]] if isinstance(kind, datasets.List) else [0] for name, kind in columns.items()}
    features = datasets.Features({**columns, "photo": datasets.Image()})
    datasets.Dataset.from_dict({**cells, "photo": [photo(4)]}, features=features).save_to_disk(tmp_path / "s")
    source = open_source(f"hf:{tmp_path}/s")
    assert source.classes is None and source.label(0) is None and source.why_unlabelled.startswith(why)
    with pytest.raises(InputError, match=f"data=hf:.*: has no labels: {why}"):
        open_labelled(f"hf:{tmp_path}/s")


def test_the_column_of_labels_is_chosen(tmp_path):
    kinds = {"fine": datasets.ClassLabel(names=["a", "b"]), "coarse": datasets.Value("string")}
    features = datasets.Features({**kinds, "photo": datasets.Image()})
    data = {"fine": [1, 0], "coarse": ["x", "y"], "photo": [photo(4)] * 2}
    datasets.Dataset.from_dict(data, features=features).save_to_disk(tmp_path / "s")
    for column, classes in {"fine": ("a", "b"), "coarse": ("x", "y")}.items():
        assert open_source(f"hf:{tmp_path}/s", "train", DataChoice(label=column)).classes == classes
    with pytest.raises(
        InputError, match=r"label='fines': is no column; did you mean fine\?; its columns: fine, coarse"
    ):
        open_source(f"hf:{tmp_path}/s", "train", DataChoice(label="fines"))


def test_the_column_of_images_is_chosen(tmp_path):
    features = {name: datasets.Image() for name in ("mask", "photo")}
    data = {"mask": [photo(1)], "photo": [photo(2)]}
    datasets.Dataset.from_dict(data, features=datasets.Features(features)).save_to_disk(tmp_path / "s")
    with pytest.raises(InputError, match="several columns hold images: name one with --column mask or photo"):
        open_source(f"hf:{tmp_path}/s")
    for column, shade in (("mask", 1), ("photo", 2)):
        source = open_source(f"hf:{tmp_path}/s", "train", DataChoice(column=column))
        assert source.image(0).getpixel((0, 0)) == shade
    with pytest.raises(
        InputError, match=r"column='fotos': has no images; did you mean photo\?; those that do: mask, photo"
    ):
        open_source(f"hf:{tmp_path}/s", "train", DataChoice(column="fotos"))


def test_a_column_called_image_is_the_image(tmp_path):
    features = {name: datasets.Image() for name in ("annotation", "image")}
    data = {"annotation": [photo(1)], "image": [photo(2)]}
    datasets.Dataset.from_dict(data, features=datasets.Features(features)).save_to_disk(tmp_path / "s")
    assert open_source(f"hf:{tmp_path}/s").image(0).getpixel((0, 0)) == 2


def test_images_within_others(tmp_path):
    inner = {"picture": datasets.Image(), "label": datasets.Value("string")}
    data = {"sample": [{"picture": photo(shade), "label": f"n{shade}"} for shade in (3, 4)]}
    datasets.Dataset.from_dict(data, features=datasets.Features({"sample": inner})).save_to_disk(tmp_path / "s")
    source = open_source(f"hf:{tmp_path}/s", "train", DataChoice(label="sample.label"))
    assert [source.image(i).getpixel((0, 0)) for i in range(2)] == [3, 4]
    assert source.classes == ("n3", "n4") and source.label(1) == 1


def test_lists_of_images(tmp_path):
    features = datasets.Features({"views": datasets.List(datasets.Image()), "label": datasets.Value("int64")})
    cells = [[photo(1), photo(2)], [], None, [photo(3), {"bytes": b"damage", "path": None}], [photo(5)]]
    whole = datasets.Dataset.from_dict({"views": cells, "label": [7, 8, 9, 10, 11]}, features=features)
    whole.select([4, 3, 1, 2, 0]).save_to_disk(tmp_path / "s")
    source = pickle.loads(pickle.dumps(open_source(f"hf:{tmp_path}/s")))
    assert [source.sample_name(i).rpartition(" ")[2] for i in range(len(source))] == [
        "train[0][0]",
        "train[1][0]",
        "train[1][1]",
        "train[4][0]",
        "train[4][1]",
    ]
    assert [source.image(i).getpixel((0, 0)) for i in (0, 1, 3, 4)] == [5, 3, 1, 2]
    assert [source.classes[source.label(i)] for i in range(5)] == ["11", "10", "10", "7", "7"]
    with pytest.raises(UnreadableImage, match=r"train\[1\]\[1\]"):
        source.image(2)


def test_any_split_and_part(tmp_path):
    parts = {"train": range(1, 3), "unlabeled": range(10, 20), "dev": range(30, 32)}
    tables = {name: rows([photo(shade) for shade in shades], None) for name, shades in parts.items()}
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "s")

    def shades(part, **choice):
        source = open_source(f"hf:{tmp_path}/s", part, DataChoice(**choice))
        return [source.image(i).getpixel((0, 0)) for i in range(len(source))]

    assert shades("train") == [1, 2]
    assert shades("train", split="unlabeled") == list(range(10, 20))
    assert shades("train", split="unlabeled[:30%]") == [10, 11, 12]
    assert shades("train", split="train+unlabeled[-2:]") == [1, 2, 18, 19]
    assert shades("test", val_split="dev", split="unlabeled") == [30, 31]
    with pytest.raises(InputError, match="no held-out part: it has the splits train, unlabeled, dev, .*--val_split"):
        shades("test")
    for split in ("unlabelled", "train[", "train[:30", ""):
        with pytest.raises(InputError, match="split='.*': .*; its splits: train, unlabeled, dev"):
            shades("train", split=split)


def test_folder_of_images(tmp_path):
    for split, kind, shade in [("train", "cat", 1), ("train", "dog", 2), ("test", "cat", 3), ("test", "dog", 4)]:
        folder = tmp_path / "photos" / split / kind
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(png(shade))
    train, test = open_source(f"hf:{tmp_path}/photos"), open_source(f"hf:{tmp_path}/photos", "test")
    assert train.classes == ("cat", "dog")
    assert [train.image(i).getpixel((0, 0)) for i in range(2)] == [1, 2]
    assert [(test.image(i).getpixel((0, 0)), test.label(i)) for i in range(2)] == [(3, 0), (4, 1)]
    (tmp_path / "photos" / "train" / "cat" / "1.png").unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        train.image(0)


def test_no_column_of_images(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "s")
    with pytest.raises(InputError, match=r"no image in it: 1 rows with the columns text"):
        open_source(f"hf:{tmp_path}/s")


def test_what_cannot_be_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    (tmp_path / "nothing").mkdir()
    for spec in (
        f"hf:{tmp_path}/a.parquet",
        f"hf:{tmp_path}/nothing",
        "hf:nobody/nothing",
        "hf:nobody/nothing:small",
    ):
        with pytest.raises(InputError) as caught:
            open_source(spec)
        assert spec in str(caught.value) and "\n" not in str(caught.value)


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'efficient-mae\[hub\]'"):
        open_source("hf:any/thing")


def test_pixels_are_those_that_datasets_decodes(tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG")
    rows([{"bytes": file.getvalue(), "path": None}], [0]).save_to_disk(tmp_path / "s")
    reference = datasets.load_from_disk(str(tmp_path / "s"))[0]["photo"]
    assert np.array_equal(np.asarray(open_source(f"hf:{tmp_path}/s").image(0)), np.asarray(reference))
