"""Boxes and masks of images, by a trained detector, as COCO's evaluation takes them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efficient_mae.command import Result
from efficient_mae.console import say
from efficient_mae.data import describe_images, open_source
from efficient_mae.engine.machine.distributed import find_device, resolve_precision
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.errors import InputError
from efficient_mae.tasks.detect.annotations import mask_tools
from efficient_mae.tasks.detect.data import CocoSource, coco_part
from efficient_mae.tasks.detect.evaluation import Found, find, judged_batches
from efficient_mae.tasks.detect.model import load_detector
from efficient_mae.tasks.predict_config import PredictConfig
from efficient_mae.tasks.rows import check_out

# Images at a time, at most: they are large, and so is what is found in them.
_MOST_AT_A_TIME = 8
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
    source's order. Images that cannot be read are left out and named.

    Raises:
        InputError: weights that hold no detector, no such data, an ending that isn't .json, a file that is there
            already, or no image that can be read.
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
    say(describe_images(source, reading, img_size).text)
    at_a_time = min(config.batch_size, _MOST_AT_A_TIME)
    rows, images, unreadable = [], 0, []
    for batch in judged_batches(
        source, img_size, statistics, detector.encoder.patch_size, at_a_time, config.num_workers, device
    ):
        unreadable += batch.damaged
        found = find(model, batch, statistics, precision)
        images += len(found)
        for index, one in zip(batch.indices.tolist(), found, strict=True):
            number = source.image_id(index) if isinstance(source, CocoSource) else index + 1
            rows += _rows(one, number, source.sample_name(index), detector.config.category_ids)
    if not images:
        raise InputError(f"{source.name}: none of its images can be read")
    if unreadable:
        name, reason = unreadable[0]
        say(f"left out {len(unreadable):,} images, which can't be read; the first is {name}: {reason}")
    replace_file(out, json.dumps(rows).encode())
    return ObjectsResult(
        out=str(out),
        images=images,
        objects=len(rows),
        classes=list(detector.heads.classes),
        unreadable=unreadable,
    )


def _rows(found: Found, number: int, name: str, category_ids: tuple[int, ...]) -> list[dict[str, Any]]:
    rows = []
    for box, label, score, mask in zip(
        found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), found.masks.numpy(), strict=True
    ):
        code = mask_tools().encode(np.asfortranarray(mask.astype(np.uint8)))
        rows.append(
            {
                "image_id": number,
                "category_id": category_ids[label],
                "bbox": [round(side, _DECIMALS) for side in box],
                "score": score,
                "segmentation": {"size": list(mask.shape), "counts": code["counts"].decode()},
                "file_name": name,
            }
        )
    return rows
