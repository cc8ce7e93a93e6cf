"""Names: of files by the million, kept in one buffer; of what is no one's file; of classes."""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8

from efficient_mae.console import printable

# What the held-out part of data may be called, in the order in which it is looked for.
HELD_OUT = ("val", "valid", "validation", "test")
# What columns and entries that hold classes are called, in the order in which they are looked for.
LABELS = ("label", "labels", "cls", "class")
# Folders of network disks, of Windows and of archives from macOS.
_MACHINES_OWN = {b"@eaDir", b"@Recycle", b"#recycle", b"$RECYCLE.BIN", b"__MACOSX"}
# Integers beyond are no class labels: they number the images, or come from a damaged file.
MAX_CLASSES = 100_000


class PackedNames:
    """A list of byte strings in one block of memory.

    Ten million names are 0.5 GB here and would be 1 GB as Python objects. Worker processes share the block, however
    they are started: by fork for good, while a list's reference counts would be written to, and so copied, in every
    worker; otherwise because it is a tensor, which PyTorch moves to shared memory when it sends it.
    """

    def __init__(self, names: Iterable[bytes] = ()) -> None:
        buffer, ends = bytearray(), array("q")
        for name in names:
            buffer += name
            ends.append(len(buffer))
        self._set(np.frombuffer(buffer, np.uint8), np.frombuffer(ends, np.int64))

    @classmethod
    def joined(cls, parts: Sequence[tuple[UInt8[np.ndarray, " _"], Int64[np.ndarray, " _"]]]) -> PackedNames:
        """The names of several lists, each given as its bytes end to end and where each name ends."""
        starts = np.cumsum([0, *(len(names) for names, _ in parts)])
        joined = cls()
        joined._set(
            np.concatenate([names for names, _ in parts]),
            np.concatenate([ends + start for (_, ends), start in zip(parts, starts)]),
        )
        return joined

    def _set(self, names: UInt8[np.ndarray, " _"], ends: Int64[np.ndarray, " N"]) -> None:
        self._names, self._ends = torch.from_numpy(names), torch.from_numpy(ends)

    def __len__(self) -> int:
        return len(self._ends)

    def digest(self) -> str:
        """Of all the names in order; ten million take half a second."""
        state = blake2b(self._ends.numpy().data, digest_size=16)
        state.update(self._names.numpy().data)
        return state.hexdigest()

    def __getitem__(self, index: int) -> bytes:
        """The name at `index`, from 0; raises IndexError beyond the last."""
        if not 0 <= index < len(self._ends):
            raise IndexError(f"name {index} of {len(self._ends)}")
        start = int(self._ends[index - 1]) if index else 0
        return self._names[start : int(self._ends[index])].numpy().tobytes()


def is_hidden(name: bytes) -> bool:
    """Whether a file or folder is a machine's own: AppleDouble (`._a.jpg`), thumbnails (`@eaDir`), a recycle bin."""
    return name in _MACHINES_OWN or (name.startswith(b".") and name not in (b".", b".."))


def class_name(name: bytes | str) -> str:
    """A class's name on one line, the same whichever way its accents are written (Unicode's normal form C)."""
    text = name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")
    return printable(unicodedata.normalize("NFC", text))


def classes_of(labels: Iterable[str]) -> tuple[tuple[str, ...] | None, Int64[np.ndarray, " L"]]:
    """The classes that labels name, and which of them each label is.

    Labels are numbers or words: where most are the one, those of the other kind are damage, and no labels, as are
    negative numbers. Classes are the numbers, or words, that occur: so where labels begin at 1, so do the classes.

    Args:
        labels: the different ones, as texts.

    Returns:
        The names, in order, or None if there are none or too many (:data:`MAX_CLASSES`); and each label's number
        among them, -1 for none.
    """
    names = [class_name(label) for label in labels]
    numbers = {name: int(name[:99]) for name in names if re.fullmatch("[0-9]+", name)}
    words = {name for name in names if name and name not in numbers and not re.fullmatch("-[0-9]+", name)}
    if len(numbers) >= len(words):
        of_name: dict[str, Any] = {name: number for name, number in numbers.items() if number < MAX_CLASSES}
    else:
        of_name = {name: name for name in words}
    classes = sorted(set(of_name.values()))
    if not 0 < len(classes) <= MAX_CLASSES:
        return None, np.full(len(names), -1)
    place = {value: number for number, value in enumerate(classes)}
    found = [place[of_name[name]] if name in of_name else -1 for name in names]
    return tuple(map(str, classes)), np.array(found, np.int64)
