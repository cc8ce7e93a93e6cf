"""Hugging Face datasets from local disk, and what is said when they cannot be had."""

import io
import sys

import datasets
import numpy as np
import pytest
from PIL import Image

from efficient_mae.data import UnreadableImage, open_source
from efficient_mae.errors import InputError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 6), shade).save(file, "PNG")
    return file.getvalue()


def rows(cells, labels=(1, 0, -1), **others) -> datasets.Dataset:
    features = {"id": datasets.Value("string"), "photo": datasets.Image(), **others}
    data = {"id": [str(i) for i in range(len(cells))], "photo": cells}
    if labels:
        features["kind"] = datasets.ClassLabel(names=["cat", "dog"])
        data["kind"] = list(labels)
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


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
    datasets.DatasetDict({"everything": rows([{"bytes": png(3), "path": None}], [0])}).save_to_disk(tmp_path / "s")
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


def test_integer_labels(tmp_path):
    data = {"label": [2, 0, None], "photo": [{"bytes": png(4), "path": None}] * 3}
    features = datasets.Features({"label": datasets.Value("int64"), "photo": datasets.Image()})
    datasets.Dataset.from_dict(data, features=features).save_to_disk(tmp_path / "s")
    source = open_source(f"hf:{tmp_path}/s")
    assert source.classes == ("0", "1", "2")
    assert [source.label(i) for i in range(3)] == [2, 0, None]


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
