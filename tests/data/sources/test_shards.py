"""WebDataset shards, written by webdataset itself and damaged by hand."""

import gzip
import io
import re
import tarfile

import braceexpand
import numpy as np
import pytest
import webdataset
from PIL import Image

from efficient_mae.data import DataChoice, UnreadableImage, open_labelled, open_source
from efficient_mae.data.sources import shard_index
from efficient_mae.data.sources.shards import expand_braces
from efficient_mae.errors import InputError


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 6), shade).save(file, "PNG")
    return file.getvalue()


def write(path, shades, labels=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as sink:
        for shade in shades:
            sample = {"__key__": f"folder/sample{shade:04d}", "png": png(shade), "json": {"shade": shade}}
            sink.write({**sample, "cls": shade % 3} if labels else sample)
    return path


def write_members(path, members):
    """A tar of (name, content) pairs; content None makes a symbolic link to /etc/passwd."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def write_plain(path, shades):
    """The like of `write` without its extended headers, whose damage shows in other ways."""
    return write_members(path, [(f"folder/sample{shade:04d}.png", png(shade)) for shade in shades])


def shades(source) -> list[int]:
    return [source.image(i).getpixel((0, 0)) for i in range(len(source))]


def test_order_and_labels_are_webdatasets(tmp_path):
    for shard in range(3):
        write(tmp_path / f"s{shard:03d}.tar", range(shard * 5, shard * 5 + 5))
    pattern = f"{tmp_path}/s{{000..002}}.tar"
    reference = webdataset.WebDataset(pattern, shardshuffle=False).decode("pil").to_tuple("png", "cls")
    source = open_source(f"wds:{pattern}")
    assert source.classes == ("0", "1", "2")
    found = [(np.asarray(source.image(i)), source.label(i)) for i in range(len(source))]
    for (image, label), (other, number) in zip(found, reference, strict=True):
        assert np.array_equal(image, np.asarray(other.convert("L")))
        assert label == number
    assert source.sample_name(6) == f"{tmp_path}/s001.tar:folder/sample0006.png"
    assert source.damaged_shards == []


@pytest.mark.parametrize("pattern", ["{dir}/*.tar", "{dir}", "{dir}/{{a,b}}.tar", "{dir}/[ab].tar"])
def test_patterns(tmp_path, pattern):
    write(tmp_path / "b.tar", [2, 3], labels=False)
    write(tmp_path / "a.tar", [0, 1], labels=False)
    source = open_source("wds:" + pattern.format(dir=tmp_path))
    assert shades(source) == [0, 1, 2, 3]
    assert source.classes is None and source.label(0) is None


def test_split_folders(tmp_path):
    write(tmp_path / "train" / "0.tar", [1, 2])
    write(tmp_path / "val" / "0.tar", [3])
    assert shades(open_source(f"wds:{tmp_path}")) == [1, 2]
    assert shades(open_source(f"wds:{tmp_path}", "test")) == [3]
    with pytest.raises(InputError, match="no held-out part"):
        open_source(f"wds:{tmp_path}/train/*.tar", "test")


@pytest.mark.parametrize(
    "pattern",
    ["a{000..012}b", "{7..9}", "{9..7}", "{a,b,}x{1..2}", "plain", "{08..11}-{x,y}", "{0..10}", "{8..011}"],
)
def test_braces(pattern):
    assert list(expand_braces(pattern)) == list(braceexpand.braceexpand(pattern))


def test_bad_braces():
    for pattern in ("a{b}", "a{x,b{1,2}}", "{1..}"):
        with pytest.raises(InputError, match="neither a range"):
            list(expand_braces(pattern))


def test_members_of_a_sample(tmp_path):
    members = [
        ("x/1.cls", b"1"),  # a label before its image
        ("x/1.npy", b"features, no image"),
        ("x/1.seg.JPEG", png(1)),  # an image of any ending, where it is the only one
        ("x/2.txt", b"no image in this sample"),
        ("x/2.cls", b"7"),
        ("x/3.png", png(3)),  # no label of its own
        ("y.d/3.png", png(4)),  # the same file name in another folder
        ("y.d/3.cls", b"not a number"),
        ("y.d/4.png", png(5)),
        ("y.d/4.cls", b"99999999999999"),
        ("y.d/4.png", png(6)),  # the sample again
        ("y.d/4.cls", b"10"),
    ]
    write_members(tmp_path / "a.tar", members)
    source = open_source(f"wds:{tmp_path}/a.tar")
    assert shades(source) == [1, 3, 4, 5, 6]
    assert [source.label(i) for i in range(5)] == [0, None, None, None, 1]
    assert source.classes == ("1", "10")


def test_arrays_are_images_where_they_are_asked_for(tmp_path):
    array = io.BytesIO()
    np.save(array, np.full((4, 5, 13), 700, np.uint16))
    write_members(tmp_path / "a.tar", [("1.jpg", png(1)), ("1.npy", array.getvalue()), ("2.npy", array.getvalue())])
    assert len(open_source(f"wds:{tmp_path}/a.tar")) == 1
    source = open_source(f"wds:{tmp_path}/a.tar", choice=DataChoice(key="npy"))
    raster = source.open(1).numbers()
    assert len(source) == 2 and raster is not None and (raster.bands, raster.size) == (13, (5, 4))
    assert (raster.window(0, 0, 4, 5) == 700).all()


@pytest.mark.parametrize(
    "names",
    [
        ["scan.0000.jpg", "scan.0001.jpg", "scan.0002.jpg"],
        ["IMG_2020.01.05.JPG", "IMG_2020.01.06.JPG", "IMG_2020.02.05.JPG"],
        ["0.5.png", "0.75.png", "1.0.final.png"],
    ],
)
def test_names_with_dots(tmp_path, names):
    members = []
    for number, name in enumerate(names):
        members += [(f"f/{name}", png(number)), (f"f/{re.sub('(.final)?.[a-zA-Z]+$', '', name)}.cls", b"%d" % number)]
    write_members(tmp_path / "a.tar", members)
    source = open_source(f"wds:{tmp_path}/a.tar")
    assert shades(source) == [0, 1, 2]
    assert [source.label(i) for i in range(3)] == [0, 1, 2]


def test_what_a_machine_put_there_is_left_out(tmp_path):
    names = [
        "._0000.jpg",
        "0000.jpg",
        "__MACOSX/._0000.jpg",
        "f/@eaDir/0000.jpg/THUMB.jpg",
        ".hidden/1.jpg",
        "./2.jpg",
    ]
    write_members(tmp_path / "a.tar", [(name, png(number)) for number, name in enumerate(names)])
    assert shades(open_source(f"wds:{tmp_path}/a.tar")) == [1, 5]


def test_several_images_in_a_sample(tmp_path):
    members = [
        ("0.depth.png", png(1)),
        ("0.jpg", png(2)),
        ("0.cls", b"4"),
        ("1.jpg", png(3)),
        ("2.depth.png", png(5)),
    ]
    path = write_members(tmp_path / "a.tar", members)
    with pytest.raises(InputError) as caught:
        open_source(f"wds:{path}")
    assert str(caught.value) == (
        f"{path}: 0.depth.png and 0.jpg are images of one sample: give --key depth.png or --key jpg, or --key '*' to "
        "take each as a sample"
    )

    def chosen(key):
        return open_source(f"wds:{path}", "train", DataChoice(key=key))

    with pytest.warns(
        UserWarning, match="1 samples left out: they hold images, but none as key='jpg' has it; .* depth.png, jpg"
    ):
        pictures = chosen("jpg")
    assert shades(pictures) == [2, 3] and [pictures.label(i) for i in range(2)] == [0, None]
    assert shades(chosen(".JPG, depth.png")) == [2, 3, 5]
    assert shades(chosen("depth.png,jpg")) == [1, 3, 5]
    assert shades(chosen("*")) == [1, 2, 3, 5]
    left_out = "no image in 1 shards whose name ends as key='webp' has it; names there end in depth.png, jpg"
    with pytest.raises(InputError) as caught:
        chosen("webp")
    assert str(caught.value) == f"wds:{path}: {left_out}"


def test_what_there_is_in_place_of_images(tmp_path):
    """Also from the cache; what stands in a file of anybody's is not printed as it is, or at any length."""
    odd = [(f"{number}.{'x' * 60}", b"") for number in range(3)] + [("3.a\x1b[31m", b""), ("4.txt", b"")]
    path = write_members(tmp_path / "a.tar", [*odd, ("4.json", b"{}")])
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            open_source(f"wds:{path}")
        assert str(caught.value) == f"wds:{path}: no image in 1 shards; names there end in txt, json"


def test_names_with_dots_that_are_no_numbers(tmp_path):
    members = [("J.Smith.png", png(1)), ("J.Smith.cls", b"x"), ("J.Doe.png", png(2)), ("J.Doe.cls", b"y")]
    path = write_members(tmp_path / "a.tar", members)
    with pytest.raises(InputError, match=r"J\.Smith\.png and J\.Doe\.png are images of one sample"):
        open_source(f"wds:{path}")
    source = open_source(f"wds:{path}", "train", DataChoice(key="*"))
    assert shades(source) == [1, 2] and source.classes == ("x", "y") and source.label(1) == 1


def labelled(path, contents, **choice):
    """The classes of samples whose labels are members' contents, by the members' ending."""
    members = []
    for number, held in enumerate(contents):
        members += [(f"{number}.{ending}", content) for ending, content in held.items()]
        members.append((f"{number}.png", png(number)))
    source = open_source(f"wds:{write_members(path, members)}", "train", DataChoice(**choice))
    return source, [None if source.label(i) is None else source.classes[source.label(i)] for i in range(len(source))]


def test_labels_are_words_or_numbers(tmp_path):
    source, labels = labelled(
        tmp_path / "a.tar", [{"cls": b"tabby cat\n"}, {"cls": b"dog"}, {"cls": b"cafe\xcc\x81"}]
    )
    assert source.classes == ("caf\u00e9", "dog", "tabby cat") and labels == ["tabby cat", "dog", "caf\u00e9"]
    source, labels = labelled(tmp_path / "b.tar", [{"cls": b"10"}, {"cls": b"9"}, {"cls": b""}, {"cls": b"-1"}])
    assert source.classes == ("9", "10") and labels == ["10", "9", None, None]


def test_labels_in_json(tmp_path):
    contents = [
        {"json": b'{"label": "cat", "kind": 1}'},
        {"json": b'{"kind": 2, "class": "dog"}'},
        {"json": b'{"label": ["cat"]}'},
        {"json": b"[" * 100_000},
        {"json": b"no json"},
        {"json": b'{"label": "cat", "kind": true}', "cls": b"cls counts for more"},
    ]
    source, labels = labelled(tmp_path / "a.tar", contents)
    assert labels == ["cat", "dog", None, None, None, "cls counts for more"] and source.why_unlabelled == ""
    assert labelled(tmp_path / "a.tar", contents[:2], label="kind")[1] == ["1", "2"]
    source, labels = labelled(tmp_path / "a.tar", contents[:2], label="species")
    assert source.classes is None and labels == [None, None]
    assert source.why_unlabelled == (
        "its samples have no .json member with an entry called species (--label names another: label, kind, class)"
    )


def test_labels_of_several_shards(tmp_path):
    labelled(tmp_path / "0.tar", [{"cls": b"b"}, {"cls": b"a"}])
    labelled(tmp_path / "1.tar", [{}, {"cls": b"c"}, {"cls": b"b"}])
    write_members(tmp_path / "2.tar", [("x.png", png(1))])
    source = open_source(f"wds:{tmp_path}")
    assert source.classes == ("a", "b", "c")
    assert [source.label(i) for i in range(6)] == [1, 0, None, 2, 1, None]


def test_why_there_are_no_labels(tmp_path):
    path = write(tmp_path / "a.tar", [1, 2], labels=False)
    with pytest.raises(
        InputError, match="has no labels: its samples have neither a .cls member nor a .json member with"
    ):
        open_labelled(f"wds:{path}")


def test_the_index_of_one_choice_is_not_anothers(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_index, "cache_folder", lambda: tmp_path / "cache")
    path = write_members(
        tmp_path / "a.tar", [("0.png", png(1)), ("0.seg.png", png(2)), ("0.json", b'{"a": 1, "b": 2}')]
    )
    for key, label, shade, classes in [("png", "a", 1, ("1",)), ("seg.png", "a", 2, ("1",)), ("png", "b", 1, ("2",))]:
        for _ in range(2):
            source = open_source(f"wds:{path}", "train", DataChoice(key=key, label=label))
            assert shades(source) == [shade] and source.classes == classes


def test_long_and_odd_names(tmp_path):
    members = [("d" * 150 + "/" + "n" * 150 + ".png", png(1)), ("new\nline.png", png(2)), ("\udcff.png", png(3))]
    write_members(tmp_path / "a.tar", members)
    source = open_source(f"wds:{tmp_path}/a.tar")
    assert shades(source) == [1, 2, 3]
    assert all(source.sample_name(i).isprintable() for i in range(3))


def test_paths_that_climb_out_and_links_touch_nothing(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    members = [
        ("../../climb.png", png(1)),
        ("/tmp/absolute_emae_test.png", png(2)),
        ("link.png", None),
        ("a.png", png(3)),
    ]
    write_members(folder / "a.tar", members)
    before = sorted(tmp_path.rglob("*"))
    source = open_source(f"wds:{folder}/a.tar")
    assert shades(source) == [1, 2, 3]
    assert sorted(tmp_path.rglob("*")) == before


def cut(data: bytes) -> bytes:
    return data[: data.index(b"folder/sample0007") + 512 + 30]


def cut_at_a_member(data: bytes) -> bytes:
    return data[: data.rindex(b"folder/sample0009")]


def spoil_a_header(data: bytes) -> bytes:
    place = data.index(b"folder/sample0006")
    return data[:place] + b"\xff" * 512 + data[place + 512 :]


def negative_size(data: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header whose size, -512, leads back to itself: tarfile of old goes round for ever."""
    place = data.index(b"folder/sample0006")
    header = bytearray(data[place : place + 512])
    header[156:157] = kind
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:place] + bytes(header) + data[place + 512 :]


def negative_size_of_an_unknown_kind(data: bytes) -> bytes:
    return negative_size(data, b"Z")


@pytest.mark.parametrize(
    "damage", [cut, cut_at_a_member, spoil_a_header, negative_size, negative_size_of_an_unknown_kind]
)
@pytest.mark.parametrize("writer", [write, write_plain])
def test_damaged_shards_are_used_as_far_as_they_go(tmp_path, writer, damage):
    whole = writer(tmp_path / "0.tar", range(10, 20))
    broken = writer(tmp_path / "1.tar", range(10))
    broken.write_bytes(damage(broken.read_bytes()))
    (tmp_path / "2.tar").write_bytes(b"")
    (tmp_path / "3.tar").write_bytes(b"no tar at all" * 100)
    with pytest.warns(match=rf"3 of 4 shards break off, and are used as far as they go: {tmp_path}/1.tar: \w"):
        source = open_source(f"wds:{tmp_path}/{{0..3}}.tar")
    found = shades(source)
    assert found[:10] == list(range(10, 20))
    assert 5 <= len(found) - 10 < 10 and found[10:] == list(range(len(found) - 10))
    assert [path for path, _ in source.damaged_shards] == [str(tmp_path / f"{i}.tar") for i in (1, 2, 3)]
    assert all(reason and "\n" not in reason for _, reason in source.damaged_shards)
    assert str(whole) not in dict(source.damaged_shards)


def test_a_shard_that_vanishes_or_shrinks(tmp_path):
    path = write(tmp_path / "0.tar", range(3))
    source = open_source(f"wds:{path}")
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UnreadableImage, match="the shard ends after"):
        source.image(0)
    path.unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        source.image(0)


def test_compressed_shards_are_refused(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(gzip.compress(write(tmp_path / "b.tar", [1]).read_bytes()))
    with pytest.raises(InputError, match=r"a.tar is compressed \(gzip\): unpack it"):
        open_source(f"wds:{path}")


def test_nothing_there(tmp_path):
    write(tmp_path / "a0.tar", [1])
    with pytest.raises(InputError, match=r"no such file: .*a1\.tar"):
        open_source(f"wds:{tmp_path}/a{{0..3}}.tar")
    with pytest.raises(InputError, match="no such file"):
        open_source(f"wds:{tmp_path}/b*.tar")
    write_members(tmp_path / "text.tar", [("a.txt", b"x")])
    with pytest.raises(InputError, match="no image in 1 shards"):
        open_source(f"wds:{tmp_path}/text.tar")
