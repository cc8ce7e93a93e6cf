"""Which images a run is of: compared by what they are, wherever they lie and however that is spelt."""

import json
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from efficient_mae.data.sources.registry import NAMED, Fingerprinted, Source
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.engine.storage.plain_files import parse_json
from efficient_mae.errors import InputError

# In a run's directory; runs of the first versions have none.
DATA = "data.json"

# What may stand before a path; behind others stands no path.
_SCHEMES = ("hf", "wds", "local-dir")


@dataclass(frozen=True)
class DataRecord:
    """Which images a run is of.

    Attributes:
        images: how many.
        names: a digest of their names below the folder that holds them, in order; "" where they have none.
        before: numbers of images that the run had at first, and that were accepted to have become others, each with
            the `step` of the checkpoint from which it went on with fewer, or more.
    """

    images: int
    names: str
    before: tuple[dict[str, int], ...] = ()

    @classmethod
    def of(cls, source: Source) -> "DataRecord":
        """Of a source."""
        return cls(len(source), source.fingerprint() if isinstance(source, Fingerprinted) else "")

    def is_same(self, other: "DataRecord") -> bool:
        """Whether the images are the same, as far as their number and names tell."""
        return (self.images, self.names) == (other.images, other.names)

    def went_on_with(self, other: "DataRecord", step: int) -> "DataRecord":
        """The record of a run that goes on with other images after a step."""
        return replace(other, before=(*self.before, {"images": self.images, "step": step}))

    def write(self, folder: Path) -> None:
        """Into a run's directory."""
        replace_file(folder / DATA, json.dumps(asdict(self)).encode())


def read_data_record(folder: Path) -> DataRecord | None:
    """Of a run's directory; None if there is none.

    Raises:
        InputError: it holds something else.
    """
    file = folder / DATA
    if not file.is_file():
        return None
    content = parse_json(file.read_bytes(), str(file))
    try:
        record = DataRecord(content["images"], content["names"], tuple(content["before"]))
        numbers = [record.images, *(one[name] for one in record.before for name in ("images", "step"))]
    except (KeyError, TypeError):
        record, numbers = None, []
    if record is None or not isinstance(record.names, str) or not all(isinstance(one, int) for one in numbers):
        raise InputError(f"{file}: doesn't say how many images the run has; remove it")
    return record


def absolute(place: str) -> str:
    """A place as it is found from any working directory; what is no path, such as a named sample, stays.

    Args:
        place: as `--data` or `--weights` take it, with `~` spelt out.
    """
    scheme, colon, path = place.partition(":")
    if place in NAMED or (colon and scheme == "hf" and not Path(path).exists()):
        return place
    if colon and scheme in _SCHEMES:
        return f"{scheme}:{os.path.abspath(path)}"  # noqa: PTH100 - a pattern is no path
    if re.match(r"[\w-]{2,}:", place) and not Path(place).exists():
        return place
    return os.path.abspath(place)  # noqa: PTH100 - without following links, which may be moved


def is_same_place(one: object, other: object) -> bool:
    """Whether two places are one, however they are spelt."""
    if not (isinstance(one, str) and isinstance(other, str)):
        return one == other
    return absolute(one) == absolute(other) or os.path.realpath(one) == os.path.realpath(other)


def other_images(data: str, now: int, before: int, out: Path) -> InputError:
    """That a run's images aren't those that it was begun with: their numbers, or their names."""
    others = ", of other names" if now == before else ""
    return InputError(
        f"data={data} has {now} images now and had {before} when {out} was begun{others}: give it back its data, "
        "name another out, or go on with what there is by --accept_changed_data true"
    )
