"""Small images of shapes, in COCO's layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

# Numbers as COCO's, with gaps.
CATEGORIES = [{"id": 3, "name": "square"}, {"id": 7, "name": "disc"}]
COLOURS = np.array([(220, 60, 50), (60, 90, 230)])
SIDE = 64


def draw(rng: np.random.Generator, height: int = SIDE, width: int = SIDE) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """An image of one or two shapes on noise, and their annotations: squares as polygons, discs as codes."""
    image = rng.integers(90, 160, (height, width, 3)).astype(np.uint8)
    y, x = np.mgrid[:height, :width]
    objects = []
    for _ in range(int(rng.integers(1, 3))):
        kind, side = int(rng.integers(2)), int(rng.integers(14, 30))
        left, top = int(rng.integers(width - side)), int(rng.integers(height - side))
        if kind == 0:
            inside = (x >= left) & (x < left + side) & (y >= top) & (y < top + side)
            ends = left + side, top + side
            segmentation: Any = [[left, top, ends[0], top, ends[0], ends[1], left, ends[1]]]
        else:
            inside = (2 * x + 1 - 2 * left - side) ** 2 + (2 * y + 1 - 2 * top - side) ** 2 <= side**2
            code = coco_mask.encode(np.asfortranarray(inside.astype(np.uint8)))
            segmentation = {"size": [height, width], "counts": code["counts"].decode()}
        image[inside] = COLOURS[kind] + rng.integers(-20, 20, (int(inside.sum()), 3))
        objects.append(
            {
                "category_id": CATEGORIES[kind]["id"],
                "bbox": [left, top, side, side],
                "area": int(inside.sum()),
                "iscrowd": 0,
                "segmentation": segmentation,
            }
        )
    return image, objects


def write_coco(folder: Path, train: int = 16, val: int = 8, seed: int = 0) -> Path:
    """A folder in COCO's layout. The first held-out image shows nothing, the second a group besides."""
    rng = np.random.default_rng(seed)
    for part, count in (("train2017", train), ("val2017", val)):
        (folder / part).mkdir(parents=True)
        images, annotations = [], []
        for number in range(count):
            size = (SIDE, SIDE) if number % 2 else (SIDE, 3 * SIDE // 4)
            image, objects = draw(rng, *size)
            name = f"{number:06d}.png"
            Image.fromarray(image).save(folder / part / name)
            images.append({"id": 100 + number, "file_name": name, "height": size[0], "width": size[1]})
            if part == "val2017" and number == 0:
                objects = []
            if part == "val2017" and number == 1:
                group = {"size": list(size), "counts": [0, 10 * size[0], (size[1] - 10) * size[0]]}
                one = {"category_id": 3, "bbox": [0, 0, 10, size[0]], "area": 10 * size[0], "iscrowd": 1}
                objects.append({**one, "segmentation": group})
            annotations += [{"id": 0, "image_id": 100 + number, **one} for one in objects]
        for number, one in enumerate(annotations, 1):
            one["id"] = number
        write_json(folder, part, {"images": images, "annotations": annotations, "categories": CATEGORIES})
    return folder


def write_json(folder: Path, part: str, content: dict[str, Any]) -> None:
    """A part's instances file."""
    file = folder / "annotations" / f"instances_{part}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen images to learn from, eight held out."""
    return write_coco(tmp_path_factory.mktemp("coco") / "shapes")


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """A folder of few images, the file of those to learn from changed."""

    def make(change: Callable[[dict[str, Any]], None]) -> Path:
        folder = write_coco(tmp_path / "data", train=4, val=2)
        file = folder / "annotations" / "instances_train2017.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
        return folder

    return make
