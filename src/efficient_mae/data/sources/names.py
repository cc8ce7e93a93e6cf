"""File names by the million: kept in one buffer; names for classes that have none."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
import torch
from jaxtyping import Int64, UInt8

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


def numbered_classes(largest_label: int) -> tuple[str, ...] | None:
    """The names "0", "1", ... of classes known by number only; None if no number can be a class."""
    return tuple(map(str, range(largest_label + 1))) if 0 <= largest_label < MAX_CLASSES else None
