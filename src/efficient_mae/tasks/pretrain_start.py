"""What a pre-training run starts from: random weights, or trained ones."""

from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import torch

from efficient_mae.console import say
from efficient_mae.data import Source
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine.storage.checkpoint import find_checkpoints, load_optimizer
from efficient_mae.engine.storage.run_directory import read_settings
from efficient_mae.errors import InputError
from efficient_mae.interop import (
    ImageStatistics,
    Start,
    Trained,
    adapt_statistics,
    find_optimizer,
    read_trained,
    start_from,
)
from efficient_mae.methods import Method
from efficient_mae.ranges import with_tuples
from efficient_mae.tasks.pretrain_config import PretrainConfig, build_model, resolve


def build_start(
    config: PretrainConfig, source: Source, device: torch.device
) -> tuple[PretrainConfig, Method, Start | None]:
    """The settings, settled; the model that a run of them starts with, and where its weights are from.

    That is None where all are random, and where those that the run began with can't be read any more: one that has
    a checkpoint doesn't need them, but to be replayed from its beginning.

    Raises:
        InputError: a setting that cannot work, or unusable weights.
    """
    begun = bool(find_checkpoints(Path(config.out) / "checkpoints"))
    trained = start = None
    with suppress(InputError) if begun else nullcontext():
        trained = None if config.weights is None else read_trained(config.weights)
    resolved = resolve(config, source, device, _statistics(config, trained, begun))
    with torch_seeded(resolved.seed):
        model = build_model(resolved)
    with suppress(InputError) if begun else nullcontext():
        if trained is not None:
            start = start_from(model, trained, str(config.weights), config.channels)
    if config.resume_optimizer and not begun:
        find_optimizer(str(config.weights))
    return resolved, model, start


def _statistics(config: PretrainConfig, trained: Trained | None, begun: bool) -> ImageStatistics | None:
    """Of the weights' images; of a run that is resumed they are settled. None where it starts from none."""
    if begun and config.weights is not None:
        recorded = with_tuples(read_settings(Path(config.out)).settings)
        reading = {"value_range": recorded.get("value_range"), "bands": recorded.get("bands")}
        return replace(ImageStatistics(recorded["mean"], recorded["std"]), **reading)
    if trained is None:
        return None
    adapted = adapt_statistics(trained.statistics, config.in_chans, config.channels)
    same = len(trained.statistics.mean) == config.in_chans
    return adapted if same else replace(adapted, value_range=None, bands=None)


def begin_with(
    config: PretrainConfig, start: Start | None, model: Method, optimizer: torch.optim.Optimizer, is_main: bool
) -> None:
    """Say where the weights of a run that begins are from, and load the optimiser's state if that was asked for.

    Raises:
        InputError: they couldn't be read.
    """
    if config.weights is None:
        return
    if start is None:
        raise InputError(f"weights={config.weights}: can't be read any more, and the run begins with them")
    moments = ""
    if config.resume_optimizer:
        load_optimizer(find_optimizer(config.weights), model, optimizer, start.taken)
        moments = f"; the optimiser's state of {len(optimizer.state)} tensors"
    if is_main:
        say(f"starting from {config.weights}: {start.text}{moments}")
