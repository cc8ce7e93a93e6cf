"""What is in a tar shard, and where: found by reading its headers once, then kept in a cache.

Reading headers takes tarfile 30 microseconds a sample, five minutes for ten million; reading the cache takes seconds.
A shard's entry holds for its path, length and time of change together. Entries are plain arrays, never pickles; one
that is stale or damaged is made anew, and where none can be written there is just no cache.
"""

from __future__ import annotations

import os
import tarfile
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int64, UInt8

from efficient_mae.console import printable
from efficient_mae.data.images.formats import extensions
from efficient_mae.data.sources.names import MAX_CLASSES
from efficient_mae.errors import InputError

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# Of what an entry holds, and of what it means: to be raised with every change of this file that changes either.
_VERSION = 1


@dataclass(frozen=True)
class ShardIndex:
    """The samples of a shard that have an image, in their order. S samples.

    Attributes:
        names: of the images, end to end, as bytes.
        ends: where each ends in `names`.
        starts: where each image begins in the shard, in bytes.
        sizes: of the images, in bytes.
        labels: -1 for a sample without one.
        damage: why the shard could not be read to its end; empty if it could.
    """

    names: UInt8[np.ndarray, " _"]
    ends: Int64[np.ndarray, " S"]
    starts: Int64[np.ndarray, " S"]
    sizes: Int64[np.ndarray, " S"]
    labels: Int64[np.ndarray, " S"]
    damage: str = ""


def index_shard(path: Path) -> ShardIndex:
    """What is in a shard: from the cache, or by reading its headers. A shard that breaks off is used up to there.

    Raises:
        InputError: a compressed shard.
    """
    key = _key(path)
    entry = cache_folder() / f"{blake2b(os.fsencode(path.absolute()), digest_size=16).hexdigest()}.npz"
    if key is not None and (found := _read(entry, key)):
        return found
    index = _index(path)
    # A shard that is being written is another one by now.
    if key is not None and key == _key(path):
        _write(entry, key, index)
    return index


def cache_folder() -> Path:
    """Where indices of shards are kept: `$XDG_CACHE_HOME/efficient-mae/shards`, or below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(base)) / "efficient-mae" / "shards"  # noqa: PTH111 - Path's raises without a home


def _key(path: Path) -> str | None:
    """What an entry holds for; None for a file that can't be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return f"{_VERSION} {status.st_size} {status.st_mtime_ns} {printable(str(path.absolute()))}"


def _read(entry: Path, key: str) -> ShardIndex | None:
    """An entry of the cache; None if there is none, it is of another shard, or anything is wrong with it."""
    try:
        with np.load(entry, allow_pickle=False) as arrays:
            if str(arrays["key"]) != key:
                return None
            columns = {name: arrays[name] for name in ("ends", "starts", "sizes", "labels")}
            index = ShardIndex(names=arrays["names"], damage=str(arrays["damage"]), **columns)
    except Exception:  # numpy and zipfile raise whatever a damaged file leads them to
        return None
    lengths = np.diff(index.ends, prepend=0)
    right = (
        index.names.dtype == np.uint8
        and all(column.dtype == np.int64 and column.shape == lengths.shape for column in columns.values())
        and (lengths >= 0).all()
        and lengths.sum() == len(index.names)
        and (index.starts >= 0).all()
        and (index.sizes >= 0).all()
        and ((index.labels >= -1) & (index.labels < MAX_CLASSES)).all()
    )
    return index if right else None


def _write(entry: Path, key: str, index: ShardIndex) -> None:
    """Keep an entry, if that can be done; several processes may do so at once."""
    partial = entry.with_name(f".partial-{os.getpid()}-{entry.name}")
    with suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                columns: dict[str, Any] = {name: np.asarray(value) for name, value in vars(index).items()}
                np.savez(file, key=np.array(key), **columns)
            partial.replace(entry)
        finally:
            partial.unlink(missing_ok=True)


def _index(path: Path) -> ShardIndex:
    names, damage = bytearray(), ""
    ends, starts, sizes, labels = array("q"), array("q"), array("q"), array("q")
    last_key, has_image, label = None, False, -1
    try:
        with path.open("rb") as file:
            for name, start, size in _members(file, path):
                key, ending = _split_name(name)
                if key != last_key:
                    last_key, has_image, label = key, False, -1
                if ending == "cls":
                    label = _read_label(file, start, size)
                    if has_image:
                        labels[-1] = label
                elif not has_image and ending.rpartition(".")[2] in extensions():
                    has_image = True
                    names += name.encode("utf-8", "surrogateescape")
                    for column, value in ((ends, len(names)), (starts, start), (sizes, size), (labels, label)):
                        column.append(value)
    except InputError:
        raise
    except Exception as error:  # a damaged header makes tarfile raise ValueError, OverflowError and others too
        reason = (error.strerror if isinstance(error, OSError) else None) or printable(" ".join(str(error).split()))
        damage = reason or type(error).__name__
    columns = (np.frombuffer(column, np.int64) for column in (ends, starts, sizes, labels))
    return ShardIndex(np.frombuffer(names, np.uint8), *columns, damage=damage)


def _members(file: BinaryIO, path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset of the content, size) of each regular file in a tar; raises where the tar breaks off."""
    magic = file.read(6)
    for start, kind in _COMPRESSED.items():
        if magic.startswith(start):
            raise InputError(f"{path} is compressed ({kind}): unpack it to a plain .tar, for random access")
    length = file.seek(0, 2)
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        reached = 0
        while member := tar.next():
            if tar.offset <= reached:  # a negative size would lead tarfile round in a circle
                raise tarfile.ReadError(f"damaged at byte {tar.offset:,}")
            reached = tar.offset
            if member.isreg() and not member.issparse():
                if member.size > length - member.offset_data:
                    raise tarfile.ReadError(f"cut short within {printable(member.name)}")
                yield member.name, member.offset_data, member.size
            tar.members = []  # pyright: ignore[reportAttributeAccessIssue] - it would keep them all
        # tarfile takes a damaged header for the end; the true end is a block of zeros.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"damaged or cut short at byte {tar.offset:,}")


def _split_name(name: str) -> tuple[str, str]:
    """A member's sample and its ending, as WebDataset has it: the ending begins at the file name's first dot."""
    folder, slash, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    return folder + slash + stem, ending.lower()


def _read_label(file: BinaryIO, start: int, size: int) -> int:
    """The class in a .cls member, -1 if it holds none."""
    file.seek(start)
    text = file.read(min(size, 20)).strip()
    return int(text) if text.isdigit() and int(text) < MAX_CLASSES else -1
