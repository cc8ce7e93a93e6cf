"""A picture of which classes a classifier takes for which."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.pictures import png

# Beyond so many classes, names and numbers would be too small to read.
_MOST_NAMED = 30
_MOST_NUMBERED = 16
_DPI = 130


def draw_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str, path: Path) -> None:
    """Write a PNG of a confusion matrix, each row as shares of its class' images.

    Args:
        confusion: number of images by class (row) and classifier's choice (column).
        classes: their names.
        title: of the picture.
        path: of the file.
    """
    counts = np.asarray(confusion, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(10.0, 3.5 + 0.35 * len(classes))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="classified as", ylabel="is", title=title)
    if len(classes) <= _MOST_NAMED:
        short = [name if len(name) <= 16 else f"{name[:15]}…" for name in classes]
        axes.set_xticks(range(len(classes)), short, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(classes)), short)
    if len(classes) <= _MOST_NUMBERED:
        for row, column in np.ndindex(*shares.shape):
            if counts[row, column]:
                ink = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{shares[row, column]:.0%}", ha="center", va="center", color=ink, fontsize=7)
    figure.colorbar(image, ax=axes, label="share of the class' images", shrink=0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, png(figure, _DPI))
