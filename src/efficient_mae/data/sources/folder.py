"""Folders of images: any depth, any format that PIL reads, labelled by folder or not at all."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from efficient_mae.console import printable
from efficient_mae.data.images.decode import OpenedImage, UnreadableImage, open_file
from efficient_mae.data.images.formats import extensions
from efficient_mae.data.sources.names import PackedNames
from efficient_mae.errors import InputError

HELD_OUT = ("val", "validation", "test")


class FolderSource:
    """The images of a folder, in an order that depends on their names alone.

    Attributes:
        name: what was asked for.
        classes: the names of the class folders, sorted; None where the folder is not laid out by class.
    """

    def __init__(self, root: Path, name: str, class_root: Path | None = None) -> None:
        """Lists the images under `root`.

        Args:
            class_root: the folder whose subfolders number the classes; `root` itself unless given.

        Raises:
            InputError: there is no image in it, or it holds a class folder that `class_root` lacks.
        """
        self.name = printable(name)
        self._root = os.fsencode(root)
        folders: list[bytes] = []
        self._names = PackedNames(_scan(self._root, folders))
        if not len(self._names):
            raise InputError(
                f"no image in {printable(self._root)}: no file whose name ends in .jpg, .png or the like"
            )
        self._label_of = _class_numbers(folders, os.fsencode(class_root or root), self._root)
        self.classes = tuple(map(printable, self._label_of)) if self._label_of else None

    def __len__(self) -> int:
        return len(self._names)

    def image(self, index: int) -> Image.Image:
        """The decoded image; raises UnreadableImage for a file that is damaged, forbidden or gone."""
        return self.open(index).decode().image

    def open(self, index: int) -> OpenedImage:
        """The image; raises UnreadableImage for a file that is damaged, forbidden, gone, or none."""
        name = self.sample_name(index)
        try:
            return open_file(self._path(index), name)
        except OSError as error:
            raise UnreadableImage(name, error.strerror or str(error)) from None

    def label(self, index: int) -> int | None:
        if not self._label_of:
            return None
        return self._label_of[self._names[index].partition(b"/")[0]]

    def fingerprint(self) -> str:
        """A digest of the images' names, without that of what holds them."""
        return self._names.digest()

    def sample_name(self, index: int) -> str:
        return printable(self._path(index))

    def _path(self, index: int) -> bytes:
        return os.path.join(self._root, self._names[index])  # noqa: PTH118 - bytes, as above


def open_folder(root: Path, split: str) -> FolderSource:
    """The images of one split of a folder.

    A folder that holds `train` is split: `train` is the training part, and the first of `val`, `validation` and
    `test` that exists is the held-out part. Any other folder is a training part as a whole.

    Raises:
        InputError: no image is found, or a held-out part is asked for and there is none.
    """
    part = split_folder(root, split)
    return FolderSource(part, str(root), class_root=split_folder(root, "train"))


def split_folder(root: Path, split: str) -> Path:
    """The subfolder of `root` that holds a split, or `root` itself; raises InputError where there is none."""
    train = root / "train"
    if split == "train":
        return train if train.is_dir() else root
    for name in HELD_OUT:
        if train.is_dir() and (root / name).is_dir():
            return root / name
    where = printable(str(root))
    raise InputError(f"{where} has no held-out part: put images in {where}/train and in {where}/val")


def _scan(root: bytes, holders: list[bytes]) -> Iterator[bytes]:
    """The images under `root`, as paths relative to it; the folders that hold them are added to `holders`.

    No file is looked at: the listing of a folder tells files from folders. Every folder is read once, however
    many links lead to it, under its own name if that lies below `root`: so loops end.
    """
    seen: set[tuple[int, int]] = set()
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
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
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
    """The entries of a folder, less those whose name begins with a dot: thumbnails, and macOS's shadow files."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(b"."):
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


def _class_numbers(holders: list[bytes], class_root: bytes, root: bytes) -> dict[bytes, int]:
    """Class folders and their labels; empty unless all images lie in folders directly below, two at least."""
    if any(not holder or b"/" in holder for holder in holders):
        return {}
    classes = holders
    if class_root != root:
        classes = [entry.name for entry in _visible(class_root) if _is_folder(entry) and _holds_image(entry.path)]
    if len(classes) < 2:
        return {}
    unknown = sorted(set(holders) - set(classes))
    if unknown:
        raise InputError(
            f"{printable(root)} holds the class folder {printable(unknown[0])!r}, "
            f"which {printable(class_root)} lacks: the two must have the same classes"
        )
    return {name: number for number, name in enumerate(sorted(classes))}


def _holds_image(folder: bytes) -> bool:
    try:
        return any(not _is_folder(entry) and _is_image(entry) for entry in _visible(folder))
    except OSError:  # it cannot be listed, and training leaves it out too
        return False
