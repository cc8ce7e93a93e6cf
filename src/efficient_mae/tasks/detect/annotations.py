"""COCO's instances files: read at once, checked, and kept so that many processes can share them.

n objects of an image of h x w pixels.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from efficient_mae.console import printable
from efficient_mae.data.sources.names import PackedNames
from efficient_mae.engine.storage.plain_files import parse_json
from efficient_mae.errors import InputError

# Numbers of a polygon of three points.
_SMALLEST_POLYGON = 6
# Times an image's width or height at which a point of a polygon may lie; beyond, it is of no such image.
_FARTHEST = 10


def mask_tools() -> Any:
    """COCO's run-length codes, as pycocotools' `mask` has them.

    Raises:
        InputError: the library is missing.
    """
    try:
        from faster_coco_eval.core import mask
    except ModuleNotFoundError:
        raise InputError("boxes and masks need faster-coco-eval: pip install 'efficient-mae[detect]'") from None
    return mask


@dataclass(frozen=True)
class Objects:
    """What is annotated in an image.

    Attributes:
        size: (h, w) of the image, as the file says.
        boxes: left, top, width and height in pixels.
        labels: numbers of their classes, from 0.
        crowd: whether it is a group, of which nobody knows how many it is.
        areas: in pixels; 0 where the file says none.
        segmentations: polygons, or a run-length code.
    """

    size: tuple[int, int]
    boxes: Float64[np.ndarray, "n 4"]
    labels: Int64[np.ndarray, " n"]
    crowd: Bool[np.ndarray, " n"]
    areas: Float64[np.ndarray, " n"]
    segmentations: list[Any]

    def masks(self) -> UInt8[np.ndarray, "n h w"]:
        """1 where an object is."""
        decoded = [decode_mask(one, self.size) for one in self.segmentations]
        return np.stack(decoded) if decoded else np.zeros((0, *self.size), np.uint8)

    def alone(self) -> "Objects":
        """Without groups."""
        kept = np.flatnonzero(~self.crowd)
        return Objects(
            self.size,
            self.boxes[kept],
            self.labels[kept],
            self.crowd[kept],
            self.areas[kept],
            [self.segmentations[number] for number in kept],
        )


def decode_mask(segmentation: Any, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Polygons or a run-length code as pixels."""
    mask = mask_tools()
    coded = segmentation
    if not (isinstance(segmentation, dict) and isinstance(segmentation["counts"], str)):
        coded = mask.frPyObjects(segmentation, *size)
    return mask.decode(mask.merge(coded) if isinstance(coded, list) else coded)


class Annotations:
    """What an instances file holds, its images in the order of their numbers.

    Attributes:
        file: it is read from.
        categories: name by number, in the order of the file.
        ids: the images' numbers in the file.
        names: their files' names.
        left_out: number of annotations that can't be used, by what is wrong with them, and the first of each.
    """

    def __init__(self, file: Path, categories: dict[int, str], images: list[dict[str, Any]]):
        self.file, self.categories = file, categories
        self.ids = np.array([one["id"] for one in images], dtype=np.int64)
        self.names = PackedNames(one["file_name"].encode("utf-8", "surrogateescape") for one in images)
        self._sizes = np.array([(one["height"], one["width"]) for one in images], dtype=np.int64).reshape(-1, 2)
        self.left_out: dict[str, tuple[int, int]] = {}

    def set_objects(self, objects: list[tuple[int, dict[str, Any]]]) -> None:
        """
        Args:
            objects: image, from 0, and annotation of each.
        """
        objects.sort(key=lambda pair: pair[0])  # stable: of an image, in the order of the file
        label_of = {number: label for label, number in enumerate(self.categories)}
        held = [one for _, one in objects]
        self._ends = np.searchsorted([image for image, _ in objects], np.arange(len(self.ids)), side="right")
        self._boxes = np.array([one["bbox"] for one in held], dtype=np.float64).reshape(-1, 4)
        self._labels = np.array([label_of[one["category_id"]] for one in held], dtype=np.int64)
        self._crowd = np.array([bool(one.get("iscrowd")) for one in held], dtype=bool)
        self._areas = np.array([one.get("area") or 0 for one in held], dtype=np.float64)
        self._segmentations = PackedNames(json.dumps(one["segmentation"]).encode() for one in held)

    def __len__(self) -> int:
        return len(self.ids)

    def size(self, image: int) -> tuple[int, int]:
        """(height, width) in pixels of an image, from 0."""
        height, width = self._sizes[image].tolist()
        return height, width

    def objects(self, image: int) -> Objects:
        """What is annotated in an image, from 0."""
        part = self._part(image)
        return Objects(
            self.size(image),
            self._boxes[part],
            self._labels[part],
            self._crowd[part],
            self._areas[part],
            [json.loads(self._segmentations[number]) for number in range(part.start, part.stop)],
        )

    def teaches(self, image: int) -> bool:
        """Whether there is an object in it that is no group."""
        return not self._crowd[self._part(image)].all()

    def _part(self, image: int) -> slice:
        return slice(int(self._ends[image - 1]) if image else 0, int(self._ends[image]))

    def summary(self) -> str:
        """What was left out, on one line; empty where nothing was."""
        parts = [f"{count} {why}, the first {first}" for why, (count, first) in self.left_out.items()]
        count = sum(count for count, _ in self.left_out.values())
        return f"{self.file}: left out {count} annotations: {'; '.join(parts)}" if parts else ""


def read_annotations(file: Path) -> Annotations:
    """An instances file. Annotations that say nothing of where an object is are left out, and counted.

    Raises:
        InputError: no such file, JSON that is cut short or holds something else, numbers that aren't alone, or an
            annotation of an image or a category that isn't listed, or of an image of another size.
    """
    try:
        content = parse_json(file.read_bytes(), str(file))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; COCO's layout has instances_*.json there") from None
    categories = dict(_numbered(file, content, "categories", {"name": str}))
    images = dict(_numbered(file, content, "images", {"file_name": str, "height": int, "width": int}))
    annotated = dict(_numbered(file, content, "annotations", {"image_id": int, "category_id": int, "bbox": list}))
    if not categories or not images:
        raise InputError(f"{file}: lists no {'images' if categories else 'categories'}")
    if len(names := Counter(one["name"] for one in categories.values())) < len(categories):
        raise InputError(f"{file}: two categories are called {names.most_common(1)[0][0]!r}; rename one")
    for number, one in images.items():
        path = PurePosixPath(one["file_name"])
        if path.is_absolute() or ".." in path.parts or "\0" in one["file_name"]:
            where = printable(one["file_name"])
            raise InputError(f"{file}: image {number}: file_name {where!r} leads out of the folder of images")
        if min(one["height"], one["width"]) < 1:
            raise InputError(f"{file}: image {number}: is {one['width']} x {one['height']} pixels")
    ordered = sorted(images)
    read = Annotations(
        file, {number: one["name"] for number, one in categories.items()}, [images[n] for n in ordered]
    )
    places = {number: place for place, number in enumerate(ordered)}
    objects, wrong, first = [], Counter[str](), dict[str, int]()
    for number, one in annotated.items():
        where = f"{file}: annotation {number}"
        if one["image_id"] not in images:
            raise InputError(f"{where}: is of image {one['image_id']}, which isn't listed; remove it, or list that")
        if one["category_id"] not in categories:
            raise InputError(f"{where}: is of category {one['category_id']}, which isn't listed; list it")
        image = images[one["image_id"]]
        why = _unusable(one, image["height"], image["width"], where)
        if why:
            wrong[why] += 1
            first.setdefault(why, number)
        else:
            objects.append((places[one["image_id"]], one))
    read.set_objects(objects)
    read.left_out = {why: (count, first[why]) for why, count in wrong.items()}
    return read


def _numbered(file: Path, content: Any, name: str, fields: dict[str, type]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Entries of a list, by their `id`.

    Raises:
        InputError: no list, an entry that lacks a field or has it of another type, or two of one number.
    """
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise InputError(f"{file}: has no list of {name}; give a file in the layout of COCO's instances_*.json")
    seen = set[int]()
    for place, one in enumerate(entries):
        for field, kind in {"id": int, **fields}.items():
            if not isinstance(one, dict) or type(one.get(field)) is not kind:
                raise InputError(f"{file}: entry {place} of {name} has no {field} that is {_KINDS[kind]}")
        if one["id"] in seen:
            raise InputError(f"{file}: two {name} have the id {one['id']}; give each its own")
        seen.add(one["id"])
        yield one["id"], one


_KINDS = {int: "a whole number", str: "a text", list: "a list"}


def _unusable(one: dict[str, Any], height: int, width: int, where: str) -> str:
    """Why an annotation is left out; empty if it isn't.

    Raises:
        InputError: it is of an image of another size, or can't be understood.
    """
    if not (len(one["bbox"]) == 4 and all(map(_is_number, one["bbox"]))):
        raise InputError(f"{where}: bbox must be four numbers: left, top, width, height")
    if not _is_number(one.get("area") or 0):
        raise InputError(f"{where}: area={one['area']!r}: must be a number")
    left, top, wide, high = one["bbox"]
    if not (wide > 0 and high > 0):
        return "of an empty or negative box"
    if left >= width or top >= height or left + wide <= 0 or top + high <= 0:
        return "of a box outside the image"
    segmentation = one.get("segmentation")
    if not segmentation:
        return "without a mask"
    if isinstance(segmentation, dict):
        _check_code(segmentation, height, width, where)
        return ""
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise InputError(f"{where}: segmentation must be polygons or a run-length code")
    if not all(_is_number(number) for polygon in segmentation for number in polygon):
        raise InputError(f"{where}: a polygon holds something else than numbers")
    whole = [polygon for polygon in segmentation if len(polygon) >= _SMALLEST_POLYGON and len(polygon) % 2 == 0]
    if not whole:
        return "of polygons of less than three points"
    one["segmentation"] = [polygon for polygon in whole if _is_within(polygon, height, width)]
    return "" if one["segmentation"] else "of polygons outside the image"


def _check_code(code: dict[str, Any], height: int, width: int, where: str) -> None:
    """Raise InputError unless a run-length code is of an image of this size."""
    counts = code.get("counts")
    if code.get("size") != [height, width]:
        raise InputError(
            f"{where}: its run-length code is of an image of {code.get('size')}, and the image is "
            f"[{height}, {width}] (height, width)"
        )
    if isinstance(counts, str):
        try:
            mask_tools().decode(code)
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{where}: its run-length code is none of [{height}, {width}] (height, width) pixels: {reason}"
            ) from None
        return
    if not (isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)):
        raise InputError(f"{where}: counts of a run-length code must be a text, or numbers of pixels")
    if sum(counts) != height * width:
        raise InputError(
            f"{where}: its run-length code is of {sum(counts)} pixels, and the image has {height * width}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_within(polygon: list[float], height: int, width: int) -> bool:
    x, y = polygon[::2], polygon[1::2]
    seen = max(x) > 0 and max(y) > 0 and min(x) < width and min(y) < height
    # To fill a polygon takes memory by its length: a point of 1e12 would take all.
    return seen and max(map(abs, x)) <= _FARTHEST * width and max(map(abs, y)) <= _FARTHEST * height
