"""What rows and whole studies cost, counted before anything is run."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from efficient_mae.backbones.patches import as_pair
from efficient_mae.bench.flops import count_gmacs, encoder_gmacs
from efficient_mae.engine.machine.step_memory import hollow
from efficient_mae.methods import MethodConfig
from efficient_mae.methods.tokenizer import DiscreteVAE, DiscreteVAEConfig
from efficient_mae.study.cells import CELLS, Cell
from efficient_mae.study.presets import PRESETS, Preset, pretrained_config, recipe_settings
from efficient_mae.study.transfer import FOLDERS, PUBLISHED_IMAGES
from efficient_mae.tasks.detect.model import Detector, DetectorConfig
from efficient_mae.tasks.segment.model import UPerNet, UPerNetConfig
from efficient_mae.tasks.tokenizer import TokenizerConfig

# FLOPs of a training step for each multiply-accumulate of its forward pass: two, and the backward pass is two more.
_TRAINING = 6
# What small transformers reach of the speed of one large matrix product, and seconds that a run takes besides its
# training (start, pictures, report): set by the cpu preset on 2 busy cores, where 4 minutes were foretold and taken.
_EFFICIENCY = 0.35
_OVERHEAD = 20.0
# Classes of what is segmented or detected, which hardly cost anything, and images whose proposals are a whole number.
_CLASSES, _IMAGES = 10, 4


def paper_config(cell: Cell) -> MethodConfig:
    """The paper's own model with the settings of a cell."""
    return pretrained_config({**recipe_settings(cell.recipe), **cell.settings})


def predicted_patches(config: MethodConfig, images: int = 500) -> float:
    """Patches that the decoder predicts, mean over random masks."""
    rows, columns = config.grid_size
    noise = torch.rand(images, rows * columns, generator=torch.Generator().manual_seed(0))
    return config.tokens(config.planner()(noise))["predicted_patches"]


def training_flops(preset: Preset, cell: Cell, images: int, judges: Collection[str] = ()) -> float:
    """FLOPs of a run of a cell: pre-training and, if it is judged so, fine-tuning, segmentation and detection, the
    most that judges take.

    Args:
        images: in the training data.
        judges: commands that judge it.
    """
    lasting = cell if cell.as_long_as is None else CELLS[cell.as_long_as]
    whole, epochs = _gmacs(preset.name, cell.name)[1], preset.pretraining(lasting)["epochs"]
    gmacs = forward_gmacs(preset, lasting) * images * epochs if cell.pretrained else 0.0
    if "finetune" in judges:
        gmacs += whole * min(preset.labels or images, images) * preset.settings("finetune", cell)["epochs"]
    for judge in FOLDERS.keys() & set(judges):
        seen = PUBLISHED_IMAGES[judge] if preset.is_paper else images
        gmacs += _transfer_gmacs(preset.name, cell.name, judge) * seen * preset.settings(judge, cell)["epochs"]
    return _TRAINING * 1e9 * gmacs


def forward_gmacs(preset: Preset, cell: Cell) -> float:
    """Multiply-accumulates (1e9) of a forward pass of a cell's model, for an image of its pre-training: with those of
    the tokenizer that is made for it, as the paper counts BEiT's."""
    return _gmacs(preset.name, cell.name)[0]


@cache
def _gmacs(preset: str, cell: str) -> tuple[float, float]:
    """Of a cell's model: of a forward pass in pre-training, and of its encoder over a whole image."""
    chosen, one = PRESETS[preset], CELLS[cell]
    config, words = pretrained_config(chosen.pretraining(one)), 0.0
    if "tokenizer" in one.made and (settings := chosen.settings("tokenizer", one)):
        shape = DiscreteVAEConfig.of(TokenizerConfig(data="", out="", **settings))
        with torch.device("meta"):
            words = DiscreteVAE(shape).gmacs(config.grid_size)
        config = replace(config, vocab_size=shape.vocab_size)
    return count_gmacs(config) + words, encoder_gmacs(config)


@cache
def _transfer_gmacs(preset: str, cell: str, judge: str) -> float:
    """Of a training image of what segments or detects, with the encoder of a cell."""
    chosen, one = PRESETS[preset], CELLS[cell]
    settings = chosen.settings(judge, one)
    # Windows adapt a detector's encoder to larger images by themselves.
    resized = {"img_size": settings["img_size"]} if judge == "segment" else {}
    config = pretrained_config({**chosen.pretraining(one), **resized})
    side, arguments = as_pair(settings["img_size"]), list[Any]()
    with torch.device("meta"):
        if judge == "segment":
            heads = UPerNetConfig(settings["head_width"], settings["aux_width"])
            model: nn.Module = UPerNet(config.make_backbone(), _CLASSES, heads)
        else:
            shape = (settings[name] for name in ("window_size", "global_blocks", "width", "proposals"))
            model, arguments = Detector(config.make_backbone(), _CLASSES, DetectorConfig(side, *shape)), [[], []]
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter, torch.no_grad():
        images = torch.zeros(_IMAGES, config.in_chans, *side)
        hollow(model, torch.device("cpu")).eval()(images, *arguments)
    return counter.get_total_flops() / 2e9 / _IMAGES


def estimated_seconds(flops: Sequence[float], stages: int, speed: float, jobs: int) -> float:
    """Seconds of runs with so many FLOPs each, so many at a time.

    Args:
        flops: of each run.
        stages: processes of each.
        speed: FLOPs a second, from :func:`efficient_mae.study.listing.measure_speed`.
        jobs: runs at a time; they share the device, but not the time in which it waits for them.
    """
    return sum(flops) / (speed * _EFFICIENCY) + len(flops) * stages * _OVERHEAD / jobs
