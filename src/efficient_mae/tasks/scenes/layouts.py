"""Scenes as files, in the layouts of COCO (2017) and of ADE20K (the scene parsing challenge's)."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from efficient_mae.tasks.scenes.compose import Scene
from efficient_mae.tasks.scenes.outlines import box, polygons, run_lengths

# COCO's names of the two parts, and ADE20K's folders of them.
PARTS = {"train": "training", "val": "validation"}

# A part's first image of COCO's: no two of both parts have one id.
_FIRST = {"train": 1, "val": 1_000_001}
# More than there are things on a scene: the ids of a scene's things follow from its own.
_THINGS = 100
_GROUPS = {"Sandal": "footwear", "Sneaker": "footwear", "Ankle boot": "footwear", "Bag": "accessory"}
_LICENSE = {"id": 1, "name": "MIT License", "url": "https://opensource.org/license/mit"}


class CocoFolder:
    """A folder like COCO's: `train2017/`, `val2017/` and `annotations/instances_*2017.json`.

    An object's segmentation is the polygons of what is seen of it, a crowd's is an uncompressed RLE. Categories are
    numbered from 1.
    """

    def __init__(self, folder: Path, classes: tuple[str, ...]) -> None:
        self._folder, self._classes = folder, classes
        self._images: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
        self._things: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
        for part in PARTS:
            (folder / f"{part}2017").mkdir(parents=True)

    def add(self, part: str, index: int, scene: Scene) -> None:
        """Write a picture, and keep what is said of it."""
        number = _FIRST[part] + index
        name = f"{number:012d}.jpg"
        (self._folder / f"{part}2017" / name).write_bytes(_jpeg(scene.picture))
        height, width = scene.labels.shape
        image = {"license": _LICENSE["id"], "file_name": name, "coco_url": "", "height": height, "width": width}
        self._images[part].append(image | {"date_captured": "", "flickr_url": "", "id": number})
        self._things[part] += [
            {
                "segmentation": run_lengths(thing.visible) if thing.crowd else polygons(thing.visible),
                "area": int(thing.visible.sum()),
                "iscrowd": int(thing.crowd),
                "image_id": number,
                "bbox": box(thing.visible),
                "category_id": thing.label + 1,
                "id": number * _THINGS + place,
            }
            for place, thing in enumerate(scene.things)
            if thing.visible.any()
        ]

    def finish(self) -> None:
        """Write the annotations."""
        (self._folder / "annotations").mkdir()
        for part in PARTS:
            document = {
                "info": {
                    "description": "Garments of Fashion-MNIST on textured canvases",
                    "url": "",
                    "version": "1.0",
                    "year": 2017,
                    "contributor": "emae scenes",
                    "date_created": "",
                },
                "licenses": [_LICENSE],
                "images": self._images[part],
                "annotations": self._things[part],
                "categories": [
                    {"supercategory": _GROUPS.get(name, "clothing"), "id": number, "name": name}
                    for number, name in enumerate(self._classes, start=1)
                ],
            }
            file = self._folder / "annotations" / f"instances_{part}2017.json"
            file.write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")

    @property
    def crowds(self) -> int:
        """Annotations that are crowds, of both parts."""
        return sum(thing["iscrowd"] for things in self._things.values() for thing in things)

    @property
    def objects(self) -> int:
        """The others."""
        return sum(map(len, self._things.values())) - self.crowds


class Ade20kFolder:
    """A folder like ADE20K's: `images/` and `annotations/`, each of `training/` and `validation/`, and
    `objectInfo150.txt`, the classes' names.

    A label map is a grey PNG: 0 is what is none of the classes, which are numbered from 1.
    """

    def __init__(self, folder: Path, classes: tuple[str, ...]) -> None:
        self._folder, self._classes = folder, classes
        self._pixels = np.zeros(len(classes) + 1, np.int64)
        self._holding = {part: np.zeros(len(classes) + 1, np.int64) for part in PARTS}
        for kind in ("images", "annotations"):
            for name in PARTS.values():
                (folder / kind / name).mkdir(parents=True)

    def add(self, part: str, index: int, scene: Scene) -> None:
        """Write a picture and its label map."""
        name = f"ADE_{part}_{index + 1:08d}"
        (self._folder / "images" / PARTS[part] / f"{name}.jpg").write_bytes(_jpeg(scene.picture))
        Image.fromarray(scene.labels).save(self._folder / "annotations" / PARTS[part] / f"{name}.png")
        pixels = np.bincount(scene.labels.reshape(-1), minlength=len(self._pixels))
        self._pixels += pixels
        self._holding[part] += pixels > 0

    def finish(self) -> None:
        """Write the classes: number, share of all pixels, images of either part that show it, name."""
        text = "Idx\tRatio\tTrain\tVal\tName\n"
        for number, name in enumerate(self._classes, start=1):
            images = (self._holding[part][number] for part in PARTS)
            share = f"{self._pixels[number] / self._pixels.sum():.4f}"
            text += "\t".join(map(str, (number, share, *images, name))) + "\n"
        (self._folder / "objectInfo150.txt").write_text(text, encoding="utf-8")


def _jpeg(picture: UInt8[np.ndarray, "H W 3"]) -> bytes:
    written = BytesIO()
    Image.fromarray(picture).save(written, format="JPEG", quality=95)
    return written.getvalue()
