"""WebDataset shards: tar files on local disk, in which the files of one sample stand together and share a name.

The shards are indexed once, when they are opened; after that any sample is read by its place in its file. Nothing
is ever unpacked to disk, so a member's path is no more than a name.
"""

from __future__ import annotations

import re
import tarfile
from array import array
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from efficient_mae.data.decode import EXTENSIONS, OpenedImage, UnreadableImage, open_image
from efficient_mae.data.folder import split_folder
from efficient_mae.data.names import MAX_CLASSES, PackedNames, numbered_classes, printable
from efficient_mae.errors import InputError

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class ShardSource:
    """The images in tar shards, in the order in which they stand there.

    A sample is a run of members that share their path up to the first dot of the file name; its image is the first
    member with an image's extension, its label the integer in the member called `.cls`.

    Attributes:
        name: what was asked for.
        classes: the numbers "0" to the largest label; None where no sample has one.
        damaged_shards: (path, reason) of shards that break off or cannot be read; what comes before is used.
    """

    def __init__(self, paths: list[Path], name: str) -> None:
        """Indexes the shards; raises InputError for a compressed shard, or when no shard holds an image."""
        self.name = name
        self.damaged_shards: list[tuple[str, str]] = []
        self._paths = paths
        self._names = PackedNames()
        # One entry a sample: its shard's number, its image's place in there and length in bytes, its label or -1.
        self._shards, self._starts, self._sizes = array("i"), array("q"), array("q")
        self._labels = array("q")
        for number, path in enumerate(paths):
            self._index_shard(number, path)
        if not len(self._names):
            reasons = "".join(f"; {path}: {reason}" for path, reason in self.damaged_shards[:1])
            raise InputError(f"{name}: no image in {len(paths)} shards{reasons}")
        self.classes = numbered_classes(max(self._labels))

    def __len__(self) -> int:
        return len(self._names)

    def image(self, index: int) -> Image.Image:
        """The decoded image; raises UnreadableImage where it is damaged, or its shard is gone."""
        return self.open(index).decode().image

    def open(self, index: int) -> OpenedImage:
        """The image; raises UnreadableImage where it is damaged, or its shard is gone."""
        name, size = self.sample_name(index), self._sizes[index]
        try:
            # Opened anew each time: an open file would share its position with every forked worker.
            with self._paths[self._shards[index]].open("rb", buffering=0) as file:
                file.seek(self._starts[index])
                data = file.read(size)
        except OSError as error:
            raise UnreadableImage(name, error.strerror or str(error)) from None
        if len(data) < size:
            raise UnreadableImage(name, f"the shard ends after {len(data):,} of {size:,} bytes")
        return open_image(data, name)

    def label(self, index: int) -> int | None:
        return self._labels[index] if self._labels[index] >= 0 else None

    def sample_name(self, index: int) -> str:
        return f"{printable(str(self._paths[self._shards[index]]))}:{printable(self._names[index])}"

    def _index_shard(self, number: int, path: Path) -> None:
        """Adds a shard's samples; a shard that breaks off is noted, its samples up to there are kept."""
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
                            self._labels[-1] = label
                    elif not has_image and ending.rpartition(".")[2] in EXTENSIONS:
                        has_image = True
                        self._names.append(name.encode("utf-8", "surrogateescape"))
                        self._shards.append(number)
                        self._starts.append(start)
                        self._sizes.append(size)
                        self._labels.append(label)
        except InputError:
            raise
        except Exception as error:  # a damaged header makes tarfile raise ValueError, OverflowError and others too
            reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
            self.damaged_shards.append((printable(str(path)), reason or type(error).__name__))


def open_shards(pattern: str, split: str) -> ShardSource:
    """The shards of a pattern: braces (`{000..007}`, `{a,b}`), globs, or a folder (all `.tar` files in it).

    A folder may be split as folders of images are, `train` beside `val`, `validation` or `test`; a pattern is a
    training part as a whole.

    Raises:
        InputError: no such file, a compressed shard, no image, or no held-out part where one is asked for.
    """
    folder = Path(pattern).expanduser()
    if folder.is_dir():
        pattern = f"{split_folder(folder, split)}/*.tar"
    elif split != "train":
        raise InputError(f"wds:{pattern} has no held-out part: give a folder that holds train/*.tar and val/*.tar")
    paths: list[Path] = []
    for name in expand_braces(str(Path(pattern).expanduser())):
        # A file of just this name wins, should it hold a glob's characters.
        if any(character in name for character in "*?[") and not Path(name).exists():
            paths.extend(Path(path) for path in sorted(glob(name, recursive=True)))  # noqa: PTH207 - absolute too
        else:
            paths.append(Path(name))
    missing = next((path for path in paths if not path.is_file()), None)
    if missing or not paths:
        raise InputError(f"wds:{pattern}: no such file: {missing or pattern} (shards are read from local disk)")
    return ShardSource(paths, f"wds:{pattern}")


def expand_braces(pattern: str) -> Iterator[str]:
    """The pattern's names: `a{0..2}` and `a{x,y}` as a shell expands them, with the width of `000` kept."""
    brace = re.search(r"\{([^}]*)\}", pattern)
    if not brace:
        yield pattern
        return
    body = brace[1]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", body)
    if span:
        first, last = int(span[1]), int(span[2])
        width = max((len(end) for end in span.groups() if end.startswith("0")), default=0)
        step = 1 if last >= first else -1
        choices = [f"{number:0{width}}" for number in range(first, last + step, step)]
    elif "," in body and "{" not in body:
        choices = body.split(",")
    else:
        raise InputError(
            f"wds:{pattern}: {{{body}}} is neither a range such as {{000..007}} nor a list such as {{a,b}}"
        )
    for choice in choices:
        yield from expand_braces(pattern[: brace.start()] + choice + pattern[brace.end() :])


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
