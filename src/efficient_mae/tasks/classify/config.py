"""Settings that fine-tuning and linear probing share, and the encoder that they start from."""

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

import torch

from efficient_mae.backbones import Backbone
from efficient_mae.data import default_mean_std
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine import settings
from efficient_mae.engine.settings import RunConfig, settle
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics, adapt_encoder, adapt_statistics, load, load_statistics
from efficient_mae.methods import method_of
from efficient_mae.ranges import Location, Pixels, PositiveInt, Seed, Share

# Settings that may differ when a run is resumed: none of them changes what is learned.
OPERATIONAL = (*settings.OPERATIONAL, "grad_checkpointing", "eval_every")

_DEFAULT_MODEL = "mae_vit_base_patch16"


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(RunConfig):
    """Settings of a run that learns to classify images."""

    data: Location
    """labelled images: folder with train/ and val/, hf:NAME_OR_PATH, wds:PATTERN, or fashion-mnist-sample"""
    val_data: Location | None = None
    """held-out images elsewhere (null: the held-out part of the data)"""
    weights: Location | None = None
    """trained encoder: run directory, checkpoint, export, timm:NAME (in the local cache), folder of timm's or
    transformers', .safetensors or .pth; or else --from scratch"""
    from_scratch: bool = False
    """start from random weights of `model` instead of trained ones; --from scratch says the same"""
    model: str | None = None
    """from scratch: mae_vit_{tiny,small,base,large,huge}_patch{P} (null: mae_vit_base_patch16)"""
    depth: PositiveInt | None = None
    """from scratch: encoder blocks (null: the model's)"""
    img_size: Pixels | None = None
    """pixels, one number or [height, width] (null: what the encoder was trained with; from scratch 224)"""
    in_chans: PositiveInt | None = None
    """channels that images are converted to (null: what the encoder was trained with; from scratch 3)"""
    channels: str | None = None
    """what becomes of the weights if in_chans changes: mean, repeat or first (see emae export)"""
    crop_scale: tuple[Share, Share] = (0.08, 1.0)
    """share of the image's area that a random crop covers, from and to"""
    hflip: bool = True
    """flip every other image horizontally"""
    eval_every: PositiveInt = 5
    """epochs between two evaluations on the held-out images; the last epoch ends with one too"""
    seed: Seed = 0
    """of the head's weights, order, crops and all that is random"""
    seeds: PositiveInt = 1
    """runs with successive seeds, in seed-0, seed-1, ... of the run directory; their mean and 95 % interval"""


Config = TypeVar("Config", bound=ClassifierConfig)


def resolve(config: Config, num_samples: int, device: torch.device, usual_warmup: float) -> Config:
    """Settle what depends on the data and the machine.

    Raises:
        InputError: a setting that cannot work.
    """
    return dataclasses.replace(config, **settle(config, num_samples, device, usual_warmup))


def check_start(config: ClassifierConfig) -> None:
    """Raise InputError unless the settings say, once, what to start from."""
    if config.from_scratch == (config.weights is not None):
        raise InputError("give either --weights PATH or --from scratch: one of the two says what to start from")
    for name in () if config.from_scratch else ("model", "depth"):
        if getattr(config, name) is not None:
            raise InputError(
                f"{name}={getattr(config, name)}: only with --from scratch; weights={config.weights} say it"
            )
    if config.from_scratch and config.channels is not None:
        raise InputError(f"channels={config.channels}: only with --weights; random weights take any channels")


def starting_encoder(config: ClassifierConfig) -> tuple[Backbone, ImageStatistics]:
    """The encoder that training starts from, and how its images are normalised.

    Raises:
        InputError: unusable weights, an unknown model, or an image size that doesn't fit.
    """
    check_start(config)
    if config.weights is not None:
        trained, statistics = load(config.weights), load_statistics(config.weights)
        encoder = adapt_encoder(trained, config.img_size, in_chans=config.in_chans, channels=config.channels)
        return encoder, adapt_statistics(statistics, encoder.in_chans, config.channels)
    chosen = {name: getattr(config, name) for name in ("img_size", "in_chans", "depth")}
    name = config.model or _DEFAULT_MODEL
    method = method_of(name)
    settings = method.Settings(**{name: value for name, value in chosen.items() if value is not None})
    with torch_seeded(config.seed):
        encoder = method.Config.resolve(name, settings).make_backbone()
    return encoder, ImageStatistics(*default_mean_std(encoder.in_chans))
