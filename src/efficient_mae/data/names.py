"""File names by the million: kept in one buffer, and made fit to print; names for classes that have none."""

from __future__ import annotations

from array import array

# Integers beyond are no class labels: they number the images, or come from a damaged file.
MAX_CLASSES = 100_000


class PackedNames:
    """A list of byte strings in one block of memory.

    Ten million names are 0.5 GB here and would be 1 GB as Python objects; and worker processes made by fork share
    the block for good, while a list's reference counts would be written to, and so copied, in every worker.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._ends = array("q")

    def append(self, name: bytes) -> None:
        self._buffer += name
        self._ends.append(len(self._buffer))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> bytes:
        """The name at `index`, from 0; raises IndexError beyond the last."""
        if not 0 <= index < len(self._ends):
            raise IndexError(f"name {index} of {len(self._ends)}")
        start = self._ends[index - 1] if index else 0
        return bytes(self._buffer[start : self._ends[index]])


def printable(name: bytes | str) -> str:
    """The name on one line of valid text: line breaks, control characters and stray bytes as backslash escapes."""
    if isinstance(name, str):
        name = name.encode("utf-8", "surrogateescape")
    text = name.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def numbered_classes(largest_label: int) -> tuple[str, ...] | None:
    """The names "0", "1", ... of classes known by number only; None if no number can be a class."""
    return tuple(map(str, range(largest_label + 1))) if 0 <= largest_label < MAX_CLASSES else None
