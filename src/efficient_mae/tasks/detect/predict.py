"""Boxes and masks of images, by a trained detector, as COCO's evaluation takes them."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efficient_mae.command import Result
from efficient_mae.console import say
from efficient_mae.data import Source, Subset, describe_images, open_source
from efficient_mae.engine.machine.distributed import find_device, resolve_precision
from efficient_mae.engine.storage.durable import append_synced, whole_lines
from efficient_mae.errors import InputError
from efficient_mae.tasks.detect.annotations import mask_tools
from efficient_mae.tasks.detect.data import CocoSource, coco_part
from efficient_mae.tasks.detect.evaluation import MOST_AT_A_TIME, Found, find, judged_batches
from efficient_mae.tasks.detect.model import load_detector
from efficient_mae.tasks.embed import work_settings
from efficient_mae.tasks.left_out import say_left_out
from efficient_mae.tasks.predict_config import PredictConfig
from efficient_mae.tasks.rows import RowWork, check_out

# Decimals of boxes, in pixels.
_DECIMALS = 3


@dataclass(frozen=True, kw_only=True)
class ObjectsResult(Result):
    """What was written.

    Attributes:
        out: the file.
        images: that were looked at.
        objects: that were found in them.
        classes: names, in the order of their labels.
        unreadable: images that were left out, each with the reason.
    """

    out: str
    images: int
    objects: int
    classes: list[str]
    unreadable: list[Any]


def predict_objects(config: PredictConfig) -> ObjectsResult:
    """Write what is found in images as JSON, in the layout of COCO's results, and each image's `file_name` besides.

    Images of a folder in COCO's layout have the numbers of its instances file; others are numbered from 1, in the
    source's order. Killed and called again it goes on, and the file is the same to the bit. Images that cannot be
    read are left out and named.

    Raises:
        InputError: weights that hold no detector, no such data, an ending that isn't .json, a file that is there
            already or was begun with other settings, or no image that can be read.
    """
    out = Path(config.out or "predictions.json")
    check_out(out)
    if out.suffix != ".json":
        raise InputError(f"out={out}: boxes and masks are written as JSON; must end in .json")
    mask_tools()  # or it is refused
    detector = load_detector(config.weights)
    source = coco_part(config.data, config.part) or open_source(config.data, config.part, config.alone())
    device = find_device(config.device)
    precision = resolve_precision(config.precision, device)
    reading = config.reading(source, detector.encoder.in_chans, detector.statistics.reading)
    statistics = detector.statistics.read_by(reading)
    img_size, model = detector.config.img_size, detector.model.to(device)
    work = RowWork(out, work_settings(config, detector.model, source, precision))
    say(describe_images(source, reading, img_size).text)
    log = _Log(work.batches)
    if first := log.images:
        say(f"{out}: going on after {first:,} of {len(source):,} images")
    at_a_time, rest = min(config.batch_size, MOST_AT_A_TIME), Subset(source, np.arange(first, len(source)))
    batches = judged_batches(
        rest, img_size, statistics, detector.encoder.patch_size, at_a_time, config.num_workers, device
    )
    for batch in batches if len(rest) else ():
        found = find(model, batch, statistics, precision)
        objects = [
            (first + place, row)
            for place, one in zip(batch.indices.tolist(), found, strict=True)
            for row in _rows(one, detector.config.category_ids)
        ]
        log.add(min(log.images + at_a_time, len(source)), objects, batch.damaged)
    images = log.images - len(log.unreadable)
    if not images:
        work.remove()  # once they are mended, they are read anew
        raise InputError(f"{source.name}: none of its images can be read")
    say_left_out(log.unreadable, len(source))
    _write(work.folder / out.name, log, source)
    work.finish(work.folder / out.name)
    return ObjectsResult(
        out=str(out),
        images=images,
        objects=log.count,
        classes=list(detector.heads.classes),
        unreadable=log.unreadable,
    )


class _Log:
    """The objects so far: a line for each batch, which counts when all of it is on the disk.

    Attributes:
        images: of the source, that are done.
        count: of the objects.
        unreadable: (name, reason) of each image that cannot be read, in order.
    """

    def __init__(self, file: Path):
        self._file = file
        self.images, self.count, self.unreadable = 0, 0, list[tuple[str, str]]()
        file.touch()
        size = 0
        for line in whole_lines(file):
            self._count(**json.loads(line))
            size += len(line)
        os.truncate(file, size)

    def _count(self, images: int, objects: list[Any], unreadable: list[Any]) -> None:
        self.images, self.count = images, self.count + len(objects)
        self.unreadable += [(name, reason) for name, reason in unreadable]

    def add(self, images: int, objects: list[tuple[int, dict[str, Any]]], unreadable: list[tuple[str, str]]) -> None:
        """A batch, after which so many images of the source are done; of each object its image, from 0."""
        line = {"images": images, "objects": objects, "unreadable": unreadable}
        append_synced(self._file, json.dumps(line).encode() + b"\n")
        self._count(**line)

    def objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Image, from 0, and the rest of each object."""
        for line in whole_lines(self._file):
            yield from json.loads(line)["objects"]


def _write(file: Path, log: _Log, source: Source) -> None:
    """One object after another: those of many images would fill the memory."""
    with file.open("w") as stream:
        stream.write("[")
        for place, (image, row) in enumerate(log.objects()):
            number = source.image_id(image) if isinstance(source, CocoSource) else image + 1
            whole = {"image_id": number, **row, "file_name": source.sample_name(image)}
            stream.write(", " * (place > 0) + json.dumps(whole))
        stream.write("]")


def _rows(found: Found, category_ids: tuple[int, ...]) -> list[dict[str, Any]]:
    rows = []
    for box, label, score, mask in zip(
        found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), found.masks.numpy(), strict=True
    ):
        code = mask_tools().encode(np.asfortranarray(mask.astype(np.uint8)))
        rows.append(
            {
                "category_id": category_ids[label],
                "bbox": [round(side, _DECIMALS) for side in box],
                "score": score,
                "segmentation": {"size": list(mask.shape), "counts": code["counts"].decode()},
            }
        )
    return rows
