"""Hugging Face datasets: saved to disk, local files, or by name from the hub. Needs the package `datasets`.

Images are decoded here and not by `datasets`, so that a damaged one is reported like any other. No code that a
data set brings along is run: datasets 4 and later cannot do so. What lies on disk is read without the network.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from efficient_mae.console import printable
from efficient_mae.data.images.decode import OpenedImage, UnreadableImage, open_image, read_regular
from efficient_mae.data.sources.names import numbered_classes
from efficient_mae.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

# Files whose columns have types, images among them, by their ending.
_KINDS = {".parquet": "parquet", ".arrow": "arrow"}
HELD_OUT = ("val", "validation", "valid", "test")


class HubSource:
    """One split of a Hugging Face data set: its first column of images, its first column of class labels.

    Attributes:
        name: what was asked for, and the split.
        classes: the label column's names (numbers where it is a plain integer column called `label`); None
            without such a column.
    """

    def __init__(self, dataset: Dataset, name: str) -> None:
        """Raises InputError where the data set is empty or has no column of images."""
        from datasets import ClassLabel, Value
        from datasets import Image as ImageFeature

        features = dataset.features
        images = [column for column, feature in features.items() if isinstance(feature, ImageFeature)]
        labels = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
        plain = features.get("label")
        if not labels and isinstance(plain, Value) and "int" in plain.dtype:
            labels = ["label"]
        if not images or not len(dataset):
            raise InputError(
                f"{name}: no image in it: {len(dataset)} rows with the columns {', '.join(features)}, "
                "of which one must have the type datasets.Image"
            )
        self.name = name
        self._column = images[0]
        self._images = dataset.select_columns(images[:1]).cast_column(images[0], ImageFeature(decode=False))
        self.classes: tuple[str, ...] | None = None
        self._labels: np.ndarray | None = None
        if labels:
            self._labels = _whole_column(dataset, labels[0])
            feature = features[labels[0]]
            named = isinstance(feature, ClassLabel)
            self.classes = tuple(feature.names) if named else numbered_classes(int(self._labels.max()))

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> Image.Image:
        """The decoded image; raises UnreadableImage for a row without one, or with a damaged one."""
        return self.open(index).decode().image

    def open(self, index: int) -> OpenedImage:
        """The image; raises UnreadableImage for a row without one, or with a damaged one."""
        name = self.sample_name(index)
        cell: dict[str, Any] | None = self._images[index][self._column]
        if cell and cell["bytes"] is not None:
            return open_image(cell["bytes"], name)
        if not cell or not cell["path"]:
            raise UnreadableImage(name, "no image in this row")
        try:
            return open_image(read_regular(cell["path"], name), name)
        except OSError as error:
            raise UnreadableImage(name, printable(f"{cell['path']}: {error.strerror}")) from None

    def label(self, index: int) -> int | None:
        """The class, or None where the row has none (hub test splits hold -1)."""
        if self.classes is None or self._labels is None or self._labels[index] < 0:
            return None
        return int(self._labels[index])

    def fingerprint(self) -> str:
        """A digest of a few of the images as they are stored, for rows have no names."""
        state = blake2b(digest_size=16)
        for index in np.linspace(0, len(self) - 1, min(8, len(self))).astype(int).tolist():
            cell: dict[str, Any] = self._images[index][self._column] or {}
            state.update(cell.get("bytes") or Path(cell.get("path") or "").name.encode())
        return state.hexdigest()

    def sample_name(self, index: int) -> str:
        return f"{self.name}[{index}]"


def open_hub(spec: str, split: str) -> HubSource:
    """The data set called `spec`: a folder or file on disk, or `NAME` or `NAME:CONFIG` on the hub.

    The training part is the split `train`, or the only split; the held-out part the first of `val`, `validation`,
    `valid` and `test` that exists.

    Raises:
        InputError: the package `datasets` is missing, the data set cannot be opened, or lacks the split.
    """
    try:
        from datasets import Dataset
    except ImportError:
        raise InputError("hf: needs the package datasets: pip install 'efficient-mae[hub]'") from None
    try:
        opened = _load(spec)
    except InputError:
        raise
    except Exception as error:  # datasets, pyarrow, fsspec and the hub's client each raise errors of their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"hf:{spec} cannot be opened: {reason}") from None
    splits = {"train": opened} if isinstance(opened, Dataset) else dict(opened)
    wanted = HELD_OUT if split == "test" else ("train", *(list(splits) if len(splits) == 1 else ()))
    found = [name for name in wanted if name in splits]
    if not found:
        kind = "held-out" if split == "test" else "training"
        raise InputError(
            f"hf:{spec} has no {kind} part: it has the splits {', '.join(splits)}, not {' or '.join(wanted)}"
        )
    return HubSource(splits[found[0]], f"hf:{spec} {found[0]}")


def _load(spec: str) -> Any:
    from datasets import load_dataset

    path = Path(spec).expanduser()
    with _discreet(offline=path.exists()):
        if path.exists():
            return _load_local(path)
        name, _, part = spec.partition(":")
        return load_dataset(name, part or None)


@contextmanager
def _discreet(offline: bool) -> Iterator[None]:
    """Within, datasets keeps to itself what is opened, and draws no bars where nobody sees them."""
    from datasets import are_progress_bars_disabled, config, disable_progress_bars, enable_progress_bars

    counts, online = config.HF_UPDATE_DOWNLOAD_COUNTS, config.HF_HUB_OFFLINE
    quiet = offline and not sys.stderr.isatty() and not are_progress_bars_disabled()
    # It tells the hub of every data set that is opened, of files on this disk too.
    config.HF_UPDATE_DOWNLOAD_COUNTS, config.HF_HUB_OFFLINE = False, offline or online
    if quiet:
        disable_progress_bars()
    try:
        yield
    finally:
        config.HF_UPDATE_DOWNLOAD_COUNTS, config.HF_HUB_OFFLINE = counts, online
        if quiet:
            enable_progress_bars()


def _load_local(path: Path) -> Any:
    from datasets import load_dataset, load_from_disk

    if path.is_file():
        if path.suffix not in _KINDS:
            raise InputError(f"hf:{path}: a file must be one of {', '.join(_KINDS)}")
        return load_dataset(_KINDS[path.suffix], data_files=str(path))
    if any((path / file).exists() for file in ("state.json", "dataset_dict.json")):
        return load_from_disk(str(path))
    # Not load_dataset(str(path)): that obeys a README.md, which may name files elsewhere, on the network too.
    kind = next((kind for suffix, kind in _KINDS.items() if any(path.rglob(f"*{suffix}"))), "imagefolder")
    return load_dataset(kind, data_dir=str(path))


def _whole_column(dataset: Dataset, column: str) -> np.ndarray:
    """A column of integers as int64 (N,), -1 where a row has none."""
    values = dataset.select_columns([column]).with_format("numpy")[:][column]
    if values.dtype.kind == "f":  # numpy's way to hold missing integers
        values = np.nan_to_num(values, nan=-1)
    return values.astype(np.int64)
