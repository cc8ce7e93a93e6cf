"""WebDataset shards: tar files on local disk, in which the files of one sample stand together and share a name.

The shards are indexed when they are opened, and the index is kept for the next time; after that any sample is read
by its place in its file. Nothing is ever unpacked to disk, so a member's path is no more than a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from glob import glob
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from efficient_mae.console import printable
from efficient_mae.data.images.decode import OpenedImage, UnreadableImage, open_image
from efficient_mae.data.sources.folder import split_folder
from efficient_mae.data.sources.names import PackedNames, numbered_classes
from efficient_mae.data.sources.shard_index import index_shard
from efficient_mae.errors import InputError


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
        self._paths = paths
        indices = [index_shard(path) for path in paths]
        self.damaged_shards = [
            (printable(str(path)), index.damage) for path, index in zip(paths, indices, strict=True) if index.damage
        ]
        if not any(len(index.ends) for index in indices):
            reasons = "".join(f"; {path}: {reason}" for path, reason in self.damaged_shards[:1])
            raise InputError(f"{name}: no image in {len(paths)} shards{reasons}")
        self._names = PackedNames.joined([(index.names, index.ends) for index in indices])
        # Tensors, so that worker processes share them however they are started. The last sample of each shard, and
        # of each sample its image's place in the shard and length in bytes, and its label or -1.
        self._lasts = torch.tensor([len(index.ends) for index in indices]).cumsum(0)
        self._starts, self._sizes, self._labels = (
            torch.from_numpy(np.concatenate([getattr(index, column) for index in indices]))
            for column in ("starts", "sizes", "labels")
        )
        self.classes = numbered_classes(int(self._labels.max()))

    def __len__(self) -> int:
        return len(self._names)

    def image(self, index: int) -> Image.Image:
        """The decoded image; raises UnreadableImage where it is damaged, or its shard is gone."""
        return self.open(index).decode().image

    def open(self, index: int) -> OpenedImage:
        """The image; raises UnreadableImage where it is damaged, or its shard is gone."""
        name, size = self.sample_name(index), int(self._sizes[index])
        try:
            # Opened anew each time: an open file would share its position with every forked worker.
            with self._path(index).open("rb", buffering=0) as file:
                file.seek(int(self._starts[index]))
                data = file.read(size)
        except OSError as error:
            raise UnreadableImage(name, error.strerror or str(error)) from None
        if len(data) < size:
            raise UnreadableImage(name, f"the shard ends after {len(data):,} of {size:,} bytes")
        return open_image(data, name)

    def label(self, index: int) -> int | None:
        label = int(self._labels[index])
        return label if label >= 0 else None

    def fingerprint(self) -> str:
        """A digest of the images' names, without that of what holds them."""
        return self._names.digest()

    def sample_name(self, index: int) -> str:
        return f"{printable(str(self._path(index)))}:{printable(self._names[index])}"

    def _path(self, index: int) -> Path:
        return self._paths[int(torch.searchsorted(self._lasts, index, right=True))]


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
