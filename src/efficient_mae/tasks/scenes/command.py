"""`emae scenes`: a small benchmark for segmentation and detection, made of the bundled garments."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le
from rich.console import Console

from efficient_mae.command import Result
from efficient_mae.console import say
from efficient_mae.data import open_source
from efficient_mae.errors import InputError
from efficient_mae.ranges import Location, Seed, Settings
from efficient_mae.tasks.scenes.compose import Wardrobe, compose
from efficient_mae.tasks.scenes.draws import Draws
from efficient_mae.tasks.scenes.layouts import Ade20kFolder, CocoFolder

_GARMENTS = "fashion-mnist-sample"
# Each part's scenes show garments of the data's own part alone.
_PARTS = {"train": "train", "val": "test"}

_Scenes = Annotated[int, Ge(1), Le(1_000_000)]
_Objects = Annotated[int, Ge(0), Le(99)]


@dataclass(frozen=True, kw_only=True)
class ScenesConfig(Settings):
    """Settings of `emae scenes`."""

    out: Location
    """folder to write, in it coco/ and ade20k/; must not exist, or be empty"""
    train: _Scenes = 1000
    """training scenes"""
    val: _Scenes = 200
    """held-out scenes, of garments that no training scene shows"""
    size: Annotated[int, Ge(32), Le(1024)] = 128
    """height and width of a scene in pixels"""
    objects: tuple[_Objects, _Objects] = (2, 6)
    """least and most objects of a scene; a heap of garments, annotated as a crowd, counts as one"""
    seed: Seed = 0
    """of all that is random: the same seed, the same scenes, however many are made"""


@dataclass(frozen=True, kw_only=True)
class ScenesResult(Result):
    """What was written.

    Attributes:
        coco: folder in COCO's layout.
        ade20k: folder in ADE20K's layout, of the same scenes.
        classes: their names.
        train: training scenes.
        val: held-out scenes.
        objects: annotated in both parts, without crowds.
        crowds: annotated in both parts.
    """

    coco: str
    ade20k: str
    classes: list[str]
    train: int
    val: int
    objects: int
    crowds: int


def scenes(config: ScenesConfig) -> ScenesResult:
    """Write scenes of garments on textured canvases, with their masks, in the layouts of COCO and of ADE20K.

    Pictures before they are compressed, label maps and annotations are the same on every machine: they are computed
    in whole numbers. The files' bytes are the same for one version of Pillow's libraries (libjpeg-turbo, zlib).

    Raises:
        InputError: a folder that holds something, or more objects at least than at most.
    """
    out = Path(config.out)
    low, high = config.objects
    if low > high:
        raise InputError(f"objects={list(config.objects)}: must be [least, most]")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out={out}: exists and isn't an empty folder; give another")
    counts = {"train": config.train, "val": config.val}
    wardrobes = {part: Wardrobe(open_source(_GARMENTS, of)) for part, of in _PARTS.items()}
    classes = wardrobes["train"].classes
    say(f"composing {sum(counts.values()):,} scenes of {config.size} x {config.size} pixels")
    # Written under another name, so that a folder of this name is whole.
    partial = out.with_name(f".partial-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        coco, ade20k = CocoFolder(partial / "coco", classes), Ade20kFolder(partial / "ade20k", classes)
        for number, (part, count) in enumerate(counts.items()):
            for index in range(count):
                scene = compose(wardrobes[part], Draws(config.seed, number, index), config.size, (low, high))
                coco.add(part, index, scene)
                ade20k.add(part, index, scene)
        coco.finish()
        ade20k.finish()
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ScenesResult(
        coco=str(out / "coco"),
        ade20k=str(out / "ade20k"),
        classes=list(classes),
        **counts,
        objects=coco.objects,
        crowds=coco.crowds,
    )


def show_scenes(result: ScenesResult, console: Console) -> None:
    """Print what :func:`scenes` did."""
    console.print(
        f"{result.train:,} training and {result.val:,} held-out scenes: {result.objects:,} objects of "
        f"{len(result.classes)} classes, {result.crowds:,} crowds\n"
        f"{result.coco}: in COCO's layout\n{result.ade20k}: in ADE20K's",
        markup=False,
        highlight=False,
    )
