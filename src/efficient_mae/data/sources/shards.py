"""WebDataset shards: tar files on local disk, in which the files of one sample stand together and share a name.

The shards are indexed when they are opened, and the index is kept for the next time; after that any sample is read
by its place in its file. Nothing is ever unpacked to disk, so a member's path is no more than a name.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from efficient_mae.console import printable
from efficient_mae.data.images.decode import OpenedImage, UnreadableImage, open_image
from efficient_mae.data.images.formats import extensions
from efficient_mae.data.sources.choice import ANY, DataChoice
from efficient_mae.data.sources.folder import find_parts
from efficient_mae.data.sources.names import LABELS, PackedNames, classes_of
from efficient_mae.data.sources.shard_index import ShardIndex, index_shard
from efficient_mae.errors import InputError, NoHeldOutPart


class ShardSource:
    """The images in tar shards, in the order in which they stand there.

    A sample is a run of members that share their path up to the first dot of the file name, or the last number
    between dots; its image is the only member with an image's extension, or the one that is chosen; its label the
    number or word in the member called `.cls`, or an entry of the one called `.json`.

    Attributes:
        name: what was asked for.
        classes: the numbers or words that occur; None where no sample has one.
        why_unlabelled: why there are none; empty where there are.
        damaged_shards: (path, reason) of shards that break off; what comes before is used, and a warning says so.
    """

    def __init__(self, paths: list[Path], name: str, choice: DataChoice = ANY) -> None:
        """Indexes the shards.

        Raises:
            InputError: a compressed shard, several images in a sample and none chosen, or no image in any shard.
        """
        self.name = name
        self._paths = paths
        indices = [index_shard(path, choice) for path in paths]
        self.damaged_shards = [
            (printable(str(path)), index.damage) for path, index in zip(paths, indices, strict=True) if index.damage
        ]
        if not any(len(index.ends) for index in indices):
            reasons = "".join(f"; {path}: {reason}" for path, reason in self.damaged_shards[:1])
            chosen = "" if choice.key is None else f" whose name ends as key={choice.key!r} has it"
            raise InputError(f"{name}: no image in {len(paths)} shards{chosen}{_endings_there(indices)}{reasons}")
        if self.damaged_shards:
            path, reason = self.damaged_shards[0]
            what = f"{len(self.damaged_shards)} of {len(paths)} shards break off, and are used as far as they go"
            warnings.warn(f"{name}: {what}: {path}: {reason}", stacklevel=2)
        if left_out := sum(index.left_out for index in indices):
            what = f"{name}: {left_out} samples left out: they hold images, but none as key={choice.key!r} has it"
            warnings.warn(what + _endings_there(indices), stacklevel=2)
        self._names = PackedNames.joined([(index.names, index.ends) for index in indices])
        # Tensors, so that worker processes share them however they are started. The last sample of each shard, and
        # of each sample its image's place in the shard and length in bytes, and its label or -1.
        self._lasts = torch.tensor([len(index.ends) for index in indices]).cumsum(0)
        self._starts, self._sizes = (
            torch.from_numpy(np.concatenate([getattr(index, column) for index in indices]))
            for column in ("starts", "sizes")
        )
        texts = np.unique(np.concatenate([index.texts for index in indices]))
        self.classes, numbers = classes_of(texts.tolist())
        numbers = np.append(numbers, -1)
        places = (np.append(numbers[np.searchsorted(texts, index.texts)], -1)[index.labels] for index in indices)
        self._labels = torch.from_numpy(np.concatenate(list(places)))
        self.why_unlabelled = ""
        if self.classes is None:
            entry = choice.label or " or ".join(LABELS)
            what = "no .json member" if choice.label else "neither a .cls member nor a .json member"
            known = dict.fromkeys(word for index in indices for word in index.entries.tolist())
            there = f": {', '.join(known)}" if known else ""
            self.why_unlabelled = (
                f"its samples have {what} with an entry called {entry} (--label names another{there})"
            )
            if len(texts):
                self.why_unlabelled = f"its {len(texts):,} different labels are no classes"

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


def _endings_there(indices: Sequence[ShardIndex]) -> str:
    """How the names of the images end that there are, of all members where there are none."""
    known = list(dict.fromkeys(ending for index in indices for ending in index.endings.tolist()))
    images = [ending for ending in known if ending.rpartition(".")[2] in extensions()]
    return f"; names there end in {', '.join(images or known)}" if known else ""


def open_shards(pattern: str, part: str, choice: DataChoice = ANY) -> ShardSource:
    """The shards of a pattern: braces (`{000..007}`, `{a,b}`), globs, or a folder (all `.tar` files in it).

    A folder may be split, `train` beside `val`, `valid`, `validation` or `test`; a pattern is a training part as a
    whole.

    Raises:
        InputError: no such file, a compressed shard, no image, or several in a sample and none chosen.
        NoHeldOutPart: that is asked for, and there is none.
    """
    folder = Path(pattern).expanduser()
    parts = find_parts(folder) if folder.is_dir() else {}
    if part == "test" and len(parts) < 2:
        raise NoHeldOutPart(f"wds:{pattern} has no held-out part: give a folder that holds train/*.tar and val/*.tar")
    if folder.is_dir():
        pattern = f"{parts[part] if 'train' in parts else folder}/*.tar"
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
    return ShardSource(paths, f"wds:{pattern}", choice)


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
