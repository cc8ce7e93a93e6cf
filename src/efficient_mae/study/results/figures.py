"""Fig. 2, 3 and 4: what a mask ratio does to the difficulty of patches, and a trained model to patches of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efficient_mae.data import EvalTransform, PretrainTransform, Source, normalize, open_held_out, spread
from efficient_mae.data.batches.order import sample_rng
from efficient_mae.data.sources.choice import ANY
from efficient_mae.interop import find_run_settings, load_statistics, load_whole
from efficient_mae.masking import p2dist, random_masking
from efficient_mae.report.difficulty_profile import difficulty_edges, loss_by_difficulty, patches_by_difficulty
from efficient_mae.study.cells import CELLS
from efficient_mae.study.presets import Preset, pretrained_config
from efficient_mae.study.results.collect import summary
from efficient_mae.study.results.plots import draw_difficulties, draw_masks
from efficient_mae.tasks.panels import draw_panel

# The factor that Fig. 2 draws for a model that was trained without it.
GAMMA = 0.6
_IMAGES, _MASKS, _BATCH, _BINS = 500, 4, 100, 8
_FEWEST_PATCHES = 50
_PANEL_IMAGES = 6
_EXAMPLES = 6


def figure_2(
    rows: list[dict[str, Any]], preset: Preset, out: Path, data: str, title: str, path: Path
) -> dict[str, Any]:
    """Draw count and loss of masked patches against P2Dist; add the slopes to the rows.

    Held-out images are cropped as those of pre-training were: a preset may zoom in. Losses are those of a model
    trained without the factor, with it and without, its mean brought to 1.

    Args:
        rows: of MAE at several mask ratios, with the seeds that are measured.
        out: directory that holds the cells.
        data: that they were trained on.

    Returns:
        `edges` (pixels) and, by row, `counts` (an image), `loss` and `weighted_loss` (means over the seeds).
    """
    hardest = max(rows, key=lambda row: row["settings"]["mask_ratio"])
    edges = difficulty_edges(pretrained_config(preset.pretraining(CELLS[hardest["cell"]])), bins=_BINS)
    counts, losses, weighted = {}, {}, {}
    for row in rows:
        cell = CELLS[row["cell"]]
        config: Any = pretrained_config(preset.pretraining(cell))
        counts[row["label"]] = patches_by_difficulty(config, config.mask_ratio, edges)
        folder = out / "cells" / preset.directory(cell)
        profiles = [
            _profile(folder / f"seed-{seed}" / "pretrain", preset.pretraining(cell), data, edges)
            for seed in row["measured"].get("seeds", ())
        ]
        if not profiles:
            continue
        row["measured"] |= {
            "slope": summary([profile.slope for profile in profiles]),
            "weighted_slope": summary([profile.weighted_slope for profile in profiles]),
        }
        enough = np.min([profile.counts for profile in profiles], axis=0) >= _FEWEST_PATCHES
        for kept, values in (
            (losses, [profile.loss for profile in profiles]),
            (weighted, [profile.weighted_loss for profile in profiles]),
        ):
            kept[row["label"]] = np.where(enough, np.mean(values, axis=0), np.nan)
    draw_difficulties(edges, counts, losses, weighted, title, path)
    by_row = {"counts": counts, "loss": losses, "weighted_loss": weighted}
    return {"gamma": GAMMA, "edges": edges.tolist()} | {
        name: {label: _plain(values) for label, values in found.items()} for name, found in by_row.items()
    }


def _plain(values: np.ndarray) -> list[float | None]:
    """Numbers that JSON has; it has no nan."""
    return [None if np.isnan(value) else round(float(value), 6) for value in values]


def _profile(run: Path, settings: dict[str, Any], data: str, edges: np.ndarray):
    model = load_whole(run)
    scale = settings.get("crop_scale", (0.2, 1.0))
    statistics = load_statistics(run)
    transform = PretrainTransform(model.config.img_size, statistics.reading, scale=scale)
    source = spread(_held_out(run, data), _IMAGES)
    pixels = torch.cat([transform.crops(source.open(i), [sample_rng(0, 0, i, "crop")]) for i in range(len(source))])
    images = normalize(pixels, statistics.mean, statistics.std)
    return loss_by_difficulty(model, images.split(_BATCH), edges, masks=_MASKS, gamma=GAMMA)


def figure_3(run: Path, data: str, title: str, path: Path) -> None:
    """Draw the loss of each patch of a few held-out images.

    Args:
        run: directory of a pre-training.
    """
    model, statistics = load_whole(run), load_statistics(run)
    source = spread(_held_out(run, data), _PANEL_IMAGES)
    transform = EvalTransform(model.config.img_size, statistics.reading)
    pixels = torch.stack([transform(source.open(index)) for index in range(len(source))])
    images = normalize(pixels, statistics.mean, statistics.std)
    layout = model.plan(len(images), generator=torch.Generator().manual_seed(0))
    draw_panel(model, images, layout, statistics, title=title, path=path)


def _held_out(run: Path, data: str) -> Source:
    """What is held out of a run's data, as they were chosen from for the run."""
    return open_held_out(data, ANY.alone(find_run_settings(run)))[0]


def figure_4(preset: Preset, title: str, path: Path) -> list[dict[str, Any]]:
    """Draw masks with patches from easy to hard marked in them.

    Returns:
        For each, its `p2dist` (pixels) and the patch's `row` and `column`.
    """
    config: Any = pretrained_config(preset.pretraining(CELLS["efficient-mae-0.85"]))
    mask = random_masking(200, config.grid_size, config.mask_ratio, torch.Generator().manual_seed(0))
    difficulty = torch.where(mask, p2dist(mask, config.patch_size, config.k), torch.nan).numpy()
    wanted = np.linspace(np.nanmin(difficulty), np.nanquantile(difficulty, 0.999), _EXAMPLES)
    found = [np.unravel_index(np.nanargmin(abs(difficulty - value)), difficulty.shape) for value in wanted]
    places: Sequence[tuple[int, int]] = [(int(row), int(column)) for _, row, column in found]
    distances = [float(difficulty[place]) for place in found]
    draw_masks(mask.numpy()[[image for image, _, _ in found]], places, distances, title, path)
    return [
        {"p2dist": distance, "row": row, "column": column}
        for distance, (row, column) in zip(distances, places, strict=True)
    ]
