"""The studies' pictures; drawn with matplotlib's object-oriented interface alone, on white."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.pictures import png
from efficient_mae.study.transfer import FIGURES

_BLUE, _ORANGE, _GREY, _INK = "#2458d3", "#e0700c", "#a3abb8", "#5b6470"
_SERIES = (_BLUE, _ORANGE, "#2a8f5b", "#8a4fc7")
_MASKED = "#7f9fe6"


def draw_accuracies(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Accuracies of each row with their 95 % intervals, what each is better by than the first with its own, and the
    paper's beside them, each on an axis of its own. Rows that have none of these, of cells not run, are left out."""
    rows = [row for row in rows if row["measured"] or "top1" in row["paper"]] or rows
    measured = {
        "probe": "ridge here",
        "top1": "top-1 here",
        "linear_probe": "linear probe here",
        "knn": "k-NN here, grey: untrained",
    }
    shown = [name for name in measured if any(name in row["measured"] for row in rows)] or ["probe"]
    compared = any("low" in row.get("difference", {}) for row in rows)
    published = any("top1" in row["paper"] for row in rows)
    parts = len(shown) + compared + published
    figure, axes = _figure(2.6 + 2.7 * max(2, parts), 0.9 + 0.32 * len(rows), parts, sharey=True)
    for ax, name in zip(axes, shown, strict=False):
        ax.set_xlabel(f"{measured[name]}, % (95 %)")
        for figures, color in ((name, _BLUE), (f"{name}_untrained", _GREY)):
            for number, row in enumerate(rows):
                if score := row["measured"].get(figures):
                    half = 100 * score.get("half_width", 0.0)
                    at = 100 * score["mean"]
                    ax.errorbar(at, number, xerr=half, fmt="o", color=color, capsize=3, markersize=5)
    if compared:
        axes[len(shown)].axvline(0.0, color=_GREY, linewidth=1)
        axes[len(shown)].set_xlabel("less the first row, points (95 %)")
        for number, row in enumerate(rows):
            if "low" in (gain := row.get("difference", {})):
                ends = [[100 * (gain["mean"] - gain["low"])], [100 * (gain["high"] - gain["mean"])]]
                at = 100 * gain["mean"]
                axes[len(shown)].errorbar(at, number, xerr=ends, fmt="o", color=_BLUE, capsize=3, markersize=5)
    for number, row in enumerate(rows):
        if "top1" in row["paper"]:
            axes[-1].plot(row["paper"]["top1"], number, "D", color=_GREY, markersize=5)
    if published:
        axes[-1].set_xlabel("top-1 in the paper (ImageNet-1k), %")
    axes[0].set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    _save(figure, title, path)


def draw_transfer(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Table 10: figures of each row with their 95 % intervals, and the paper's as numbers: other data and models."""
    figure, axes = _figure(2.8 * len(FIGURES), 0.9 + 0.4 * len(rows), len(FIGURES), sharey=True)
    for ax, (name, heading) in zip(axes, FIGURES.items(), strict=True):
        for number, row in enumerate(rows):
            if score := row["measured"].get(name):
                half = 100 * score.get("half_width", 0.0)
                ax.errorbar(100 * score["mean"], number, xerr=half, fmt="o", color=_BLUE, capsize=3, markersize=5)
            if name in row["paper"]:
                at, said = ax.get_yaxis_transform(), f"{row['paper'][name]:.1f}"
                ax.text(0.99, number - 0.08, said, color=_GREY, fontsize=8, ha="right", va="bottom", transform=at)
        ax.set_xlabel(f"{heading} here, %; grey: in the paper")
    axes[0].set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    _save(figure, title, path)


def draw_by_ratio(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Fig. 1: accuracy against mask ratio here and in the paper, and GFLOPs of the paper's model."""
    figure, (here, paper, cost) = _figure(9.6, 3.2, 3)
    for color, method in zip((_GREY, _BLUE), ("MAE", "Efficient MAE"), strict=True):
        chosen = [row for row in rows if row["label"].startswith(method)]
        measured = [row for row in chosen if {"probe", "top1"} & row["measured"].keys()]
        scores = [row["measured"].get("probe") or row["measured"]["top1"] for row in measured]
        halves = [100 * score.get("half_width", 0.0) for score in scores]
        means = [100 * score["mean"] for score in scores]
        here.errorbar(_ratios(measured), means, yerr=halves, fmt="o-", color=color, capsize=3, label=method)
        published = [row for row in chosen if "top1" in row["paper"]]
        paper.plot(_ratios(published), [row["paper"]["top1"] for row in published], "D-", color=color, label=method)
        cost.plot(_ratios(chosen), [row["computed"]["gflops"] for row in chosen], "o-", color=color, label=method)
    headings = ("top-1 here, %", "top-1 in the paper (ImageNet-1k), %", "GFLOPs, ViT-L/16, counted")
    for ax, heading in zip((here, paper, cost), headings, strict=True):
        ax.set_xlabel("mask ratio")
        ax.set_ylabel(heading)
        ax.legend(frameon=False, fontsize=8)
    _save(figure, title, path)


def _ratios(rows: Sequence[dict[str, Any]]) -> list[float]:
    return [row["settings"]["mask_ratio"] for row in rows]


def draw_costs(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Table 1: GFLOPs against mask ratio, counted here and in the paper."""
    figure, (ax,) = _figure(5.4, 3.2, 1)
    ax.plot(_ratios(rows), [row["computed"]["gflops"] for row in rows], "o-", color=_BLUE, label="counted")
    ax.plot(_ratios(rows), [row["paper"]["gflops"] for row in rows], "D", color=_GREY, label="paper", markersize=4)
    ax.set_xlabel("mask ratio")
    ax.set_ylabel("GFLOPs")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=8)
    _save(figure, title, path)


def draw_difficulties(
    edges: Float[np.ndarray, " edges"],
    counts: dict[str, Float[np.ndarray, " bins"]],
    losses: dict[str, Float[np.ndarray, " bins"]],
    weighted: dict[str, Float[np.ndarray, " bins"]],
    title: str,
    path: Path,
) -> None:
    """Fig. 2: patches an image and their mean losses against P2Dist.

    Args:
        edges: bounds of the bins, pixels.
        counts: masked patches of an image in each bin, by label.
        losses: mean losses by the same labels, nan where there are too few patches.
        weighted: the same with the factor d ** -gamma, whose mean is 1.
    """
    figure, (above, below) = _figure(7.6, 5.4, 2, rows=True)
    centres, width = (edges[:-1] + edges[1:]) / 2, edges[1] - edges[0]
    for number, (label, color) in enumerate(zip(counts, _SERIES, strict=False)):
        shift = (number - (len(counts) - 1) / 2) * 0.84 * width / len(counts)
        above.bar(centres + shift, counts[label], 0.8 * width / len(counts), color=color, label=label)
        if label in losses:
            below.plot(centres, losses[label], "o-", color=color, markersize=4, label=f"{label}, as it is")
            below.plot(centres, weighted[label], "o--", color=color, markersize=4, label=f"{label}, with d$^{{-γ}}$")
    above.set_ylabel("masked patches an image")
    below.set_ylabel("mean loss of a patch")
    below.set_xlabel("P²Dist, pixels")
    below.set_ylim(bottom=0)
    above.legend(frameon=False, fontsize=8)
    # Below the axis: lines may run anywhere.
    below.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    _save(figure, title, path)


def draw_masks(
    masks: Bool[np.ndarray, "E H W"],
    chosen: Sequence[tuple[int, int]],
    distances: Sequence[float],
    title: str,
    path: Path,
) -> None:
    """Fig. 4: masks, each with a patch marked whose P2Dist stands above it; masked patches are blue."""
    figure, axes = _figure(1.6 * len(masks), 2.1, len(masks))
    for ax, mask, (row, column), distance in zip(axes, masks, chosen, distances, strict=True):
        ax.imshow(mask, cmap=_mask_colours(), vmin=0, vmax=1)
        ax.plot(column, row, "+", color="black", markersize=8, markeredgewidth=2)
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.set_title(f"{distance:.1f} px", fontsize=9)
    _save(figure, title, path)


def _mask_colours():
    from matplotlib.colors import ListedColormap

    return ListedColormap(["#f4f5f7", _MASKED])


def _figure(width: float, height: float, parts: int, *, rows: bool = False, sharey: bool = False):
    """A figure with so many plain axes in a row, or one below the other."""
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    shape = (parts, 1) if rows else (1, parts)
    axes: list[Axes] = list(figure.subplots(*shape, sharex=rows, sharey=sharey, squeeze=False).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#eceef2")
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=8, colors=_INK)
        ax.xaxis.label.set_fontsize(9)
        ax.yaxis.label.set_fontsize(9)
    return figure, axes


def _save(figure: Figure, title: str, path: Path) -> None:
    figure.suptitle(title, fontsize=10)
    replace_file(path, png(figure))
