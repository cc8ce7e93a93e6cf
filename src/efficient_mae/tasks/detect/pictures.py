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
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision.utils import draw_segmentation_masks

from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.pictures import png
from efficient_mae.tasks.detect.evaluation import Drawn, Found

_DPI, _CELL = 130, 3.2
# Least score of an object that is drawn.
_SURE = 0.5
# A hue for each class, far from those of its neighbours: steps of the golden angle.
_GOLDEN, _FIRST = 0.381966, 0.15


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
            _show(axes, _colours(one.picture), objects, classes)
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


def _show(axes: Any, picture: UInt8[Tensor, "3 h w"], objects: Found, classes: Sequence[str]) -> None:
    labels = objects.labels.tolist()
    hues: Any = [hsv_to_rgb(((label * _GOLDEN + _FIRST) % 1, 0.8, 1)) for label in labels]
    if labels:
        shades: Any = [tuple((255 * hue).astype(np.uint8).tolist()) for hue in hues]
        picture = draw_segmentation_masks(picture, objects.masks, alpha=0.4, colors=shades)
    axes.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
    boxes, scores = objects.boxes.tolist(), objects.scores.tolist()
    for (left, top, width, height), label, score, hue in zip(boxes, labels, scores, hues, strict=True):
        corner = left - 0.5, top - 0.5  # of a pixel, whose middle is a whole number here
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=hue, linewidth=1.2))
        said = classes[label] if score == 1 else f"{classes[label]} {score:.0%}"
        ground = {"facecolor": "black", "alpha": 0.6, "pad": 1, "linewidth": 0}
        axes.text(*corner, said, color=hue, fontsize=6, va="bottom", bbox=ground, clip_on=True)
