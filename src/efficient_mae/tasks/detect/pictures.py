"""Pictures of detection: held-out images with the objects that are there, and those that are found."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.pictures import png
from efficient_mae.tasks.detect.evaluation import Drawn, Found

_DPI, _CELL = 130, 3.2
# Least score of an object that is drawn.
_SURE = 0.5
# A hue for each class, far from those of its neighbours: steps of the golden angle.
_GOLDEN = 0.381966


def draw_found(drawn: Sequence[Drawn], classes: Sequence[str], title: str, path: Path) -> None:
    """Write a PNG, a row an image: what is there, and what is found with a score of a half at least.

    Args:
        drawn: the images.
        classes: names, by label.
        title: of the picture.
        path: of the file.
    """
    figure = Figure(figsize=(2 * _CELL + 0.5, _CELL * max(1, len(drawn)) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(max(1, len(drawn)), 2, squeeze=False)
    for row, one in zip(grid, drawn):
        sure = one.found.scores >= _SURE
        there = Found(
            torch.from_numpy(one.there.boxes),
            torch.from_numpy(one.there.labels),
            torch.ones(len(one.there.labels)),
            torch.from_numpy(one.there.masks()).bool(),
        )
        found = Found(
            *(part[sure] for part in (one.found.boxes, one.found.labels, one.found.scores, one.found.masks))
        )
        for axes, objects in zip(row, (there, found), strict=True):
            axes.imshow(_with_objects(_colours(one.picture), objects, classes).permute(1, 2, 0).numpy())
        row[0].set_ylabel("\n".join(textwrap.wrap(Path(one.name).name, 22)), fontsize=7)
    for axes, heading in zip(grid[0], ("there", "found"), strict=True):
        axes.set_title(heading, fontsize=9)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    figure.suptitle(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, png(figure, _DPI))


def _colours(picture: Shaped[Tensor, "C h w"]) -> UInt8[Tensor, "3 h w"]:
    pixels = (255 * picture).round().to(torch.uint8) if picture.is_floating_point() else picture
    return pixels[:3] if len(pixels) > 2 else pixels[:1].expand(3, -1, -1)


def _with_objects(picture: UInt8[Tensor, "3 h w"], objects: Found, classes: Sequence[str]) -> UInt8[Tensor, "3 h w"]:
    if not len(objects.labels):
        return picture
    labels = objects.labels.tolist()
    hues: Any = [
        tuple((255 * hsv_to_rgb((label * _GOLDEN % 1, 0.9, 1))).astype(np.uint8).tolist()) for label in labels
    ]
    scores = [f" {score:.0%}" if score < 1 else "" for score in objects.scores.tolist()]
    names = [f"{classes[label]}{score}" for label, score in zip(labels, scores, strict=True)]
    masked = draw_segmentation_masks(picture, objects.masks, alpha=0.4, colors=hues)
    return draw_bounding_boxes(masked, box_convert(objects.boxes, "xywh", "xyxy"), labels=names, colors=hues)
