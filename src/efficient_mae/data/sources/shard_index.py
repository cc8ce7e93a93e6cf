"""What is in a tar shard, and where: found by reading its headers once, then kept in a cache.

Reading headers takes tarfile 30 microseconds a sample, five minutes for ten million; reading the cache takes seconds.
A shard's entry holds for its path, length and time of change together. Entries are plain arrays, never pickles; one
that is stale or damaged is made anew, and where none can be written there is just no cache.
"""

from __future__ import annotations

import json
import os
import tarfile
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from efficient_mae.console import printable
from efficient_mae.data.images.formats import ARRAYS, extensions
from efficient_mae.data.sources.choice import ANY, EACH, DataChoice
from efficient_mae.data.sources.names import LABELS, is_hidden
from efficient_mae.errors import InputError

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# Of what an entry holds, and of what it means: to be raised with every change of this file that changes either.
_VERSION = 3
# Longest .cls and .json members that are looked into, in bytes.
_LONGEST_CLASS, _LONGEST_JSON = 200, 2**20
# Endings and entries that are remembered, to be named where another is asked for, and the longest of them.
_MOST_NAMES, _LONGEST_NAME = 20, 50


@dataclass(frozen=True)
class ShardIndex:
    """The samples of a shard that have an image, in their order. S samples.

    Attributes:
        names: of the images, end to end, as bytes.
        ends: where each ends in `names`.
        starts: where each image begins in the shard, in bytes.
        sizes: of the images, in bytes.
        labels: places in `texts`, -1 for a sample without one.
        texts: the different labels.
        endings, entries: how members' names end, and what entries are in .json members; the first that are met.
        left_out: samples that hold images, but none of those asked for.
        damage: why the shard could not be read to its end; empty if it could.
    """

    names: UInt8[np.ndarray, " _"]
    ends: Int64[np.ndarray, " S"]
    starts: Int64[np.ndarray, " S"]
    sizes: Int64[np.ndarray, " S"]
    labels: Int64[np.ndarray, " S"]
    texts: np.ndarray
    endings: np.ndarray
    entries: np.ndarray
    left_out: int = 0
    damage: str = ""


class _Member(NamedTuple):
    name: str
    ending: str
    start: int
    size: int


def index_shard(path: Path, choice: DataChoice = ANY) -> ShardIndex:
    """What is in a shard: from the cache, or by reading its headers. A shard that breaks off is used up to there.

    Raises:
        InputError: a compressed shard, one that cannot be read, or a sample of several images of which none is
            chosen.
    """
    key = _key(path, choice)
    entry = cache_folder() / f"{blake2b(os.fsencode(path.absolute()), digest_size=16).hexdigest()}.npz"
    if key is not None and (found := _read(entry, key)):
        return found
    index = _index(path, choice)
    # A shard that is being written is another one by now.
    if key is not None and key == _key(path, choice):
        _write(entry, key, index)
    return index


def cache_folder() -> Path:
    """Where indices of shards are kept: `$XDG_CACHE_HOME/efficient-mae/shards`, or below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(base)) / "efficient-mae" / "shards"  # noqa: PTH111 - Path's raises without a home


def _key(path: Path, choice: DataChoice) -> str | None:
    """What an entry holds for; None for a file that can't be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    chosen = printable(f"{choice.key!r} {choice.label!r} {path.absolute()}")
    return f"{_VERSION} {status.st_size} {status.st_mtime_ns} {chosen}"


def _read(entry: Path, key: str) -> ShardIndex | None:
    """An entry of the cache; None if there is none, it is of another shard, or anything is wrong with it."""
    try:
        with np.load(entry, allow_pickle=False) as arrays:
            if str(arrays["key"]) != key:
                return None
            columns = {name: arrays[name] for name in ("ends", "starts", "sizes", "labels")}
            words = {name: arrays[name] for name in ("texts", "endings", "entries")}
            left_out, damage = int(arrays["left_out"]), str(arrays["damage"])
            index = ShardIndex(arrays["names"], **columns, **words, left_out=left_out, damage=damage)
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
        and all(column.dtype.kind == "U" and column.ndim == 1 for column in words.values())
        and ((index.labels >= -1) & (index.labels < len(index.texts))).all()
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


def _index(path: Path, choice: DataChoice) -> ShardIndex:
    names, damage, left_out = bytearray(), "", 0
    ends, starts, sizes, labels = array("q"), array("q"), array("q"), array("q")
    texts: dict[str, int] = {}
    seen, entries = dict[str, None](), dict[str, None]()
    wanted = choice.key and [ending.strip(" .") for ending in choice.key.lower().split(",")]
    # Arrays in shards are features or labels more often than images, where they aren't asked for.
    endings = extensions() - (ARRAYS if not wanted or choice.key == EACH else set())
    try:
        with path.open("rb") as file:
            for sample in _samples(_members(file, path), whole_names=choice.key == EACH):
                _note(seen, (one.ending for one in sample))
                images = [one for one in sample if one.ending.rpartition(".")[2] in endings]
                if wanted and choice.key != EACH and images:
                    images = [one for ending in wanted for one in images if one.ending == ending][:1]
                    left_out += not images
                if len(images) > 1:
                    raise InputError(_several(path, images))
                for image in images:
                    text = _read_label(file, sample, choice.label, entries)
                    names += _encoded(image.name)
                    label = -1 if text is None else texts.setdefault(text, len(texts))
                    for column, value in zip((ends, starts, sizes, labels), (len(names), *image[2:], label)):
                        column.append(value)
    except InputError:
        raise
    except OSError as error:  # of the disk or the network, which may pass, and not of what is in the shard
        raise InputError(f"{printable(str(path))}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # a damaged header makes tarfile raise ValueError, OverflowError and others too
        damage = printable(" ".join(str(error).split())) or type(error).__name__
    return ShardIndex(
        np.frombuffer(names, np.uint8),
        *(np.frombuffer(column, np.int64) for column in (ends, starts, sizes, labels)),
        texts=np.array(list(texts), np.str_),
        endings=np.array(list(seen), np.str_),
        entries=np.array(list(entries), np.str_),
        left_out=left_out,
        damage=damage,
    )


def _note(words: dict[str, None], found: Iterable[str]) -> None:
    """Remember those that aren't known yet, as long as there are few."""
    for word in found:  # a damaged or odd file may have any
        if len(words) < _MOST_NAMES and len(word) <= _LONGEST_NAME and word.isprintable():
            words.setdefault(word)


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _several(path: Path, images: list[_Member]) -> str:
    named = " and ".join(printable(one.name) for one in images[:2])
    keys = " or ".join(f"--key {printable(one.ending)}" for one in images)
    return f"{path}: {named} are images of one sample: give {keys}, or --key '{EACH}' to take each as a sample"


def _samples(members: Iterable[tuple[str, int, int]], whole_names: bool) -> Iterator[list[_Member]]:
    """Members that stand together and share their name up to its ending, those that a machine made left out.

    Args:
        whole_names: an ending begins at the last dot of a name, and not where :func:`_split_name` has it.
    """
    held: list[_Member] = []
    stem = ""
    try:
        for name, start, size in members:
            if any(is_hidden(part) for part in _encoded(name).split(b"/")):
                continue
            begin, ending = _split_name(name, whole_names)
            # Nothing is lost where a sample is there twice.
            if held and (begin != stem or any(one.ending == ending for one in held)):
                yield held
                held = []
            stem = begin
            held.append(_Member(name, ending, start, size))
    except Exception:  # what comes before the damage is used
        if held:
            yield held
        raise
    if held:
        yield held


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


def _split_name(name: str, whole_names: bool) -> tuple[str, str]:
    """A member's sample and its ending.

    As WebDataset has it, the ending begins at the file name's first dot; but numbers between dots, as in
    `scan.0001.jpg` and `2020.01.05.cls`, are of the name.
    """
    folder, slash, file = name.rpartition("/")
    parts = file.split(".")
    inner = range(1, len(parts) - 1)
    last = max((place for place in inner if whole_names or parts[place].isdecimal()), default=0) + 1
    return folder + slash + ".".join(parts[:last]), ".".join(parts[last:]).lower()


def _read_label(file: BinaryIO, sample: list[_Member], entry: str | None, entries: dict[str, None]) -> str | None:
    """What a sample's .cls member says, or an entry of its .json member; None if neither says anything.

    Args:
        entries: in which those of the .json member are noted.
    """
    members = {one.ending: one for one in sample}
    if entry is None and "cls" in members:
        return _content(file, members["cls"], _LONGEST_CLASS).decode("utf-8", "backslashreplace").strip() or None
    if "json" in members:
        try:
            held = json.loads(_content(file, members["json"], _LONGEST_JSON))
        except (ValueError, RecursionError):
            return None
        _note(entries, held if type(held) is dict else ())
        values = [held[name] for name in ([entry] if entry else LABELS) if name in held] if type(held) is dict else []
        if values and isinstance(values[0], str | int):
            return str(values[0]).strip() or None
    return None


def _content(file: BinaryIO, member: _Member, longest: int) -> bytes:
    """Of a member; nothing of one that is longer than it should be."""
    file.seek(member.start)
    return file.read(member.size) if member.size <= longest else b""
