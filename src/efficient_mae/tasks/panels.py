"""A picture of what the model sees, how hard it is, and what it makes of it.

Drawn with matplotlib's object-oriented interface alone: no global state, so that it can run inside a training
process. Letters: B images, C channels, h x w pixels, H x W patches.
"""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.interop import ImageStatistics
from efficient_mae.masking.schedules import P2DIST
from efficient_mae.masking.targets import BETA_PATCH_SIZE
from efficient_mae.methods import Method, MethodConfig, Output, Plan
from efficient_mae.methods.mae import MAEConfig, MAEOutput
from efficient_mae.pictures import png

# Rows of a panel; a longer batch is cut.
MAX_ROWS = 6
DPI = 150

# Inches; a column is never so narrow that its heading doesn't fit.
_CELL = 1.75
_NARROWEST = 1.15
_GAP = 0.09
_MARGIN = 0.16
_HEAD = 0.66
_BARS = 0.62
_LINE = 0.17
_BAR = 0.1
# Letters of the caption an inch; points of the smallest print.
_LETTERS = 17
_FINE = 7

_HIDDEN = (0.62, 0.62, 0.64)
_LEFT_OUT: dict[str, Any] = {"facecolor": "#dcdde0", "edgecolor": "#8d929b", "hatch": "//////"}
_BLANK = (0.955, 0.955, 0.96)
_INK = "#1d232b"
_SOFT_INK = "#5b6470"
# Below this many pixels an image is shown as the pixels it is, and not smoothed.
_SMALL = 112

_DIFFICULTY = "Difficulty"
_COLUMNS = ("Input", "Visible patches", _DIFFICULTY, "Reconstruction", "Loss of each patch")


@dataclass(frozen=True)
class _Cells:
    """What a panel shows, as arrays on the host; R rows.

    Attributes:
        pictures: the images, 0 to 1.
        painted: the same with their predicted patches filled in.
        mask: True = masked.
        predicted: masked patches that the decoder reconstructed.
        difficulty: of the masked patches, nan elsewhere and where it is infinite; None of a method that has none.
        loss: of the predicted patches, nan elsewhere.
    """

    pictures: Float[np.ndarray, "R h w colours"]
    painted: Float[np.ndarray, "R h w colours"]
    mask: Bool[np.ndarray, "R H W"]
    predicted: Bool[np.ndarray, "R H W"]
    difficulty: Float[np.ndarray, "R H W"] | None
    loss: Float[np.ndarray, "R H W"]


def draw_panel(
    model: Method,
    images: Float[Tensor, "B C h w"],
    plan: Plan,
    statistics: ImageStatistics,
    *,
    title: str,
    colours: tuple[int, int, int] | None = None,
    path: Path | None = None,
) -> Figure | None:
    """Input, mask, reconstruction and loss of each patch, a row an image; the first six of the batch. Of a method
    that weighs patches by their difficulty, that of each too.

    A caption says how the reconstruction was brought back to pixels, and with which masks.

    Args:
        model: used in evaluation mode, and given back in the mode that it was in.
        images: normalised images; unless `colours` says it, one channel is drawn grey, of two the first, of four and
            more the first three.
        plan: masks of these images.
        statistics: by which the images were normalised.
        title: of the figure.
        colours: channels to draw as red, green and blue, counted from 1.
        path: where to write it as PNG, whole or not at all; None writes nothing.

    Returns:
        None if the model predicts no pixels; then nothing is written.

    Raises:
        InputError: images that the model does not take.
        OSError: the picture cannot be written.
    """
    images = images.to(next(model.parameters()).device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            out = model(images, plan)
            painted = model.paint(images, out)
    finally:
        model.train(was_training)
    if painted is None:
        return None
    figure = _draw(_gather(images, painted, out, statistics, model.config, colours), model.config, title)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, png(figure, DPI))
    return figure


def _caption(config: MethodConfig, masked: float, predicted: float) -> tuple[str, ...]:
    """How predictions became pixels; and which masks and which targets, with their numbers an image."""
    rows, columns = config.grid_size
    if not isinstance(config, MAEConfig):
        return (*filter(None, [config.painted]), f"{masked:g} of {rows * columns} patches hidden an image.")
    pixels = (
        "each hidden patch is de-normalised with its own true mean and variance"
        if config.norm_pix_loss
        else "plain pixels, nothing taken from the hidden patches"
    )
    targets = config.targets_in_words()
    if config.beta is not None and config.patch_size != BETA_PATCH_SIZE:
        targets += f" ({config.beta_in_pixels(config.patch_size):g} px at this patch size)"
    return (
        f"Reconstruction: {pixels}.",
        f"Mask ratio {config.mask_ratio:g}, {targets}, gamma {config.gamma:g}: "
        f"{masked:g} of {rows * columns} patches hidden, {round(predicted, 1):g} predicted an image.",
    )


def _gather(
    images: Tensor,
    painted: Tensor,
    out: Output,
    statistics: ImageStatistics,
    config: MethodConfig,
    colours: tuple[int, int, int] | None,
) -> _Cells:
    """The first rows of the batch, as what can be drawn."""
    predicted, difficulty = out.mask, None
    if isinstance(out, MAEOutput):
        predicted = out.predicted
        difficulty = torch.where(out.mask & out.difficulty.isfinite(), out.difficulty, torch.nan)
    shown = slice(MAX_ROWS)
    drawn = list(range(3 if images.shape[1] >= 3 else 1)) if colours is None else [one - 1 for one in colours]
    scale, shift = (
        torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (statistics.std, statistics.mean)
    )

    def pixels(batch: Tensor) -> np.ndarray:
        real = (batch[shown].float() * scale + shift)[:, drawn].clamp(0, 1).permute(0, 2, 3, 1)
        # Grey as three colours: then every picture is drawn the same way.
        return real.expand(-1, -1, -1, 3).cpu().numpy()

    loss = torch.full(out.mask.shape, torch.nan, device=images.device)
    if len(out.errors) == int(predicted.sum()):  # else they are of something else than patches
        loss[predicted] = out.errors.float()
    return _Cells(
        pictures=pixels(images),
        painted=pixels(painted),
        mask=out.mask[shown].cpu().numpy(),
        predicted=predicted[shown].cpu().numpy(),
        difficulty=None if difficulty is None else difficulty[shown].cpu().numpy(),
        loss=loss[shown].cpu().numpy(),
    )


class _Sheet:
    """A figure on which things are put in inches from its lower left, so that no layout depends on its text.

    All but colour bars lies on one canvas: to make axes for each picture takes longer than to draw all of them.
    """

    def __init__(self, width: float, height: float):
        self.size = (width, height)
        self.figure = Figure(figsize=self.size, facecolor="white")
        FigureCanvasAgg(self.figure)
        self._canvas = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height), autoscale_on=False)
        self._canvas.set_axis_off()

    def text(self, left: float, bottom: float, words: str, size: float, color: str = _INK, **style: Any) -> None:
        self.figure.text(left / self.size[0], bottom / self.size[1], words, fontsize=size, color=color, **style)

    def rectangles(self, corners: Iterable[tuple[float, float]], width: float, height: float, **style: Any) -> None:
        """Of one size, by their lower left corners."""
        shapes = [Rectangle(corner, width, height) for corner in corners]
        self._canvas.add_collection(PatchCollection(shapes, linewidth=0, **style), autolim=False)

    def image(self, cell: "_Cell", pixels: np.ndarray, **style: Any) -> None:
        extent = (cell.left, cell.left + cell.width, cell.bottom, cell.bottom + cell.height)
        self._canvas.imshow(pixels, aspect="auto", extent=extent, **style)

    def colour_bar(self, colours: ScalarMappable, left: float, bottom: float, width: float, words: str) -> None:
        across, down = self.size
        place = self.figure.add_axes((left / across, bottom / down, width / across, _BAR / down))
        bar = self.figure.colorbar(colours, cax=place, orientation="horizontal", ticks=MaxNLocator(4))
        cast(Artist, bar.outline).set_visible(False)
        bar.ax.tick_params(labelsize=_FINE, length=2, pad=1.5, color=_SOFT_INK, labelcolor=_SOFT_INK)
        self.text(left + width / 2, bottom - 0.31, words, _FINE, _SOFT_INK, ha="center")


@dataclass(frozen=True)
class _Cell:
    """A place on a sheet where one image is shown, in inches."""

    sheet: _Sheet
    left: float
    bottom: float
    width: float
    height: float

    def picture(self, pixels: Float[np.ndarray, "h w colours"]) -> None:
        smooth = "nearest" if max(pixels.shape[:2]) < _SMALL else "antialiased"
        self.sheet.image(self, pixels, interpolation=smooth)

    def map(self, values: Float[np.ndarray, "H W"], colours: ScalarMappable) -> None:
        """A number a patch; nan stays blank."""
        self.sheet.rectangles([(self.left, self.bottom)], self.width, self.height, facecolor=_BLANK, zorder=-1)
        self.sheet.image(self, values, cmap=colours.cmap, norm=colours.norm, interpolation="nearest")

    def cover(self, patches: Bool[np.ndarray, "H W"], style: dict[str, Any]) -> None:
        """Cover the patches that are True."""
        down, across = self.height / patches.shape[0], self.width / patches.shape[1]
        corners = [
            (self.left + column * across, self.bottom + self.height - (row + 1) * down)
            for row, column in zip(*patches.nonzero(), strict=True)
        ]
        self.sheet.rectangles(corners, across, down, **style)


def _draw(cells: _Cells, config: MethodConfig, title: str) -> Figure:
    """The figure: a row an image, colour bars below their columns, and the caption."""
    rows, height, width = cells.pictures.shape[:3]
    metric, normalises = getattr(config, "difficulty", P2DIST[0]), getattr(config, "norm_pix_loss", False)
    across = _CELL * min(1.0, max(width / height, _NARROWEST / _CELL))
    down = across * height / width
    columns = [words for words in _COLUMNS if words != _DIFFICULTY or cells.difficulty is not None]
    lefts = [_MARGIN + column * (across + _GAP) for column in range(len(columns))]
    full_width = lefts[-1] + across + _MARGIN
    masked, predicted = (float(patches.sum(axis=(1, 2)).mean()) for patches in (cells.mask, cells.predicted))
    caption = [
        line
        for words in _caption(config, masked, predicted)
        for line in textwrap.wrap(words, width=int(full_width * _LETTERS))
    ]
    foot = _BARS + _LINE * len(caption) + _MARGIN
    sheet = _Sheet(full_width, _HEAD + rows * (down + _GAP) - _GAP + foot)

    sheet.text(_MARGIN, sheet.size[1] - 0.29, title, 11, fontweight="bold")
    for left, words in zip(lefts, columns, strict=True):
        words = "P²Dist" if words == _DIFFICULTY and metric in P2DIST else words
        sheet.text(left, sheet.size[1] - _HEAD + 0.08, words, _FINE + 1)
    difficulty = cells.difficulty
    distances = None
    if difficulty is not None:
        distances = ScalarMappable(Normalize(np.nanmin(difficulty), np.nanmax(difficulty)), "viridis")
    worst = float(np.nanmax(cells.loss)) if np.isfinite(cells.loss).any() else 1.0
    errors = ScalarMappable(Normalize(0.0, worst), "plasma")
    for row in range(rows):
        bottom = foot + (rows - 1 - row) * (down + _GAP)
        given, visible, *between, painted, losses = (_Cell(sheet, left, bottom, across, down) for left in lefts)
        given.picture(cells.pictures[row])
        visible.picture(cells.pictures[row])
        visible.cover(cells.mask[row], {"facecolor": _HIDDEN})
        if difficulty is not None and distances is not None:
            between[0].map(difficulty[row], distances)
        painted.picture(cells.painted[row])
        losses.map(cells.loss[row], errors)
        for cell in (painted, losses):
            cell.cover(cells.mask[row] & ~cells.predicted[row], _LEFT_OUT)

    under = foot - 0.18
    if distances is not None:
        sheet.colour_bar(distances, lefts[2], under, across, "" if metric == "visible_neighbours" else "pixels")
    if masked != predicted:
        sheet.rectangles([(lefts[-2], under)], 0.22, _BAR, **_LEFT_OUT)
        short = getattr(config, "beta", None) is None or across < _CELL
        why = "left out" if short else "beyond beta: left out"
        sheet.text(lefts[-2] + 0.28, under, why, _FINE, _SOFT_INK)
    normalised = " (normalised)" if normalises and across == _CELL else ""
    sheet.colour_bar(errors, lefts[-1], under, across, config.measured + normalised)
    for line, words in enumerate(reversed(caption)):
        sheet.text(_MARGIN, _MARGIN + line * _LINE, words, 7.5, _SOFT_INK)
    return sheet.figure
