"""Where images come from: what a source is, and how `--data` names one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image

from efficient_mae.data.images.decode import OpenedImage
from efficient_mae.data.sources.choice import ANY, DataChoice
from efficient_mae.data.sources.fashion_mnist import open_full, open_sample
from efficient_mae.data.sources.folder import open_folder
from efficient_mae.data.sources.hub import open_hub
from efficient_mae.data.sources.photographs import open_photographs
from efficient_mae.data.sources.shards import open_shards
from efficient_mae.errors import InputError, NoHeldOutPart, nearest

# Endings of files that hold a folder of images, perhaps: no image of them can be read by itself, or not fast.
_ARCHIVES = (".zip", ".7z", ".rar", ".tgz", ".gz", ".bz2", ".xz", ".zst")


@runtime_checkable
class Source(Protocol):
    """Images by number, 0 to len - 1: always the same image under the same number.

    A source is handed to worker processes: it holds no open file and no state that reading changes.

    Attributes:
        name: what was asked for.
        classes: the classes' names, which labels index; None when the images are unlabelled. Parts of the same data
            may number them differently: :func:`efficient_mae.data.open_labelled` goes by the names.
        why_unlabelled: why they are, on one line; empty where they are not.
    """

    name: str
    classes: tuple[str, ...] | None

    @property
    def why_unlabelled(self) -> str: ...

    def __len__(self) -> int: ...

    def open(self, index: int) -> OpenedImage:
        """The image, opened but not decoded if it is a JPEG; raises UnreadableImage where it cannot be."""
        ...

    def image(self, index: int) -> Image.Image:
        """The image, decoded and upright, in mode L, RGB or RGBA; raises UnreadableImage where it cannot be."""
        ...

    def label(self, index: int) -> int | None:
        """The image's class, or None where it has none."""
        ...

    def sample_name(self, index: int) -> str:
        """What to call the image in a log, on one line."""
        ...


@runtime_checkable
class Fingerprinted(Protocol):
    """A source that can tell whether another one holds the same images."""

    def fingerprint(self) -> str:
        """A digest of what the images are called, wherever they lie."""
        ...


NAMED: dict[str, Callable[[str], Source]] = {
    "fashion-mnist-sample": open_sample,
    "photographs-sample": open_photographs,
    "fashion-mnist": open_full,
}
SCHEMES: dict[str, Callable[[str, str, DataChoice], Source]] = {"hf": open_hub, "wds": open_shards}
ACCEPTED = f"a folder of images, hf:NAME_OR_PATH, wds:PATTERN, {', '.join(NAMED)}"


def open_source(spec: str, part: str = "train", choice: DataChoice = ANY) -> Source:
    """The images that `spec` names.

    Args:
        spec: a folder of images; `hf:NAME_OR_PATH` (Hugging Face datasets); `wds:PATTERN` (WebDataset shards);
            `fashion-mnist-sample` or `photographs-sample` (ship with the package); `fashion-mnist`.
        part: "train", or "test" for the held-out part.
        choice: where the data leave one.

    Raises:
        InputError: there is no such thing, no image in it, or something to be chosen, or that can't be.
        NoHeldOutPart: that is asked for, and there is none.
    """
    if part not in ("train", "test"):
        raise InputError(f"part={part!r}: must be 'train' or 'test'")
    choice.check(spec, part)
    if spec in NAMED:
        return NAMED[spec](part)
    scheme, colon, rest = spec.partition(":")
    if colon and scheme in SCHEMES:
        if not rest:
            raise InputError(f"{spec!r} names no data; accepted: {ACCEPTED}")
        return SCHEMES[scheme](rest, part, choice)
    path = Path(spec).expanduser()
    if spec and path.is_dir():
        return open_folder(path, part)
    raise InputError(_why_not(spec, path))


def open_held_out(spec: str, choice: DataChoice = ANY) -> tuple[Source, str]:
    """The held-out part of what `spec` names, and "test"; where there is none the images themselves, and "train".

    Raises:
        InputError: as :func:`open_source`.
    """
    try:
        return open_source(spec, "test", choice), "test"
    except NoHeldOutPart:
        return open_source(spec, "train", choice), "train"


def _why_not(spec: str, path: Path) -> str:
    if path.is_file():
        scheme = {".tar": "wds", ".parquet": "hf", ".arrow": "hf"}.get(path.suffix)
        mend = f"did you mean {scheme}:{spec}?" if scheme else "give the folder that holds it"
        if path.name.lower().endswith(_ARCHIVES):
            folder = spec[: -len(path.suffix)]
            how = f" (unzip -q {shlex.quote(spec)} -d {shlex.quote(folder)})" if path.suffix.lower() == ".zip" else ""
            mend = f"unpack it{how} and give the folder"
        return f"{spec} is a file, not a folder of images: {mend}"
    scheme = re.match(r"([\w+-]{2,}):", spec)
    if scheme:
        near = nearest(scheme[1].lower(), SCHEMES, cutoff=0.4)
        problem, suggestion = f"unknown kind of data {scheme[0]!r} in {spec!r}", near and f"{near}:"
    else:
        problem, suggestion = f"no such folder: {spec!r}", nearest(spec, NAMED)
    hint = f"did you mean {suggestion!r}? " if suggestion else ""
    return f"{problem}; {hint}accepted: {ACCEPTED}"
