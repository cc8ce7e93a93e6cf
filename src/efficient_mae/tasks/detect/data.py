"""Images with boxes and masks: folders in COCO's layout."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from efficient_mae.console import printable
from efficient_mae.data import OpenedImage, UnreadableImage
from efficient_mae.data.images.decode import open_file
from efficient_mae.data.sources.names import PackedNames
from efficient_mae.errors import InputError
from efficient_mae.tasks.detect.annotations import Annotations, Objects, mask_tools, read_annotations
from efficient_mae.tasks.detect.config import DetectConfig

_PREFIX = "instances_"


class CocoSource:
    """Some images of an instances file, a :class:`efficient_mae.data.Source`.

    Args:
        name: of the data.
        folder: of the images.
        annotations: of them.
        images: which, counted from 0.

    Attributes:
        folder: of the images.
    """

    def __init__(self, name: str, folder: Path, annotations: Annotations, images: Sequence[int] | np.ndarray):
        self.name, self.annotations = printable(name), annotations
        self.classes: tuple[str, ...] | None = None
        self.why_unlabelled = "its images have boxes and masks, and no class of their own"
        self.folder, self._images = folder, np.asarray(images, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._images)

    def open(self, index: int) -> OpenedImage:
        """The image; raises UnreadableImage where it can't be read or isn't of the size that its annotations are."""
        name, number = self.sample_name(index), int(self._images[index])
        try:
            image = open_file(self._path(index), name)
        except OSError as error:
            raise UnreadableImage(name, error.strerror or str(error)) from None
        height, width = self.annotations.size(number)
        if image.size != (width, height):
            found = f"{image.size[0]} x {image.size[1]}"
            raise UnreadableImage(name, f"is of {found} pixels, and its annotations are of {width} x {height}")
        return image

    def image(self, index: int) -> Image.Image:
        return self.open(index).decode().image

    def label(self, index: int) -> int | None:
        return None

    def sample_name(self, index: int) -> str:
        return printable(self._path(index))

    def fingerprint(self) -> str:
        """A digest of the images' names."""
        return PackedNames(self.annotations.names[int(image)] for image in self._images).digest()

    def image_id(self, index: int) -> int:
        """The image's number in the file."""
        return int(self.annotations.ids[self._images[index]])

    def objects(self, index: int) -> Objects:
        """What is annotated in it."""
        return self.annotations.objects(int(self._images[index]))

    def _path(self, index: int) -> bytes:
        name = self.annotations.names[int(self._images[index])]
        return os.path.join(os.fsencode(self.folder), name)  # noqa: PTH118 - bytes


@dataclass(frozen=True)
class CocoData:
    """Images to learn from, of which each shows an object, and images to be judged on.

    Attributes:
        train: to learn from.
        test: held out.
        categories: name by number in the files, in the order of the labels.
        notes: what was left out, on a line each.
    """

    train: CocoSource
    test: CocoSource
    categories: dict[int, str]
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the categories."""
        return tuple(self.categories.values())


def open_coco(config: DetectConfig) -> CocoData:
    """Open and check data in COCO's layout.

    Raises:
        InputError: no such files, something wrong in one of them, no image with an object to learn from, or other
            categories in the held-out part.
    """
    mask_tools()  # or it is refused
    train, train_images = _find(config.data, "train", config.train_annotations, config.train_images)
    held_out = config.data if config.val_data is None else config.val_data
    test, test_images = _find(held_out, "val", config.val_annotations, config.val_images)
    learned, judged = read_annotations(train), read_annotations(test)
    if learned.categories != judged.categories:
        ours, theirs = learned.categories.items(), judged.categories.items()
        number, name = next(iter(sorted(ours ^ theirs)), (None, None))
        what = "in another order" if number is None else f"the first that differs is {number}, {name!r}"
        raise InputError(f"{test}: its categories are not those of {train}: {what}; give both the same")
    shown = [image for image in range(len(learned)) if learned.teaches(image)]
    notes = [one.summary() for one in (learned, judged)]
    if not shown:
        raise InputError(f"{train}: no image with an object to learn from; {notes[0] or 'nothing is annotated'}")
    if bare := len(learned) - len(shown):
        notes.append(f"{train}: {bare} of {len(learned)} images show no object, and are left out of training")
    return CocoData(
        CocoSource(config.data, train_images, learned, shown),
        CocoSource(held_out, test_images, judged, range(len(judged))),
        learned.categories,
        tuple(filter(None, notes)),
    )


def coco_part(data: str, part: str) -> CocoSource | None:
    """All images of a part, `train` or `test`, of a folder in COCO's layout; None for data in another.

    Raises:
        InputError: something is wrong in its instances file.
    """
    coco = {"train": "train", "test": "val"}[part]
    if not any((Path(data) / "annotations").glob(f"{_PREFIX}{coco}*.json")):
        return None
    file, images = _find(data, coco, None, None)
    annotations = read_annotations(file)
    return CocoSource(data, images, annotations, range(len(annotations)))


def _find(data: str, part: str, annotations: str | None, images: str | None) -> tuple[Path, Path]:
    """The instances file of a part, and the folder of its images.

    Raises:
        InputError: there is none, or more than one.
    """
    root = Path(data)
    if not root.is_dir():
        raise InputError(f"data={data}: no such folder; give one in COCO's layout: annotations/, train*/, val*/")
    if annotations is None:
        found = sorted((root / "annotations").glob(f"{_PREFIX}{part}*.json"))
        if len(found) != 1:
            there = f"{len(found)} files {found[0].name}, {found[1].name}, ..." if found else "no file"
            where = root / "annotations"
            raise InputError(
                f"{where}: {there} of the name {_PREFIX}{part}*.json; name the file by --{part}_annotations"
            )
        file = found[0]
    else:
        file = Path(annotations)
        if not file.is_file():
            raise InputError(f"{part}_annotations={annotations}: no such file")
    if images is not None:
        if not Path(images).is_dir():
            raise InputError(f"{part}_images={images}: no such folder")
        return file, Path(images)
    name = file.stem.removeprefix(_PREFIX)
    choices = [root / name, root / "images" / name, root / part, root / "images" / part]
    folder = next((choice for choice in choices if choice.is_dir()), None)
    if folder is None:
        raise InputError(f"{choices[0]}: no such folder of the images of {file.name}; name it by --{part}_images")
    return file, folder
