"""WebDataset shards, written by webdataset itself and damaged by hand."""

import gzip
import io
import tarfile

import braceexpand
import numpy as np
import pytest
import webdataset
from PIL import Image

from efficient_mae.data import UnreadableImage, open_source
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
        ("x/1.seg.JPEG", png(1)),
        ("x/1.png", png(99)),  # only the first image counts
        ("x/2.txt", b"no image in this sample"),
        ("x/2.cls", b"7"),
        ("x/3.png", png(3)),  # no label of its own
        ("y.d/3.png", png(4)),  # the same file name in another folder
        ("y.d/3.cls", b"not a number"),
        ("y.d/4.png", png(5)),
        ("y.d/4.cls", b"99999999999999"),
    ]
    write_members(tmp_path / "a.tar", members)
    source = open_source(f"wds:{tmp_path}/a.tar")
    assert shades(source) == [1, 3, 4, 5]
    assert [source.label(i) for i in range(4)] == [1, None, None, None]
    assert source.classes == ("0", "1")


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
