"""A run's report: one page that needs nothing beside itself."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from efficient_mae.bench.flops import Cost, model_cost
from efficient_mae.data import DataChoice, EvalTransform, normalize
from efficient_mae.data.sources.choice import ANY
from efficient_mae.engine.machine.distributed import find_device
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics, find_weights, load_snippet, load_whole, read_metadata
from efficient_mae.masking import MaskSettings
from efficient_mae.masking.schedules import NORM_MASK_RATIO
from efficient_mae.methods import Method, MethodConfig
from efficient_mae.pictures import png
from efficient_mae.report.curves import (
    cost_bars,
    data_uri,
    difficulty_figure,
    loss_curve,
    svg_data_uri,
)
from efficient_mae.report.difficulty_profile import difficulty_edges, loss_by_difficulty, patches_by_difficulty
from efficient_mae.report.page import panels_of, render
from efficient_mae.report.run_files import RunFiles, read_run
from efficient_mae.tasks.left_out import held_out_images
from efficient_mae.tasks.panels import draw_panel

# Images and random masks of each for the losses of Fig. 2: some ten thousand patches on the smallest grid.
PROFILE_IMAGES = 256
PROFILE_MASKS = 2
_BATCH = 32


@dataclass(frozen=True)
class Samples:
    """Images to look at a trained model with.

    Attributes:
        pixels: normalised images, evenly spread over the source.
        split: "test" if they are held out, "train" if the source has no such part.
    """

    pixels: Float32[Tensor, "B C h w"]
    split: str


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run directory, and return where it is.

    What the run's data is needed for is left out, and the page says so, if the data is no longer there.

    Raises:
        InputError: not a run directory, or one without weights.
        OSError: the page cannot be written.
    """
    run = read_run(Path(run_dir))
    weights = find_weights(run.folder)
    config, statistics = read_metadata(weights)
    model, samples, missing = None, None, ""
    try:
        model = load_whole(run.folder)
        samples = read_samples(str(run.settings.get("data", "")), config, statistics, ANY.alone(run.settings))
    except InputError as error:
        missing = str(error)
    if model is not None:
        model.to(find_device("cpu" if run.settings.get("device") == "cpu" else "auto"))
    page = render_report(run, config, statistics, model, samples, missing)
    replace_file(run.folder / "report.html", page.encode())
    return run.folder / "report.html"


def read_samples(data: str, config: MethodConfig, statistics: ImageStatistics, choice: DataChoice = ANY) -> Samples:
    """Up to 256 images, held-out ones if the source has them, evenly spread over it.

    Raises:
        InputError: the source cannot be opened, or none of the images can be read.
    """
    transform = EvalTransform(config.img_size, statistics.reading)
    images, split = held_out_images(data, choice, transform, PROFILE_IMAGES)
    return Samples(normalize(images, statistics.mean, statistics.std), split)


def render_report(
    run: RunFiles,
    config: MethodConfig,
    statistics: ImageStatistics,
    model: Method | None,
    samples: Samples | None,
    missing: str = "",
) -> str:
    """The page.

    Args:
        run: what the run left behind.
        config: of its model.
        statistics: by which its images are normalised.
        model: with its decoder; None leaves out what needs it.
        samples: images; None leaves out what needs them.
        missing: why there is no model or there are no samples.
    """
    try:
        plain = model_cost(config.baseline())
        cost = model_cost(config)
    except InputError:  # a grid of so few patches that MAE's ratio leaves none visible
        cost = plain = None
    return render(
        "report.html",
        run,
        config=config,
        split=samples.split if samples else None,
        missing=missing,
        tiles=list(_tiles(run, cost)),
        loss_curve=svg_data_uri(loss_curve(run.metrics)) if run.metrics else None,
        panels=_panels(run, statistics, model, samples),
        difficulty=_difficulty(config, model, samples),
        cost=cost,
        plain=plain,
        cost_bars=svg_data_uri(cost_bars(cost.gmacs, cost.mae_gmacs, "this run")) if cost else None,
        accuracies=_accuracies(run.knn),
        snippet=load_snippet(config, run.encoder) if run.encoder else None,
    )


def _tiles(run: RunFiles, cost: Cost | None) -> Iterator[tuple[str, str, str]]:
    """(heading, figure, remark) of what one wants to know first."""
    if run.metrics:
        first, last = run.metrics[0], run.metrics[-1]
        yield "Loss", f"{last['loss']:.3f}", f"from {first['loss']:.3f} at step {first['step']:,}"
        state = "finished" if run.encoder else "not finished"
        yield "Trained", f"{last['epoch']:.4g} epochs", f"{last['step']:,} steps, {state}"
        speeds = [row["images_per_second"] for row in run.metrics if "images_per_second" in row]
        waits = [row["data_wait"] for row in run.metrics if "data_wait" in row]
        if speeds and waits:
            remark = f"median; {float(np.median(waits)):.0%} of the time waiting for data"
            yield "Images a second", f"{float(np.median(speeds)):,.0f}", remark
    if run.skipped:
        remark = f"loss or gradient not finite, first at step {run.skipped[0]['step']:,}; see emae replay"
        yield "Steps skipped", f"{len(run.skipped):,}", remark
    if cost and cost.ratio != 1:
        remark = "multiply-accumulates of MAE at mask ratio 0.75"
        yield "Cost of a forward pass", f"{cost.ratio:.2f} ×", remark
    if run.knn:
        accuracy = run.knn["accuracy"]
        remark = f"untrained {accuracy['untrained']:.1%}, raw pixels {accuracy['raw_pixels']:.1%}"
        yield "k-NN accuracy", f"{accuracy['trained']:.1%}", remark


def _panels(
    run: RunFiles, statistics: ImageStatistics, model: Method | None, samples: Samples | None
) -> list[tuple[str, str]]:
    """(what it is, data URI) of the last panel and a few earlier ones, newest first; drawn now if there is none."""
    if run.panels:
        return panels_of(run)
    if model is None or samples is None:
        return []
    spread = np.unique(np.linspace(0, len(samples.pixels) - 1, 6).round().astype(int))
    images = samples.pixels[torch.from_numpy(spread)]
    plan = model.plan(len(images), generator=torch.Generator().manual_seed(0))
    figure = draw_panel(model, images, plan, statistics, title="the run's last checkpoint")
    return [] if figure is None else [("the run's last checkpoint", data_uri(png(figure), "image/png"))]


def _difficulty(config: MethodConfig, model: Method | None, samples: Samples | None) -> dict[str, Any] | None:
    """Fig. 2 and its numbers; without a model or images, its upper part alone; None where nothing is difficult."""
    if not isinstance(config, MaskSettings):
        return None
    edges = difficulty_edges(config)
    patches = {}
    if config.mask_ratio != NORM_MASK_RATIO:
        with suppress(InputError):  # on a grid of a few patches MAE's ratio leaves none visible
            mae = patches_by_difficulty(config, NORM_MASK_RATIO, edges)
            patches[f"mask ratio {NORM_MASK_RATIO} (MAE)"] = mae
    own = patches_by_difficulty(config, config.mask_ratio, edges)
    patches[f"mask ratio {config.mask_ratio:g} (this run)"] = own
    profile = None
    if model is not None and samples is not None:
        profile = loss_by_difficulty(model, samples.pixels.split(_BATCH), edges, masks=PROFILE_MASKS)
    beta = config.beta_in_pixels(config.patch_size)
    figure = difficulty_figure(edges, patches, profile, beta)
    return {"figure": svg_data_uri(figure), "profile": profile, "beta": beta}


def _accuracies(knn: dict[str, Any] | None) -> list[tuple[str, float]]:
    """(features, k-NN accuracy) in the order to show them."""
    names = {"raw_pixels": "Raw pixels", "untrained": "Untrained encoder", "trained": "This encoder"}
    return [(names[key], knn["accuracy"][key]) for key in names] if knn else []
