"""The report's figures, and how a figure becomes part of a page.

Drawn with matplotlib's object-oriented interface alone, on white, so that they read the same on a dark page.
"""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from efficient_mae.errors import InputError
from efficient_mae.pictures import svg
from efficient_mae.report.difficulty_profile import DifficultyProfile

_INK = "#1d232b"
_SOFT_INK = "#5b6470"
_GREY = "#a3abb8"
_BLUE = "#2458d3"
_ORANGE = "#e0700c"
_WIDTH = 7.6

# Points of a curve that can still be told apart at the width of a page.
_MOST_POINTS = 1500
# A mean over fewer patches would be drawn as firmly as the others and mean nothing.
_FEWEST_PATCHES = 50


def loss_curve(rows: Sequence[dict[str, Any]]) -> Figure:
    """Loss and learning rate against epochs.

    Args:
        rows: of metrics.jsonl, one or more, with `epoch`, `loss` and `lr`.

    Raises:
        InputError: no row.
    """
    if not rows:
        raise InputError("no logged step to draw a loss curve of")
    epoch, loss, lr = (np.array([float(row[name]) for row in rows]) for name in ("epoch", "loss", "lr"))
    shown = np.unique(np.linspace(0, len(rows) - 1, _MOST_POINTS).round().astype(int))
    figure, (above, below) = _figure(3.9, 2, height_ratios=[3, 1])
    marker = "o" if len(rows) == 1 else None
    smooth = _moving_average(loss, max(1, len(rows) // 40))
    if len(rows) >= 40:
        above.plot(epoch[shown], loss[shown], color=_BLUE, alpha=0.3, linewidth=0.9, label="logged")
        above.plot(epoch[shown], smooth[shown], color=_BLUE, linewidth=1.8, label="moving average")
        above.legend(frameon=False, fontsize=8, labelcolor=_SOFT_INK)
    else:
        above.plot(epoch, loss, color=_BLUE, linewidth=1.8, marker=marker)
    below.plot(epoch[shown], lr[shown], color=_SOFT_INK, linewidth=1.4, marker=marker)
    above.set_ylabel("loss", color=_SOFT_INK)
    below.set_ylabel("learning rate", color=_SOFT_INK)
    below.set_xlabel("epoch", color=_SOFT_INK)
    below.set_ylim(0, max(1.1 * float(np.nanmax(lr)), 1e-12))
    below.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    below.yaxis.get_offset_text().set(fontsize=8, color=_SOFT_INK)
    above.tick_params(labelbottom=False)
    for ax in (above, below):
        ax.set_xlim(0, max(float(epoch.max()) * 1.01, 1e-6))
    figure.align_ylabels()
    return figure


def difficulty_figure(
    edges: Float[np.ndarray, " edges"],
    patches: dict[str, Float[np.ndarray, " bins"]],
    profile: DifficultyProfile | None,
    beta: float | None,
) -> Figure:
    """The paper's Fig. 2: how many masked patches are how hard, and below it what the model loses on them.

    Args:
        edges: bounds of the bins of P2Dist, pixels.
        patches: masked patches of an image in each bin, by the label to give them: MAE's and then the
            run's, or the run's alone.
        profile: the losses, binned alike; None leaves the lower part out.
        beta: P2Dist beyond which patches are not predicted in training, pixels; None draws no line.
    """
    figure, axes = _figure(3.0 if profile is None else 5.4, 1 if profile is None else 2)
    centres, width = (edges[:-1] + edges[1:]) / 2, edges[1] - edges[0]
    bar = 0.84 * width / len(patches)
    for number, (label, counts) in enumerate(patches.items(), start=1):
        shift = (number - (len(patches) + 1) / 2) * bar
        color = _BLUE if number == len(patches) else _GREY
        axes[0].bar(centres + shift, counts, 0.95 * bar, color=color, label=label)
    axes[0].set_ylabel("masked patches an image", color=_SOFT_INK)
    if profile is not None:
        enough = profile.counts >= _FEWEST_PATCHES
        for values, color, label in (
            (profile.loss, _BLUE, "as it is"),
            (profile.weighted_loss, _ORANGE, "with the factor d$^{-γ}$ (mean 1)"),
        ):
            drawn = np.where(enough, values, np.nan)
            axes[1].plot(centres, drawn, color=color, linewidth=1.8, marker="o", markersize=4, label=label)
        axes[1].set_ylim(bottom=0)
        axes[1].set_ylabel("mean loss of a patch", color=_SOFT_INK)
        axes[0].tick_params(labelbottom=False)
    for number, ax in enumerate(axes):
        ax.set_xlim(edges[0] - 0.3 * width, edges[-1] + 0.3 * width)
        if beta is not None and edges[0] < beta < edges[-1]:
            label = None if number else f"beta, {beta:g} px"
            ax.axvline(beta, color=_INK, linewidth=1, linestyle=(0, (4, 3)), label=label)
        ax.legend(frameon=False, fontsize=8, labelcolor=_SOFT_INK)
    axes[-1].set_xlabel("P²Dist, pixels", color=_SOFT_INK)
    figure.align_ylabels()
    return figure


def cost_bars(gmacs: float, mae_gmacs: float, label: str) -> Figure:
    """Multiply-accumulates of a forward pass beside those of MAE at mask ratio 0.75.

    Args:
        gmacs: of this model, 1e9 for each image.
        mae_gmacs: of MAE.
        label: of this model's bar.
    """
    figure, (ax,) = _figure(1.5, 1)
    values = (mae_gmacs, gmacs)
    ax.barh(("MAE, mask ratio 0.75", label), values, 0.62, color=(_GREY, _BLUE))
    for row, value in enumerate(values):
        share = "" if row == 0 else f"  ({value / mae_gmacs:.0%})"
        ax.text(value + 0.012 * max(values), row, f"{value:.3g}{share}", va="center", fontsize=9, color=_INK)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.16 * max(values))
    ax.set_xlabel("GMACs of one image's forward pass", color=_SOFT_INK)
    ax.grid(False)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0, labelsize=9, labelcolor=_INK)
    return figure


def words_figure(counts: Sequence[int]) -> Figure:
    """How often each word of a vocabulary occurs.

    Args:
        counts: of the words that occur, the most frequent first.
    """
    figure, (ax,) = _figure(2.2, 1)
    shares = np.array(counts) / sum(counts)
    ax.plot(
        np.arange(1, len(shares) + 1), shares, color=_BLUE, linewidth=1.8, marker="o" if len(shares) == 1 else None
    )
    ax.set_yscale("log")
    ax.set_xlim(left=0)
    ax.set_xlabel("words in use, the most frequent first", color=_SOFT_INK)
    ax.set_ylabel("share of the tokens", color=_SOFT_INK)
    return figure


def svg_data_uri(figure: Figure) -> str:
    """The figure as an SVG image that a page holds in itself."""
    return data_uri(svg(figure), "image/svg+xml")


def data_uri(content: bytes, media_type: str) -> str:
    """A file as an address that holds the file itself."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def _figure(height: float, rows: int, height_ratios: Sequence[float] | None = None) -> tuple[Figure, list[Axes]]:
    """A figure of the page's width, inches, with plain axes one below the other."""
    figure = Figure(figsize=(_WIDTH, height), facecolor="white", layout="constrained")
    FigureCanvasSVG(figure)
    grid = figure.add_gridspec(rows, 1, height_ratios=height_ratios)
    axes = [figure.add_subplot(grid[row]) for row in range(rows)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color("#c9ced6")
        ax.grid(axis="y", color="#eceef2")
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=8, color="#c9ced6", labelcolor=_SOFT_INK)
        ax.xaxis.label.set_fontsize(9)
        ax.yaxis.label.set_fontsize(9)
    return figure, axes


def _moving_average(values: Float[np.ndarray, " rows"], reach: int) -> Float[np.ndarray, " rows"]:
    """Mean of each value and of its neighbours up to `reach` on either side; towards the ends, of as few as fit."""
    sums = np.cumsum(np.pad(values, (1, 0)))
    rows = np.arange(len(values))
    # The same number on either side, or the steep first steps would drag the curve's beginning down.
    fitting = np.minimum(reach, np.minimum(rows, len(values) - 1 - rows))
    return (sums[rows + fitting + 1] - sums[rows - fitting]) / (2 * fitting + 1)
