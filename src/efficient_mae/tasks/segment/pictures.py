"""Pictures of segmentation: held-out images beside their label maps and what is made of them."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int16, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.pictures import png
from efficient_mae.tasks.segment.data import NOTHING
from efficient_mae.tasks.segment.evaluation import Drawn

_DPI = 130
_CELL = 2.4
# Classes that a legend names, the most frequent.
_MOST_NAMED = 24
_NOTHING_COLOUR = (40, 40, 40)


def palette(number: int) -> UInt8[np.ndarray, "K 3"]:
    """So many colours, those of the PASCAL VOC challenge: each bit of a number lights a bit of a colour."""
    numbers = np.arange(1, number + 1)
    colours = np.zeros((number, 3), np.int64)
    for place in range(8):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> (3 * place + channel)) & 1) << (7 - place)
    return colours.astype(np.uint8)


def draw_predictions(drawn: Sequence[Drawn], classes: Sequence[str], title: str, path: Path) -> None:
    """Write a PNG, a row an image: the image, its label map, and the classes that were found.

    Args:
        drawn: the images.
        classes: names, by number.
        title: of the picture.
        path: of the file.
    """
    colours = palette(len(classes))
    figure = Figure(figsize=(3 * _CELL + 2.2, 0.75 * _CELL * max(1, len(drawn)) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(max(1, len(drawn)), 3, squeeze=False)
    for row, one in zip(grid, drawn):
        shown = (np.broadcast_to(one.picture, (*one.picture.shape[:2], 3)), *_coloured(one, colours))
        for axes, picture in zip(row, shown, strict=True):
            axes.imshow(picture, interpolation="nearest")
        row[0].set_ylabel("\n".join(textwrap.wrap(Path(one.name).name, 22)), fontsize=7)
    for axes, heading in zip(grid[0], ("image", "label map", "found"), strict=True):
        axes.set_title(heading, fontsize=9)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    counts = np.zeros(len(classes), np.int64)
    for one in drawn:
        for part in (one.truth, one.found):
            counts += np.bincount(part[part != NOTHING], minlength=len(classes))
    named = sorted(number for number in np.argsort(-counts, kind="stable")[:_MOST_NAMED] if counts[number])
    handles = [
        Patch(color=_colour(colours[number]), label=textwrap.shorten(classes[int(number)], 24)) for number in named
    ]
    if any((one.truth == NOTHING).any() for one in drawn):
        handles.append(Patch(color=_colour(_NOTHING_COLOUR), label="no class"))
    figure.legend(handles=handles, loc="outside right upper", fontsize=7, frameon=False)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, png(figure, _DPI))


def _coloured(one: Drawn, colours: UInt8[np.ndarray, "K 3"]) -> list[UInt8[np.ndarray, "h w 3"]]:
    return [_in_colours(part, colours) for part in (one.truth, one.found)]


def _in_colours(numbers: Int16[np.ndarray, "h w"], colours: UInt8[np.ndarray, "K 3"]) -> UInt8[np.ndarray, "h w 3"]:
    with_nothing = np.concatenate([colours, np.array([_NOTHING_COLOUR], np.uint8)])
    return with_nothing[numbers]  # -1 is the last


def _colour(channels: Sequence[int] | np.ndarray) -> tuple[float, float, float]:
    red, green, blue = (int(channel) / 255 for channel in channels)
    return red, green, blue
