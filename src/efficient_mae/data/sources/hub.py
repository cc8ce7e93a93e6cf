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
from efficient_mae.data.sources.choice import ANY, DataChoice
from efficient_mae.data.sources.names import HELD_OUT, LABELS, class_name, classes_of
from efficient_mae.errors import InputError, NoHeldOutPart, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

# Files whose columns have types, images among them, by their ending.
_KINDS = {".parquet": "parquet", ".arrow": "arrow"}


class HubSource:
    """One split of a Hugging Face data set: a column of images, or of lists of images, and one of classes.

    Attributes:
        name: what was asked for, and the split.
        classes: the label column's names, or the numbers, words, or truth values that occur in it; None without one.
        why_unlabelled: why there is none; empty where there is.
    """

    def __init__(self, dataset: Dataset, name: str, choice: DataChoice = ANY) -> None:
        """Raises InputError where the data set is empty or it isn't clear which column is meant."""
        if any(isinstance(feature, dict) for feature in dataset.features.values()):
            dataset = dataset.flatten()  # {"photo": {"image": ...}} becomes photo.image
        self.name = name
        self._column = _image_column(dataset, name, choice.column)
        # As arrow has them: `datasets` would decode.
        self._images: Any = dataset.select_columns([self._column]).with_format("arrow")
        # Of each image its row, and its place in the row's list; None where every row is an image.
        self._rows: tuple[np.ndarray, np.ndarray] | None = None
        if _element(dataset.features[self._column]) is not None:
            self._rows = _list_places(self._images, self._column)
        if not len(self):
            raise InputError(f"{name}: no image in it: {len(dataset)} rows of nothing in the column {self._column}")
        self.classes, self._labels, self.why_unlabelled = _read_labels(dataset, name, choice.label)

    def __len__(self) -> int:
        return len(self._images) if self._rows is None else len(self._rows[0])

    def image(self, index: int) -> Image.Image:
        """The decoded image; raises UnreadableImage for a row without one, or with a damaged one."""
        return self.open(index).decode().image

    def open(self, index: int) -> OpenedImage:
        """The image; raises UnreadableImage for a row without one, or with a damaged one."""
        name, cell = self.sample_name(index), self._cell(index)
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
        label = -1 if self._labels is None else int(self._labels[self._row(index)])
        return label if label >= 0 else None

    def fingerprint(self) -> str:
        """A digest of a few of the images as they are stored, for rows have no names."""
        state = blake2b(digest_size=16)
        for index in np.linspace(0, len(self) - 1, min(8, len(self))).astype(int).tolist():
            cell = self._cell(index) or {}
            state.update(cell.get("bytes") or Path(cell.get("path") or "").name.encode())
        return state.hexdigest()

    def sample_name(self, index: int) -> str:
        place = "" if self._rows is None else f"[{self._rows[1][index]}]"
        return f"{self.name}[{self._row(index)}]{place}"

    def _cell(self, index: int) -> dict[str, Any] | None:
        """The image's `bytes` and `path`, as far as they are there."""
        held = self._images[self._row(index)].column(0)[0]
        return (held if self._rows is None else held[int(self._rows[1][index])]).as_py()

    def _row(self, index: int) -> int:
        return index if self._rows is None else int(self._rows[0][index])


def open_hub(spec: str, part: str, choice: DataChoice = ANY) -> HubSource:
    """The data set called `spec`: a folder or file on disk, or `NAME` or `NAME:CONFIG` on the hub.

    The training part is the split `train`, or the only split; the held-out part the first of `val`, `valid`,
    `validation` and `test` that exists; or what the choice names.

    Raises:
        InputError: the package `datasets` is missing, the data set cannot be opened, or lacks the split.
        NoHeldOutPart: that is asked for, and there is none.
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
    setting, named = ("split", choice.split) if part == "train" else ("val_split", choice.val_split)
    if named is not None:
        return HubSource(_named_split(splits, named, f"hf:{spec}: {setting}={named!r}"), f"hf:{spec} {named}", choice)
    wanted = HELD_OUT if part == "test" else ("train", *(list(splits) if len(splits) == 1 else ()))
    found = [name for name in wanted if name in splits]
    if not found:
        kind, error = ("held-out", NoHeldOutPart) if part == "test" else ("training", InputError)
        raise error(
            f"hf:{spec} has no {kind} part: it has the splits {', '.join(splits)}, not {' or '.join(wanted)}; "
            f"name one with --{setting}"
        )
    return HubSource(splits[found[0]], f"hf:{spec} {found[0]}", choice)


def _named_split(splits: dict[str, Dataset], named: str, where: str) -> Dataset:
    """A split, a part of one (`train[:10%]`), or several with `+`, as `datasets` writes them."""
    from datasets import ReadInstruction, concatenate_datasets

    try:
        parts = ReadInstruction.from_spec(named).to_absolute({name: len(split) for name, split in splits.items()})
        return concatenate_datasets([splits[part.splitname].select(range(part.from_, part.to)) for part in parts])
    except (ValueError, AssertionError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{where}: {reason}; its splits: {', '.join(splits)}") from None


def _image_column(dataset: Dataset, name: str, asked: str | None) -> str:
    from datasets import Image as ImageFeature

    features = dataset.features
    columns = [
        column
        for column, feature in features.items()
        if isinstance(feature, ImageFeature) or isinstance(_element(feature), ImageFeature)
    ]
    if not columns or not len(dataset):
        raise InputError(
            f"{name}: no image in it: {len(dataset)} rows with the columns {', '.join(features)}, "
            "of which one must have the type datasets.Image"
        )
    if asked is not None:
        if asked not in columns:
            near = did_you_mean(asked, columns)
            raise InputError(f"{name}: column={asked!r}: has no images{near}; those that do: {', '.join(columns)}")
        return asked
    if len(columns) > 1 and "image" not in columns:
        raise InputError(f"{name}: several columns hold images: name one with --column {' or '.join(columns)}")
    return "image" if "image" in columns else columns[0]


def _element(feature: Any) -> Any:
    """Of what a column of lists has lists; None for any other column."""
    return getattr(feature, "feature", None)


def _list_places(images: Any, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Row, and place in it, of each image in a column of lists."""
    from pyarrow.compute import call_function

    lengths = (call_function("list_value_length", [batch.column(column)]) for batch in images.iter(1000))
    counts = np.concatenate([batch.fill_null(0).to_numpy() for batch in lengths])
    starts = counts.cumsum() - counts
    return np.repeat(np.arange(len(counts)), counts), np.arange(counts.sum()) - np.repeat(starts, counts)


def _read_labels(
    dataset: Dataset, name: str, asked: str | None
) -> tuple[tuple[str, ...] | None, np.ndarray | None, str]:
    """The classes; of each row its class, -1 for none; and why there are none, if so."""
    from datasets import ClassLabel, Value

    features, columns = dataset.features, ", ".join(dataset.features)
    if asked is not None and asked not in features:
        near = did_you_mean(asked, features)
        raise InputError(f"{name}: label={asked!r}: is no column{near}; its columns: {columns}")
    typed = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    called = [column for column in LABELS if column in features]
    found = [asked] if asked else typed if len(typed) == 1 else called or typed
    if len(found) != 1:
        what = f"{' and '.join(found)} may be" if found else f"no column is called {' or '.join(LABELS)}, to be"
        return None, None, f"{what} the class: name the column with --label, of {columns}"
    (column,) = found
    feature = features[column]
    if not isinstance(feature, ClassLabel):
        kind = feature.dtype if isinstance(feature, Value) else type(feature).__name__
        if not isinstance(feature, Value) or not any(part in kind for part in ("int", "bool", "string")):
            return None, None, f"the column {column} holds {kind}, not one number, word or truth value an image"
    table: Any = dataset.select_columns([column]).with_format("arrow")[:]
    whole = table.column(0)
    if isinstance(feature, ClassLabel):
        names = [class_name(one) for one in feature.names]
        classes = tuple(dict.fromkeys(names))
        number = np.array([classes.index(one) for one in names] if len(classes) < len(names) else range(len(names)))
        labels = whole.fill_null(-1).to_numpy().astype(np.int64)
        known = (labels >= 0) & (labels < len(names))
        labels[known] = number[labels[known]]
        return classes, labels, ""
    encoded = whole.dictionary_encode().unify_dictionaries().combine_chunks()
    texts = [str(one).strip() for one in encoded.dictionary.to_pylist()]
    classes, numbers = classes_of(texts)
    if classes is None:
        return None, None, f"the column {column} holds {len(texts):,} different values, which are no classes"
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return classes, np.append(numbers, -1)[codes], ""


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
