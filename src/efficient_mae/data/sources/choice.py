"""What is taken of data that hold more than one thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from efficient_mae.errors import InputError
from efficient_mae.ranges import Settings

# Which kinds of data have what a setting chooses from.
_CHOOSES = {"hf": ("split", "val_split", "column", "label"), "wds": ("key", "label")}
_OF_PART = {"train": ("split", "column", "key", "label"), "test": ("val_split", "column", "key", "label")}

# As `key`: each image is a sample.
EACH = "*"


@dataclass(frozen=True, kw_only=True)
class DataChoice(Settings):
    """Settings of every command that reads data; each is for data that leave a choice, and null elsewhere."""

    split: str | None = None
    """hf: the split to learn from, or a part of one: unlabeled, train[:10%] (null: train, or the only one)"""
    val_split: str | None = None
    """hf: the split that is held out, likewise (null: val, validation, valid or test)"""
    column: str | None = None
    """hf: the column of images (null: the only one, or `image`)"""
    key: str | None = None
    """wds: how the names of images end, jpg or seg.png, where a sample holds several images; of several endings with
    commas the first that is there; * takes each image as a sample (null: a sample's only one)"""
    label: str | None = None
    """hf: the column, wds: the entry of .json members, that says the class (null: what is called so)"""

    def alone(self, recorded: Mapping[str, Any] | None = None) -> DataChoice:
        """These settings without those of a command; one that is null as it is recorded of a run, if it is."""
        names = [one.name for one in fields(DataChoice)]
        texts = {name: value for name, value in (recorded or {}).items() if isinstance(value, str)}
        return DataChoice(**{name: getattr(self, name) or texts.get(name) for name in names})

    def check(self, spec: str, part: str) -> None:
        """Raise InputError where something is chosen for a part of data that leave no such choice."""
        for name in _OF_PART[part]:
            value = getattr(self, name)
            if value is not None and name not in _CHOOSES.get(_scheme(spec), ()):
                kinds = " and ".join(f"{scheme}:" for scheme, names in _CHOOSES.items() if name in names)
                raise InputError(f"{name}={value!r}: is for {kinds} data, which {spec!r} is not; leave it out")

    def elsewhere(self, spec: str) -> DataChoice:
        """The same for held-out images that lie elsewhere, perhaps as another kind of data."""
        dropped = {"split"} | {"column", "key", "label"} - set(_CHOOSES.get(_scheme(spec), ()))
        return replace(self.alone(), **dict.fromkeys(dropped))


def _scheme(spec: str) -> str:
    return spec.partition(":")[0]


ANY = DataChoice()
