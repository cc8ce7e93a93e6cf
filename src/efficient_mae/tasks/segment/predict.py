"""Label maps of images, by a trained UPerNet."""

import json
import os
from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL import Image

from efficient_mae.command import Result
from efficient_mae.console import say
from efficient_mae.data import Source, open_source
from efficient_mae.data.batches.loader import load_in_order
from efficient_mae.engine.machine.distributed import find_device, resolve_precision
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.engine.storage.lock import locked
from efficient_mae.engine.storage.plain_files import parse_json
from efficient_mae.errors import InputError
from efficient_mae.tasks.embed import work_settings
from efficient_mae.tasks.left_out import say_left_out
from efficient_mae.tasks.predict_config import PredictConfig
from efficient_mae.tasks.segment.batches import WholeDataset
from efficient_mae.tasks.segment.data import images_of
from efficient_mae.tasks.segment.model import load_segmenter
from efficient_mae.tasks.segment.pictures import palette
from efficient_mae.tasks.segment.sliding import Sliding

# In the folder of label maps: what they follow from.
_SETTINGS = "predict.json"


@dataclass(frozen=True, kw_only=True)
class LabelMapsResult(Result):
    """What was written.

    Attributes:
        out: the folder.
        images: label maps in it.
        classes: names, in the order of their numbers.
        first_label: number of the first class.
        unreadable: images that were left out, each with the reason.
    """

    out: str
    images: int
    classes: list[str]
    first_label: int
    unreadable: list[Any]


def predict_label_maps(config: PredictConfig) -> LabelMapsResult:
    """Write a PNG for each image, of the image's own size, whose number at a pixel is its class; it has colours too.

    Killed and called again it goes on. Images that cannot be read are left out and named.

    Raises:
        InputError: weights that hold no UPerNet, no such data, a folder of something else or that another process is
            at work in, or no image that can be read.
    """
    out = Path(config.out or "predictions")
    segmenter = load_segmenter(config.weights)
    how, statistics, names = segmenter.config, segmenter.statistics, segmenter.heads.classes
    source = images_of(config.data, config.part) or open_source(config.data, config.part, config.alone())
    device = find_device(config.device)
    precision = resolve_precision(config.precision, device)
    reading = config.reading(source, segmenter.encoder.in_chans, statistics.reading)
    _claim(out, work_settings(config, segmenter.model, source, precision))
    with locked(out, out):
        files = map_files(source, out)
        todo = np.array([index for index, file in enumerate(files) if not file.exists()], np.int64)
        if done := len(files) - len(todo):
            say(f"{out}: going on after {done:,} of {len(files):,} images")
        img_size, model = segmenter.encoder.img_size, segmenter.model.to(device)
        sliding = Sliding(img_size, statistics, how.stride, how.flip_test, config.batch_size, precision, device)
        dataset = WholeDataset(source, img_size, reading, None, how.scales, segmenter.encoder.patch_size, todo)
        unreadable: list[tuple[str, str]] = []
        for batch in load_in_order(dataset, 1, config.num_workers) if len(todo) else ():
            unreadable += batch.damaged
            for index, whole in zip(batch.indices.tolist(), batch.whole, strict=True):
                found = sliding.classes(model.segment, whole.pixels, whole.size).numpy().astype(np.int64)
                files[index].parent.mkdir(parents=True, exist_ok=True)
                replace_file(files[index], _png(found + how.first_label, len(names) + how.first_label))
    if len(unreadable) == len(files):
        raise InputError(f"{source.name}: none of its images can be read")
    say_left_out(unreadable, len(files))
    return LabelMapsResult(
        out=str(out),
        images=len(files) - len(unreadable),
        classes=list(names),
        first_label=how.first_label,
        unreadable=unreadable,
    )


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Make the folder that of label maps by these settings, or find that it is; raises InputError of another."""
    file = out / _SETTINGS
    if out.exists() and not out.is_dir():
        raise InputError(f"out={out}: is a file; name a folder for the label maps")
    if not file.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise InputError(f"out={out}: holds something else; name a new folder for the label maps")
        out.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps(settings).encode())
    theirs = parse_json(file.read_bytes(), str(file))
    for name, value in json.loads(json.dumps(settings)).items():
        if not isinstance(theirs, dict) or theirs.get(name) != value:
            there = theirs.get(name) if isinstance(theirs, dict) else None
            raise InputError(f"out={out}: was begun otherwise: {name} {there!r} there, {value!r} here; name another")


def map_files(source: Source, out: Path) -> list[Path]:
    """Where an image's label map is written: under its name below the folder that holds all images, with .png.

    What lies in no folder of files is numbered. Where two images would share a name, the endings stay in it.
    """
    names = [source.sample_name(index) for index in range(len(source))]
    if not all(Path(name).is_file() for name in names):
        return [out / f"{index:08d}.png" for index in range(len(names))]
    root = os.path.commonpath([str(Path(name).parent) for name in names])
    below = [Path(os.path.relpath(name, root)) for name in names]
    short = [name.with_suffix(".png") for name in below]
    long = [name.with_name(f"{name.name}.png") for name in below]
    count = Counter(short)
    return [out / (one if count[one] == 1 else other) for one, other in zip(short, long, strict=True)]


def _png(numbers: Int64[np.ndarray, "h w"], labels: int) -> bytes:
    """A label map with colours, or grey of 16 bits where there are too many classes for a palette."""
    file = BytesIO()
    if labels > 256:
        Image.fromarray(numbers.astype(np.uint16)).save(file, format="PNG")
        return file.getvalue()
    picture = Image.fromarray(numbers.astype(np.uint8))
    picture.putpalette(palette(256).tobytes())
    picture.save(file, format="PNG")
    return file.getvalue()
