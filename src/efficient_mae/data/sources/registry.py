"""Where images come from: what a source is, and how `--data` names one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image

from efficient_mae.data.images.decode import OpenedImage
from efficient_mae.data.sources.fashion_mnist import open_full, open_sample
from efficient_mae.data.sources.folder import open_folder
from efficient_mae.data.sources.hub import open_hub
from efficient_mae.data.sources.shards import open_shards
from efficient_mae.errors import InputError, nearest


@runtime_checkable
class Source(Protocol):
    """Images by number, 0 to len - 1: always the same image under the same number.

    A source is handed to worker processes: it holds no open file and no state that reading changes.

    Attributes:
        name: what was asked for.
        classes: the classes' names, which labels index; None when the images are unlabelled.
    """

    name: str
    classes: tuple[str, ...] | None

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


NAMED: dict[str, Callable[[str], Source]] = {"fashion-mnist-sample": open_sample, "fashion-mnist": open_full}
SCHEMES: dict[str, Callable[[str, str], Source]] = {"hf": open_hub, "wds": open_shards}
ACCEPTED = "a folder of images, hf:NAME_OR_PATH, wds:PATTERN, fashion-mnist-sample or fashion-mnist"


def open_source(spec: str, split: str = "train") -> Source:
    """The images that `spec` names.

    Args:
        spec: a folder of images; `hf:NAME_OR_PATH` (Hugging Face datasets); `wds:PATTERN` (WebDataset shards);
            `fashion-mnist-sample` (ships with the package); `fashion-mnist`.
        split: "train", or "test" for the held-out part.

    Raises:
        InputError: there is no such thing, no image in it, or no held-out part.
    """
    if split not in ("train", "test"):
        raise InputError(f"split={split!r}: must be 'train' or 'test'")
    if spec in NAMED:
        return NAMED[spec](split)
    scheme, colon, rest = spec.partition(":")
    if colon and scheme in SCHEMES:
        if not rest:
            raise InputError(f"{spec!r} names no data; accepted: {ACCEPTED}")
        return SCHEMES[scheme](rest, split)
    path = Path(spec).expanduser()
    if spec and path.is_dir():
        return open_folder(path, split)
    raise InputError(_why_not(spec, path))


def open_held_out(spec: str) -> tuple[Source, str]:
    """The held-out part of what `spec` names, and "test"; where there is none the images themselves, and "train".

    Raises:
        InputError: there is no such thing, or no image in it.
    """
    try:
        return open_source(spec, "test"), "test"
    except InputError:
        return open_source(spec, "train"), "train"


def _why_not(spec: str, path: Path) -> str:
    if path.is_file():
        scheme = {".tar": "wds", ".parquet": "hf", ".arrow": "hf"}.get(path.suffix)
        mend = f"did you mean {scheme}:{spec}?" if scheme else "give the folder that holds it"
        return f"{spec} is a file, not a folder of images: {mend}"
    scheme = re.match(r"([\w+-]{2,}):", spec)
    if scheme:
        near = nearest(scheme[1].lower(), SCHEMES, cutoff=0.4)
        problem, suggestion = f"unknown kind of data {scheme[0]!r} in {spec!r}", near and f"{near}:"
    else:
        problem, suggestion = f"no such folder: {spec!r}", nearest(spec, NAMED)
    hint = f"did you mean {suggestion!r}? " if suggestion else ""
    return f"{problem}; {hint}accepted: {ACCEPTED}"
