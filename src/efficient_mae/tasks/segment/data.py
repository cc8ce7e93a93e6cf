"""Images with label maps: a PNG for each image, whose number at a pixel is its class.

ADE20K's folders (`images/training`, `annotations/training`, ...), or any like them. H and W height and width.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int16
from PIL import Image

from efficient_mae.console import printable
from efficient_mae.data import OpenedImage, UnreadableImage
from efficient_mae.data.images.decode import damage_named, read_regular
from efficient_mae.data.images.formats import open_picture
from efficient_mae.data.sources.folder import FolderSource
from efficient_mae.data.sources.names import HELD_OUT
from efficient_mae.engine.storage.damage_log import MOST_DAMAGED
from efficient_mae.errors import InputError, did_you_mean

# What a pixel of no class, which neither trains nor counts, is in a batch.
NOTHING = -1
# Folders of label maps, beside `images`; and of the part that is learned from.
_MAPS, _IMAGES = ("annotations", "labels", "masks"), "images"
_TRAINING = ("training", "train")
# Classes' names that may lie beside the images: ours, and ADE20K's.
_CLASS_FILES = ("classes.txt", "objectInfo150.txt")
# Where a PNG says the bits of a number, and whether it is grey (0); by how much Pillow multiplies those of few bits.
_PNG_DEPTH, _PNG_COLOURS, _SPREAD = 24, 25, {2: 85, 4: 17}
# Label maps of each part that are looked at before anything is learned.
_LOOKED_AT = 8
# Most classes that a label map can number, of 16 bits.
_MOST_CLASSES = 2**15 - 1


@dataclass(frozen=True)
class Labelling:
    """How label maps number the classes.

    Attributes:
        num_classes: K.
        ignore_index: the number of pixels that neither train nor count; None if there is none.
        reduce_zero_label: 0 is such a number too, and the first class is 1.
    """

    num_classes: int
    ignore_index: int | None
    reduce_zero_label: bool

    @property
    def first_label(self) -> int:
        """Number in label maps of the first class."""
        return int(self.reduce_zero_label)

    def classes(self, numbers: np.ndarray) -> Int16[np.ndarray, "H W"]:
        """From 0 to K - 1, and :data:`NOTHING`.

        Raises:
            ValueError: a number that stands for no class, named with one of its pixels.
        """
        found = numbers.astype(np.int32) - self.first_label
        nothing = found < 0 if self.reduce_zero_label else np.zeros(found.shape, bool)
        if self.ignore_index is not None:
            nothing |= numbers == self.ignore_index
        outside = ~nothing & ((found < 0) | (found >= self.num_classes))
        if outside.any():
            y, x = np.argwhere(outside)[0].tolist()
            first, last = self.first_label, self.first_label + self.num_classes - 1
            hint = "" if self.reduce_zero_label else "; where 0 stands for no class: --reduce_zero_label true"
            raise ValueError(
                f"label {int(numbers[y, x])} at x {x}, y {y}, outside the {self.num_classes} classes, which are "
                f"{first} to {last}{hint if int(numbers[y, x]) == self.num_classes else ''}"
            )
        return np.where(nothing, NOTHING, found).astype(np.int16)


class MappedSource:
    """The images of a folder, each with a label map of its name in another folder; a source of images.

    Args:
        images: folder of the images, at any depth.
        maps: folder of their label maps, PNG, at the same depth.
        name: what was asked for.

    Raises:
        InputError: no image, or so many without a label map that they cannot be left out.
    """

    classes: tuple[str, ...] | None = None
    why_unlabelled: str = "a class for each pixel, and none for the image"

    def __init__(self, images: Path, maps: Path, name: str):
        self._source, self._images, self._maps = FolderSource(images, name), str(images), str(maps)
        self.name = self._source.name
        missing = [index for index in range(len(self)) if not Path(self.map_name(index)).is_file()]
        if len(missing) > max(1, MOST_DAMAGED * len(self)) or len(missing) == len(self):
            first = missing[0]
            raise InputError(
                f"{self.name}: {len(missing)} of {len(self)} images have no label map, the first "
                f"{self.sample_name(first)}: there is no {printable(self.map_name(first))}"
            )

    def __len__(self) -> int:
        return len(self._source)

    def open(self, index: int) -> OpenedImage:
        return self._source.open(index)

    def image(self, index: int) -> Image.Image:
        return self._source.image(index)

    def label(self, index: int) -> int | None:
        return None

    def fingerprint(self) -> str:
        """A digest of the images' names."""
        return self._source.fingerprint()

    def sample_name(self, index: int) -> str:
        return self._source.sample_name(index)

    def map_name(self, index: int) -> str:
        """Path of an image's label map, which need not be there."""
        image = os.path.relpath(os.fsdecode(self._source.path(index)), self._images)
        return str(Path(self._maps) / Path(image).with_suffix(".png"))

    def label_map(self, index: int, image: OpenedImage, labelling: Labelling) -> Int16[np.ndarray, "H W"]:
        """The class of each pixel of an image, from 0, and :data:`NOTHING`.

        Raises:
            UnreadableImage: of the image's name: its map is missing, damaged, of another size, no map of numbers, or
                holds a label outside the classes.
        """
        path = self.map_name(index)
        try:
            data = read_regular(path, image.name)
        except OSError as error:
            raise UnreadableImage(image.name, f"its label map {printable(path)}: {error.strerror}") from None
        try:
            with damage_named(printable(path), empty=not data):
                return labelling.classes(_numbers(data, image.size))
        except UnreadableImage as error:
            raise UnreadableImage(image.name, f"its label map {error}") from None


def _numbers(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """The numbers in a label map; raises ValueError, or what Pillow does."""
    picture = open_picture(data)
    if picture.mode not in ("P", "L", "1") and not picture.mode.startswith("I"):
        raise ValueError(f"{picture.mode} pixels: a label map has a palette or is grey, and its numbers are classes")
    if picture.size != size:
        ours, theirs = (" x ".join(map(str, one)) for one in (picture.size, size))
        raise ValueError(f"is {ours} pixels, and the image is {theirs}")
    picture.load()
    numbers = np.asarray(picture).astype(np.int32)
    # Pillow spreads grey of 2 or 4 bits over 0 to 255.
    is_grey_png = data.startswith(b"\x89PNG") and data[_PNG_COLOURS] == 0
    return numbers // _SPREAD.get(data[_PNG_DEPTH], 1) if is_grey_png else numbers


@dataclass(frozen=True)
class SegmentData:
    """Images to learn from and to be judged on, with label maps.

    Attributes:
        train: to learn from.
        test: held out.
        classes: names, by number.
        labelling: how label maps number them.
    """

    train: MappedSource
    test: MappedSource
    classes: tuple[str, ...]
    labelling: Labelling


def open_mapped(
    spec: str, held_out: str | None, classes: str | None, ignore_index: int | None, reduce_zero_label: bool
) -> SegmentData:
    """Open data for segmentation.

    Args:
        spec: folder with `images/` and `annotations/` (or `labels/`, `masks/`), each of `training/` and `validation/`
            (or `train/`; `val/`, `valid/`, `test/`); or these two folders, each with those of the kinds.
        held_out: such a folder with held-out images: its held-out part, or all of it where it has no parts.
        classes: text file of a class a line; None looks for one in `spec`.
        ignore_index, reduce_zero_label: see :class:`Labelling`.

    Raises:
        InputError: no such folders, no list of classes, images without label maps, or label maps of no use.
    """
    root = _folder("data", spec)
    names = read_classes(root, classes)
    if ignore_index is not None and reduce_zero_label <= ignore_index < reduce_zero_label + len(names):
        number = ignore_index - reduce_zero_label
        raise InputError(f"ignore_index={ignore_index}: is the number of the class {names[number]!r}; give another")
    train = _part(root, _TRAINING)
    if train is None:
        raise InputError(
            f"data={spec}: no images with label maps: there must be {root}/images/training and "
            f"{root}/annotations/training (train; labels or masks will do)"
        )
    if held_out is None:
        test = _part(root, HELD_OUT)
        if test is None:
            raise InputError(
                f"data={spec}: no held-out part: there must be {root}/images/validation and "
                f"{root}/annotations/validation, or name a folder by --val_data"
            )
    else:
        elsewhere = _folder("val_data", held_out)
        test = _part(elsewhere, HELD_OUT) or _pair(elsewhere, "")
        if test is None:
            raise InputError(
                f"val_data={held_out}: no images with label maps: there must be images and annotations in it"
            )
    labelling = Labelling(len(names), ignore_index, reduce_zero_label)
    sources = MappedSource(*train, spec), MappedSource(*test, held_out or spec)
    for source in sources:
        _look_at_maps(source, labelling)
    return SegmentData(*sources, names, labelling)


def _look_at_maps(source: MappedSource, labelling: Labelling) -> None:
    """Raise InputError where none of some images can be used with its label map: told before hours of learning."""
    reasons = []
    for index in np.linspace(0, len(source) - 1, min(_LOOKED_AT, len(source))).round().astype(int).tolist():
        try:
            source.label_map(index, source.open(index), labelling)
        except UnreadableImage as error:
            reasons.append(str(error))
        else:
            return
    raise InputError(f"{source.name}: none of {len(reasons)} images has a label map of use; the first: {reasons[0]}")


def images_of(spec: str, part: str) -> FolderSource | None:
    """The images alone of a part, "train" or "test", of a folder as :func:`open_mapped` takes; None of another."""
    pair = _part(Path(spec).expanduser(), _TRAINING if part == "train" else HELD_OUT)
    return None if pair is None else FolderSource(pair[0], spec)


def _folder(setting: str, spec: str) -> Path:
    root = Path(spec).expanduser()
    if not root.is_dir():
        raise InputError(f"{setting}={spec}: no such folder; segmentation takes a folder of images and label maps")
    return root


def _part(root: Path, names: tuple[str, ...]) -> tuple[Path, Path] | None:
    """Folders of a part's images and label maps; None if there is no such part."""
    for name in names:
        if (found := _pair(root, name)) is not None:
            return found
    return None


def _pair(root: Path, part: str) -> tuple[Path, Path] | None:
    ways = [(root / _IMAGES / part, root / kind / part) for kind in _MAPS]
    ways += [(root / part / _IMAGES, root / part / kind) for kind in _MAPS]
    return next((way for way in ways if all(folder.is_dir() for folder in way)), None)


def read_classes(root: Path, given: str | None) -> tuple[str, ...]:
    """Names of classes, a line each; of a table, such as ADE20K's `objectInfo150.txt`, the last column.

    Args:
        root: folder in which a file is looked for if none is given.

    Raises:
        InputError: no such file, not a text, no class or too many, or a name that stands for two.
    """
    files = [root / name for name in _CLASS_FILES] if given is None else [Path(given).expanduser()]
    file = next((one for one in files if one.is_file()), None)
    if file is None:
        where = f"classes={given}: no such file" if given else f"{root}: says no classes: it has no {_CLASS_FILES[0]}"
        texts = sorted(one.name for one in root.glob("*.txt"))
        raise InputError(f"{where}{did_you_mean(_CLASS_FILES[0], texts)}; give --classes FILE, one name a line")
    try:
        lines = [line.rstrip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: no list of classes ({' '.join(str(error).split())})") from None
    rows = [line.split("\t") for line in lines]
    if rows and rows[0][0].strip().lower() == "idx":
        rows = rows[1:]
    names = tuple(printable(row[-1].strip()) for row in rows)
    if not 2 <= len(names) <= _MOST_CLASSES:
        raise InputError(f"{file}: names {len(names)} classes; there must be 2 to {_MOST_CLASSES}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{file}: names {twice[0]!r} twice; give each class a name of its own")
    return names
