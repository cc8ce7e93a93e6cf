"""`--data` says what it accepts, and what is wrong with what it was given."""

import pickle

import pytest
from PIL import Image

from efficient_mae.data import DataChoice, Source, open_source
from efficient_mae.errors import InputError


def test_every_kind_is_a_source(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    for spec in (str(tmp_path), "fashion-mnist-sample"):
        source = open_source(spec)
        assert isinstance(source, Source)
        again = pickle.loads(pickle.dumps(source))
        assert (again.name, again.classes, len(again)) == (source.name, source.classes, len(source))
        assert again.image(0).tobytes() == source.image(0).tobytes()


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "photos" / "a.png")
    assert len(open_source("~/photos")) == 1


@pytest.mark.parametrize(
    "spec, message",
    [
        ("nowhere/at/all", r"no such folder: 'nowhere/at/all'; accepted: a folder of images, hf:NAME_OR_PATH"),
        ("fashon-mnist-sampel", "did you mean 'fashion-mnist-sample'?"),
        ("fashion_mnist", "did you mean 'fashion-mnist'?"),
        ("", "no such folder: ''"),
        ("wbs:a.tar", "unknown kind of data 'wbs:' in 'wbs:a.tar'; did you mean 'wds:'?"),
        ("HF:name", "did you mean 'hf:'?"),
        ("https://example.org/a", "unknown kind of data 'https:'"),
        ("hf:", "'hf:' names no data"),
        ("wds:", "'wds:' names no data"),
        ("line\nbreak", r"no such folder: 'line\nbreak'"),
        ("nul\0byte", "no such folder"),
        ("stray\udcff", "no such folder"),
    ],
)
def test_what_is_not_there(spec, message):
    with pytest.raises(InputError) as caught:
        open_source(spec)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "file, message",
    [
        ("a.png", "give the folder"),
        ("a.tar", "did you mean wds:"),
        ("a.parquet", "did you mean hf:"),
        ("a b.ZIP", r"unpack it \(unzip -q '.*/a b.ZIP' -d '.*/a b'\) and give the folder"),
        ("a.tar.gz", "unpack it and give the folder"),
    ],
)
def test_a_file_is_no_folder(tmp_path, file, message):
    (tmp_path / file).touch()
    with pytest.raises(InputError, match=f"is a file, not a folder of images: {message}"):
        open_source(str(tmp_path / file))


def test_parts_are_train_and_test():
    with pytest.raises(InputError, match="part='val': must be 'train' or 'test'"):
        open_source("fashion-mnist-sample", "val")


@pytest.mark.parametrize(
    "spec, choice, message",
    [
        ("fashion-mnist-sample", {"split": "train"}, "split='train': is for hf: data, which 'fashion-mnist-sample'"),
        ("photos", {"column": "image"}, "column='image': is for hf: data"),
        ("hf:somewhere", {"key": "jpg"}, "key='jpg': is for wds: data"),
        ("photos", {"label": "kind"}, "label='kind': is for hf: and wds: data"),
    ],
)
def test_what_leaves_no_choice(spec, choice, message):
    with pytest.raises(InputError, match=message):
        open_source(spec, "train", DataChoice(**choice))
