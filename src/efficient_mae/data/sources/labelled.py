"""Labelled images in two parts, to learn from and to be judged on, with labels that make sense together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from efficient_mae.data.sources.choice import ANY, DataChoice
from efficient_mae.data.sources.registry import Source, open_held_out, open_source
from efficient_mae.data.sources.subset import Subset
from efficient_mae.errors import InputError


@dataclass(frozen=True)
class LabelledData:
    """Images to learn from and images to be judged on; every image has a label.

    Attributes:
        train: to learn from.
        test: held out; its labels are numbered as train's are.
        classes: the classes' names, which both parts' labels index.
    """

    train: Source
    test: Source
    classes: tuple[str, ...]


def open_labelled(spec: str, held_out: str | None = None, choice: DataChoice = ANY) -> LabelledData:
    """Open and check labelled data.

    Args:
        spec: what `open_source` takes.
        held_out: the same, for held-out images elsewhere: its held-out part if it has one, else all of it.
            None takes the held-out part of `spec`. Classes go by their names either way.
        choice: where the data leave one.

    Raises:
        InputError: no such data or no held-out part; images without a label, labels outside the classes' range,
            a single class, or a class in the held-out part that the training part lacks.
    """
    train = open_source(spec, "train", choice)
    classes = _classes(train, "data", spec)
    present = set(_checked_labels(train, "data", spec).tolist())
    if len(present) < 2:
        only = classes[next(iter(present))]
        raise InputError(f"data={spec}: all {len(train)} images are of one class, {only!r}; give two at least")
    setting, where = ("data", spec) if held_out is None else ("val_data", held_out)
    if held_out is None:
        test = open_source(spec, "test", choice)
    else:
        test = open_held_out(held_out, choice.elsewhere(held_out))[0]
    names = _classes(test, setting, where)
    used = np.unique(_checked_labels(test, setting, where)).tolist()
    number = {name: label for label, name in enumerate(classes)}
    unknown = [names[label] for label in used if number.get(names[label]) not in present]
    if unknown:
        raise InputError(
            f"{setting}={where}: held-out images of {len(unknown)} classes that no training image has, the first "
            f"{unknown[0]!r}: remove them, or give training images of these classes"
        )
    if names != classes:
        test = Subset(test, np.arange(len(test)), classes, [number.get(name, -1) for name in names])
    return LabelledData(train, test, classes)


def labels_of(source: Source) -> Int64[np.ndarray, " N"]:
    """The labels of all images, -1 for an image without one."""
    labels = (source.label(index) for index in range(len(source)))
    return np.fromiter((-1 if label is None else label for label in labels), np.int64, len(source))


def _classes(source: Source, setting: str, spec: str) -> tuple[str, ...]:
    if source.classes is None:
        raise InputError(f"{setting}={spec}: has no labels: {source.why_unlabelled}")
    return source.classes


def _checked_labels(source: Source, setting: str, spec: str) -> Int64[np.ndarray, " N"]:
    labels = labels_of(source)
    count = len(source.classes or ())
    if len(bare := np.flatnonzero(labels == -1)):
        raise InputError(
            f"{setting}={spec}: {len(bare)} of {len(labels)} images have no label, the first "
            f"{source.sample_name(int(bare[0]))}; label or remove them"
        )
    if len(wrong := np.flatnonzero((labels < 0) | (labels >= count))):
        first = int(wrong[0])
        raise InputError(
            f"{setting}={spec}: {len(wrong)} of {len(labels)} labels lie outside the range 0 to {count - 1} of its "
            f"{count} classes, the first {labels[first]} of {source.sample_name(first)}; mend them"
        )
    return labels
