"""Folders of images: any depth, any format that PIL reads, labelled by folder or not at all."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from PIL import Image

from efficient_mae.console import printable
from efficient_mae.data.images.decode import OpenedImage, UnreadableImage, open_file
from efficient_mae.data.images.formats import extensions
from efficient_mae.data.sources.names import HELD_OUT, PackedNames, class_name, is_hidden
from efficient_mae.errors import InputError, NoHeldOutPart


class FolderSource:
    """The images of a folder, in an order that depends on their names alone.

    Attributes:
        name: what was asked for.
        classes: the names of the class folders, sorted; None where the folder is not laid out by class.
        why_unlabelled: what keeps it from being so; empty where it is.
    """

    def __init__(self, root: Path, name: str) -> None:
        """Lists the images under `root`; raises InputError where there is none."""
        self.name = printable(name)
        self._root = os.fsencode(root)
        folders: list[bytes] = []
        twins: list[tuple[bytes, bytes]] = []
        self._names = PackedNames(_scan(self._root, folders, twins))
        if not len(self._names):
            raise InputError(
                f"no image in {printable(self._root)}: no file whose name ends in .jpg, .png or the like"
            )
        same = (pair for pair in twins if pair[0] in folders and all(pair) and b"/" not in b"".join(pair))
        self._twins = next(same, None)
        self.classes: tuple[str, ...] | None = None
        self._label_of: dict[bytes, int] = {}
        if not self._twins and all(folder and b"/" not in folder for folder in folders):
            self.classes = tuple(sorted(set(map(class_name, folders))))
            number = {name: label for label, name in enumerate(self.classes)}
            self._label_of = {folder: number[class_name(folder)] for folder in folders}

    def __len__(self) -> int:
        return len(self._names)

    def image(self, index: int) -> Image.Image:
        """The decoded image; raises UnreadableImage for a file that is damaged, forbidden or gone."""
        return self.open(index).decode().image

    def open(self, index: int) -> OpenedImage:
        """The image; raises UnreadableImage for a file that is damaged, forbidden, gone, or none."""
        name = self.sample_name(index)
        try:
            return open_file(self.path(index), name)
        except OSError as error:
            raise UnreadableImage(name, error.strerror or str(error)) from None

    def label(self, index: int) -> int | None:
        return self._label_of.get(self._names[index].partition(b"/")[0])

    @property
    def why_unlabelled(self) -> str:
        return self._why_unlabelled

    @cached_property
    def _why_unlabelled(self) -> str:
        if self.classes is not None:
            return ""
        rule = f"a class is a folder directly in {printable(self._root)}"
        if self._twins:
            one, other = (repr(printable(name)) for name in self._twins)
            return f"{one} and {other} are one folder, whose images would have two classes; {rule}"
        depths = [self._names[index].count(b"/") for index in range(len(self))]
        first = next(index for index, depth in enumerate(depths) if depth != 1)
        where = "in no folder of a class" if depths[first] == 0 else "deeper than in the folder of a class"
        count = sum((depth == 0) == (depths[first] == 0) and depth != 1 for depth in depths)
        return f"{count} of {len(self)} images lie {where}, the first {self.sample_name(first)}; {rule}"

    def fingerprint(self) -> str:
        """A digest of the images' names, without that of what holds them."""
        return self._names.digest()

    def sample_name(self, index: int) -> str:
        return printable(self.path(index))

    def path(self, index: int) -> bytes:
        """Of the image's file."""
        return os.path.join(self._root, self._names[index])  # noqa: PTH118 - bytes, as above


def open_folder(root: Path, part: str) -> FolderSource:
    """One part of a folder.

    A folder that holds `train` is split if it also holds `val`, `valid`, `validation` or `test`, of which the first
    is the held-out part, or no other images. Any other folder is a training part as a whole. Capitals don't matter.

    Raises:
        InputError: no image is found.
        NoHeldOutPart: that is asked for, and there is none.
    """
    parts = find_parts(root)
    train = parts.get("train")
    if train and "test" not in parts and _holds_more(root, train):
        train = None
    if part == "train":
        return FolderSource(train or root, str(root))
    if not train or "test" not in parts:
        where = printable(str(root))
        raise NoHeldOutPart(f"{where} has no held-out part: put images in {where}/train and in {where}/val")
    return FolderSource(parts["test"], str(root))


def find_parts(root: Path) -> dict[str, Path]:
    """The subfolder called `train`, and as `test` the first whose name says that it is held out, in any case."""
    try:
        folders = [os.fsdecode(entry.name) for entry in _visible(os.fsencode(root)) if _is_folder(entry)]
    except OSError:  # whoever lists it next says so
        return {}
    named: dict[str, Path] = {}
    for name in sorted(folders, reverse=True):  # small letters first
        named.setdefault(name.lower(), root / name)
    test = next((named[name] for name in HELD_OUT if name in named), None)
    found = {"train": named.get("train"), "test": test}
    return {part: path for part, path in found.items() if path is not None}


def _holds_more(root: Path, train: Path) -> bool:
    """Whether there are images beside the folder `train`, which is then a class."""
    for entry in _visible(os.fsencode(root)):
        if _is_folder(entry):
            if entry.name != os.fsencode(train.name) and next(_scan(entry.path, [], []), None) is not None:
                return True
        elif _is_image(entry):
            return True
    return False


def _scan(root: bytes, holders: list[bytes], twins: list[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """The images under `root`, as paths relative to it.

    No file is looked at: the listing of a folder tells files from folders. Every folder is read once, however
    many links lead to it, under its own name if that lies below `root`: so loops end.

    Args:
        holders: the folders that hold images are added.
        twins: added are the names, the one that is read first, of each folder that links give another name.
    """
    seen: dict[tuple[int, int], bytes] = {}
    real: list[bytes] = [b""]
    linked: list[bytes] = []
    while real or linked:
        if not real:
            real, linked = sorted(linked, reverse=True), []
        folder = real.pop()
        prefix = folder + b"/" if folder else b""
        files, folders = [], []
        try:
            status = os.stat(os.path.join(root, folder))  # noqa: PTH116, PTH118
            first = seen.setdefault((status.st_dev, status.st_ino), folder)
            if first != folder:
                twins.append((first, folder))
                continue
            for entry in _visible(os.path.join(root, folder)):  # noqa: PTH118
                if _is_folder(entry):
                    (linked if entry.is_symlink() else folders).append(prefix + entry.name)
                elif _is_image(entry):
                    files.append(prefix + entry.name)
        except OSError as error:
            where = printable(os.path.join(root, folder))  # noqa: PTH118
            if not folder:
                raise InputError(f"cannot list {where}: {error.strerror}") from None
            warnings.warn(f"folder left out: {where}: {error.strerror}", stacklevel=2)
            continue
        yield from sorted(files)
        if files:
            holders.append(folder)
        real.extend(sorted(folders, reverse=True))


def _visible(folder: bytes) -> Iterator[os.DirEntry[bytes]]:
    """The entries of a folder, less those that a machine has put there for itself."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_hidden(entry.name):
                yield entry


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where nobody may look
        return False


def _is_image(entry: os.DirEntry[bytes]) -> bool:
    """Whether a file should be an image. A link that leads nowhere counts, to be named as unreadable later."""
    _, dot, ending = entry.name.rpartition(b".")
    return bool(dot) and ending.lower().decode("latin-1") in extensions() and (entry.is_symlink() or entry.is_file())
