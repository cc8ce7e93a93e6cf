"""Folders as people have them: nested, mixed, linked in circles, oddly named."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficient_mae.data import UnreadableImage, open_source
from efficient_mae.errors import InputError


def put(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 6), shade).save(path, None if path.suffix.lower() in Image.registered_extensions() else "PNG")
    return path


def names(source, root: Path) -> list[str]:
    return [str(Path(source.sample_name(i)).relative_to(root)) for i in range(len(source))]


def test_nested_and_mixed_formats_without_labels(tmp_path):
    for number, name in enumerate(["z.png", "b/a.JPG", "b/deep/er/c.Tiff", "b/d.webp", "a.pgm"]):
        put(tmp_path / name, number)
    (tmp_path / "b" / "notes.txt").write_text("x")
    (tmp_path / "b" / "jpg").write_text("no dot")
    source = open_source(str(tmp_path))
    assert names(source, tmp_path) == ["a.pgm", "z.png", "b/a.JPG", "b/d.webp", "b/deep/er/c.Tiff"]
    assert source.classes is None
    assert source.label(0) is None
    assert [source.image(i).getpixel((0, 0)) for i in (0, 1)] == [4, 0]


def test_what_machines_put_there_is_left_out(tmp_path):
    put(tmp_path / "a.jpg")
    for folder in (".thumbnails", "@eaDir", "#recycle", "__MACOSX"):
        put(tmp_path / folder / "a.jpg" / "SYNOPHOTO_THUMB_M.jpg")
    (tmp_path / "._a.jpg").write_bytes(b"macOS")
    assert names(open_source(str(tmp_path)), tmp_path) == ["a.jpg"]


def test_a_folder_per_class(tmp_path):
    for number, name in enumerate(["dog/1.png", "cat/2.png", "cat/1.png", "ant/9.png"]):
        put(tmp_path / name, number)
    (tmp_path / "empty").mkdir()
    source = open_source(str(tmp_path))
    assert source.classes == ("ant", "cat", "dog")
    assert [source.label(i) for i in range(len(source))] == [0, 1, 1, 2]
    assert [source.image(i).getpixel((0, 0)) for i in range(4)] == [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        (
            ["loose.png"],
            r"1 of 3 images lie in no folder of a class, the first .*/loose.png; a class is a folder direc",
        ),
        (
            ["cat/deep/er.png"],
            r"1 of 3 images lie deeper than in the folder of a class, the first .*/cat/deep/er.png;",
        ),
        (["1.png", "2.png", "a/b/3.png"], r"2 of 5 images lie in no folder of a class, the first .*/1.png;"),
    ],
)
def test_one_image_elsewhere_means_no_classes(tmp_path, extra, why):
    for name in ["dog/1.png", "cat/2.png", *extra]:
        put(tmp_path / name)
    source = open_source(str(tmp_path))
    assert source.classes is None and source.label(0) is None
    assert re.match(why, source.why_unlabelled)


def test_one_folder_is_one_class(tmp_path):
    put(tmp_path / "images" / "1.png")
    source = open_source(str(tmp_path))
    assert source.classes == ("images",) and source.label(0) == 0 and source.why_unlabelled == ""


@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "test", "Val", "TEST"])
@pytest.mark.parametrize("training", ["train", "Train"])
def test_train_beside_a_held_out_folder_is_a_split(tmp_path, training, held_out):
    for name in [f"{training}/ant/1.png", f"{training}/cat/1.png", f"{held_out}/cat/2.png"]:
        put(tmp_path / name)
    put(tmp_path / "other" / "1.png")
    train, test = open_source(str(tmp_path)), open_source(str(tmp_path), "test")
    assert names(train, tmp_path) == [f"{training}/ant/1.png", f"{training}/cat/1.png"]
    assert names(test, tmp_path) == [f"{held_out}/cat/2.png"]
    assert train.classes == ("ant", "cat")
    assert test.classes == ("cat",) and test.label(0) == 0


def test_train_alone_is_a_split(tmp_path):
    put(tmp_path / "train" / "ant" / "1.png")
    put(tmp_path / "train" / "cat" / "1.png")
    put(tmp_path / "@eaDir" / "train.png")
    (tmp_path / "annotations" / "more").mkdir(parents=True)
    (tmp_path / "annotations" / "more" / "all.json").write_text("{}")
    assert open_source(str(tmp_path)).classes == ("ant", "cat")


@pytest.mark.parametrize("beside", ["bus/1.png", "more/of/it/1.png", "1.png"])
def test_train_beside_other_images_is_no_split(tmp_path, beside):
    put(tmp_path / "train" / "1.png")
    put(tmp_path / beside)
    assert set(names(open_source(str(tmp_path)), tmp_path)) == {"train/1.png", beside}
    with pytest.raises(InputError, match="has no held-out part"):
        open_source(str(tmp_path), "test")


def test_a_class_called_train(tmp_path):
    for kind in ("bicycle", "bus", "train"):
        for number in range(10):
            put(tmp_path / "vehicles" / kind / f"{number}.png")
    source = open_source(str(tmp_path / "vehicles"))
    assert len(source) == 30 and source.classes == ("bicycle", "bus", "train")


def test_classes_that_differ_in_unicodes_normal_form_are_one(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for folder in (f"train/{composed}", f"train/{decomposed}", "train/tea", f"val/{decomposed}"):
        put(tmp_path / folder / "1.png")
    train, test = open_source(str(tmp_path)), open_source(str(tmp_path), "test")
    assert train.classes == (composed, "tea") and test.classes == (composed,)
    assert sorted(train.label(index) for index in range(3)) == [0, 0, 1]


@pytest.mark.parametrize("inside", [True, False])
def test_classes_that_are_links_to_one_folder(tmp_path, inside):
    root, store = tmp_path / "root", tmp_path / ("root/dog" if inside else "store")
    put(root / "ant" / "1.png")
    put(store / "1.png")
    for name in ("hound",) if inside else ("dog", "hound"):
        (root / name).symlink_to(store)
    source = open_source(str(root))
    assert len(source) == 2 and source.classes is None
    assert source.why_unlabelled.startswith("'dog' and 'hound' are one folder, whose images would have two classes")


def test_no_held_out_part(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "val" / "a.png")
    with pytest.raises(InputError, match="has no held-out part: put images in"):
        open_source(str(tmp_path), "test")
    assert len(open_source(str(tmp_path))) == 2


def test_links_in_circles(tmp_path):
    put(tmp_path / "a" / "1.png")
    put(tmp_path / "b" / "2.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert names(open_source(str(tmp_path)), tmp_path) == ["a/1.png", "b/2.png"]


def test_linked_folders_and_files_are_read(tmp_path):
    put(tmp_path / "store" / "1.png", 5)
    root = tmp_path / "root"
    root.mkdir()
    (root / "more").symlink_to(tmp_path / "store")
    (root / "one.png").symlink_to(tmp_path / "store" / "1.png")
    source = open_source(str(root))
    assert names(source, root) == ["one.png", "more/1.png"]
    assert source.image(1).getpixel((0, 0)) == 5


def test_odd_names(tmp_path):
    odd = [b"with space.png", b"line\nbreak.png", b"not utf-8 \xff\xfe.png", "東京.png".encode()]
    plain = put(tmp_path / "plain.png", 9)
    for name in odd:
        (tmp_path / os.fsdecode(name)).write_bytes(plain.read_bytes())
    source = open_source(str(tmp_path))
    assert len(source) == 5
    assert all(source.image(i).getpixel((0, 0)) == 9 for i in range(5))
    assert all(source.sample_name(i).isprintable() for i in range(5))
    assert {Path(source.sample_name(i)).name for i in range(5)} == {
        "plain.png",
        "with space.png",
        r"line\nbreak.png",
        r"not utf-8 \xff\xfe.png",
        "東京.png",
    }


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "a_text.jpg").write_text("text")
    (tmp_path / "b_nowhere.png").symlink_to(tmp_path / "gone.png")
    put(tmp_path / "c_vanished.png")
    put(tmp_path / "d_good.png")
    source = open_source(str(tmp_path))
    (tmp_path / "c_vanished.png").unlink()
    reasons = ["not an image", "No such file", "No such file"]
    for index, reason in enumerate(reasons):
        with pytest.raises(UnreadableImage) as caught:
            source.image(index)
        assert caught.value.name == source.sample_name(index)
        assert reason in caught.value.reason
    assert source.image(3).size == (8, 6)


def test_a_folder_that_cannot_be_listed_is_left_out_and_named(tmp_path, monkeypatch):
    put(tmp_path / "good" / "1.png")
    put(tmp_path / "locked" / "2.png")
    scandir = os.scandir

    def refuse(path):
        if path.endswith(b"locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # the tests may run as root, whom no permission stops
    with pytest.warns(UserWarning, match="locked: Permission denied"):
        assert names(open_source(str(tmp_path)), tmp_path) == ["good/1.png"]


def test_the_folder_itself_cannot_be_listed(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=f"cannot list {tmp_path}.*: Permission denied"):
        open_source(str(tmp_path))


def test_no_file_is_looked_at_until_it_is_read(tmp_path, monkeypatch):
    for folder in range(3):
        (tmp_path / str(folder)).mkdir()
        for number in range(200):
            (tmp_path / str(folder) / f"{number}.png").touch()
    looked_at = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *a, **k: (looked_at.append(path), stat(path, *a, **k))[1])
    assert len(open_source(str(tmp_path))) == 600
    # pathlib's own look at the root and its subfolders `train`, twice, and one for each of the four folders
    assert len(looked_at) <= 8
    assert not any(os.fsencode(path).endswith(b".png") for path in looked_at)


@pytest.mark.parametrize("content", [[], ["notes.txt"]])
def test_no_image(tmp_path, content):
    for name in content:
        (tmp_path / name).write_text("x")
    with pytest.raises(InputError, match="no image in"):
        open_source(str(tmp_path))


def test_order_is_the_names_alone(tmp_path):
    shuffled = np.random.default_rng(0).permutation(300)
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        for number in shuffled if folder == "first" else shuffled[::-1]:
            (tmp_path / folder / f"{number}.png").touch()
    first, second = (open_source(str(tmp_path / folder)) for folder in ("first", "second"))
    assert names(first, tmp_path / "first") == names(second, tmp_path / "second")
    assert names(first, tmp_path / "first") == sorted(names(first, tmp_path / "first"))
