"""The index of a shard is kept, and made anew whenever it may be wrong; what comes of it never differs."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from efficient_mae.data import open_source
from efficient_mae.data.sources import shard_index
from efficient_mae.errors import InputError
from tests.data.sources.test_shards import shades, write


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shard_index, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The shards whose headers were read."""
    paths = []
    members = shard_index._members

    def noting(file, path):
        paths.append(path)
        return members(file, path)

    monkeypatch.setattr(shard_index, "_members", noting)
    return paths


def facts(source) -> list:
    return [
        (source.sample_name(i), source.label(i), source.image(i).getpixel((0, 0))) for i in range(len(source))
    ] + source.damaged_shards


def test_headers_are_read_once(tmp_path: Path, cache: Path, read: list[Path]):
    first, second = (write(tmp_path / f"{n}.tar", range(10 * n, 10 * n + 10)) for n in range(2))
    content = second.read_bytes()
    second.write_bytes(content[: content.index(b"folder/sample0017") + 512 + 30])
    source = facts(open_source(f"wds:{tmp_path}"))
    assert read == [first, second]
    assert facts(open_source(f"wds:{tmp_path}")) == source
    assert source[-1] == (str(second), "unexpected end of data") and len(source) == 17 + 1
    assert read == [first, second]
    assert len(list(cache.iterdir())) == 2 and not list(cache.glob(".*"))


def test_an_error_of_the_disk_is_not_a_shards(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "0.tar", range(5))
    with monkeypatch.context() as patch:

        def stale(*_):
            raise OSError(errno.ESTALE, "Stale file handle")

        patch.setattr(shard_index, "_members", stale)
        with pytest.raises(InputError, match=rf"{path}: cannot be read \(Stale file handle\)"):
            open_source(f"wds:{path}")
    assert shades(open_source(f"wds:{path}")) == [0, 1, 2, 3, 4]


def test_a_shard_that_changed_is_read_again(tmp_path: Path, cache: Path, read: list[Path]):
    path = write(tmp_path / "0.tar", range(5))
    assert shades(open_source(f"wds:{path}")) == [0, 1, 2, 3, 4]
    status = path.stat()
    write(path, range(10, 15))  # of the same length
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert shades(open_source(f"wds:{path}")) == [10, 11, 12, 13, 14]
    write(path, range(7))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # another length, the same time
    assert shades(open_source(f"wds:{path}")) == list(range(7))
    moved = path.rename(tmp_path / "1.tar")
    assert shades(open_source(f"wds:{moved}")) == list(range(7))
    assert read == [path, path, path, moved]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "folder", "other sizes", "other places", "half"])
def test_a_damaged_index_is_made_anew(damage: str, tmp_path: Path, cache: Path, read: list[Path]):
    path = write(tmp_path / "0.tar", range(50))
    before = facts(open_source(f"wds:{path}"))
    (entry,) = cache.iterdir()
    content = entry.read_bytes()
    with np.load(entry) as found:
        arrays = dict(found)
    if damage == "cut":
        entry.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        place = content.index(b"folder/sample0007")
        entry.write_bytes(content[:place] + b"F" + content[place + 1 :])
    elif damage == "empty":
        entry.write_bytes(b"")
    elif damage == "folder":
        entry.unlink()
        entry.mkdir()
    else:
        changes = {
            "other sizes": {"ends": arrays["ends"] + 5},
            "other places": {"starts": -arrays["starts"]},
            "half": {"sizes": arrays["sizes"][:25]},
        }
        np.savez(entry, **arrays | changes[damage])
    assert facts(open_source(f"wds:{path}")) == before
    assert read == [path, path]
    if damage != "folder":
        assert facts(open_source(f"wds:{path}")) == before and len(read) == 2


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, cache: Path, read: list[Path]):
    path = write(tmp_path / "0.tar", range(5))
    cache.write_text("a file where the folder should be")
    for _ in range(2):
        assert shades(open_source(f"wds:{path}")) == [0, 1, 2, 3, 4]
    assert read == [path, path]


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ORIGINAL() == tmp_path / "efficient-mae" / "shards"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ORIGINAL() == tmp_path / ".cache" / "efficient-mae" / "shards"


# Before any fixture puts another in its place.
ORIGINAL = shard_index.cache_folder
