"""Settings of `emae pretrain`, and how they are settled for given data on a given machine."""

import dataclasses
from dataclasses import dataclass, fields
from functools import cache
from types import new_class
from typing import Any, Literal, cast

import torch

from efficient_mae.data import Reading, Source, default_mean_std
from efficient_mae.data.images.decode import MODES
from efficient_mae.data.images.reading import MAX_MEGAPIXELS
from efficient_mae.data.sources.measure import measure_statistics
from efficient_mae.engine import settings
from efficient_mae.engine.settings import RunConfig, settle
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics
from efficient_mae.methods import Method, MethodSettings, method_of
from efficient_mae.ranges import (
    Epochs,
    Finite,
    Location,
    NonNegative,
    Positive,
    PositiveInt,
    Ratio,
    Seed,
    Share,
    Switch,
)

# Settings that may differ when a run is resumed: none of them changes what is learned.
OPERATIONAL = (*settings.OPERATIONAL, "grad_checkpointing", "cuda_graphs", "panel_every", "show_bands", "knn_every")

# Epochs of warm-up, where none are given and the run is long enough.
USUAL_WARMUP = 40.0


@dataclass(frozen=True, kw_only=True)
class ModelChoice(MethodSettings):
    """Settings of a command that makes a model: which one, and those of its method.

    Called, a class of these makes an instance of what :meth:`of` gives for the model, as `Path` makes a `PosixPath`.
    """

    _declared = cast(Any, None)  # of a class that `of` made: what it was made of (no annotation: it is no field)

    model: str = "mae_vit_base_patch16"
    """{method}_vit_{tiny,small,base,large,huge}_patch{P}; methods that take a Swin:
    {method}_{swin,swinv2}_{tiny,small,base,large,huge}_window{W}"""

    @classmethod
    def of(cls, model: str) -> Any:
        """This class with the settings of a model's method.

        Raises:
            InputError: the name is of no method's model.
        """
        return _with_method(cls._declared or cls, method_of(model))

    def __new__(cls, model: str | None = None, **_: Any) -> Any:
        made = cls.of(cls.model if model is None else model)
        if cls._declared is not None and made is not cls:
            raise InputError(f"model={model}: of another method than the other settings are for")
        return super().__new__(made)

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, (self._declared, {one.name: getattr(self, one.name) for one in fields(self)})


@cache
def _with_method(settings: type[ModelChoice], method: type[Method]) -> Any:
    taken = {one.name for one in fields(settings)} - {one.name for one in fields(MethodSettings)}
    if both := taken & {one.name for one in fields(method.Settings)}:
        raise ValueError(f"{method.__name__}: its settings {sorted(both)} have the names of a command's")
    own = {"__doc__": settings.__doc__, "_declared": settings}
    bases = (settings,) if issubclass(settings, method.Settings) else (method.Settings, settings)
    made = new_class(settings.__name__, bases, exec_body=lambda names: names.update(own))
    return dataclass(frozen=True, kw_only=True)(made)


def _make(settings: type[ModelChoice], values: dict[str, Any]) -> ModelChoice:
    return settings(**values)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(ModelChoice, RunConfig):
    """Settings of a pre-training run, by any method; the defaults are the paper's where it has one (Sec. 5.1)."""

    weights: Location | None = None
    """start from trained weights: run directory, checkpoint, export, timm:NAME (in the local cache), a folder of
    timm's (also local-dir:FOLDER) or transformers' (ViTMAE, ViT, DINOv2), .safetensors or .pth (null: at random)"""
    channels: str | None = None
    """what becomes of these weights if in_chans is another: mean, repeat or first (see emae export)"""
    resume_optimizer: bool = False
    """take the optimiser's state too, of a run or checkpoint that weights names"""
    seed: Seed = 0
    """of weights, order, crops and masks"""
    crop_scale: tuple[Share, Share] = (0.2, 1.0)
    """share of the image's area that a random crop covers, from and to"""
    hflip: bool = True
    """flip every other image horizontally"""
    repeats: PositiveInt = 1
    """crops, each with its mask, that an image gives whenever it is read; epochs count crops, so a pass over the data
    takes this many epochs"""
    decode_device: str = "cpu"
    """what decodes and crops JPEGs: cpu, in the loader's processes, or cuda, the GPU that trains (nvJPEG)"""
    mean: tuple[Finite, ...] | Literal["measure"] | None = None
    """mean of each channel, of pixels in 0 to 1, or measure, from the data (null: that of weights; without them
    ImageNet's for RGB, else 0.5)"""
    std: tuple[Positive, ...] | Literal["measure"] | None = None
    """standard deviation of each channel, or measure (null: that of weights; without them ImageNet's for RGB, else
    0.5)"""
    epochs: Epochs = 200
    """passes over the data; 1.5 ends half-way through the second"""
    base_lr: Positive = 1.5e-4
    """learning rate at batch size 256; scales with the batch"""
    weight_decay: NonNegative = 0.05
    """AdamW's, on weight matrices alone"""
    betas: tuple[Ratio, Ratio] = (0.9, 0.95)
    """AdamW's shares of what it had before, in the gradient's mean and in that of its square"""
    warmup_epochs: NonNegative | None = None
    """epochs of linear warm-up (null: 40, or a fifth of the epochs where that is less)"""
    grad_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, a third more work"""
    compile: Switch = "auto"
    """compile the transformer blocks with torch.compile, slower to start, faster after: true (on a CPU it needs g++),
    false, or auto, where it works and cuda_graphs are taken"""
    cuda_graphs: Switch = "auto"
    """replay the encoder's blocks as a CUDA graph, the same numbers without waiting for the host: true, false, or
    auto, where one process trains on a GPU without grad_checkpointing"""
    panel_every: PositiveInt = 10
    """epochs between two pictures of reconstructions; the last epoch draws one too"""
    show_bands: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """channels that pictures of reconstructions show as red, green and blue, from 1 (null: the first)"""
    knn_every: PositiveInt | None = None
    """epochs between two k-NN accuracies of the encoder, for labelled data with a held-out part (null: none)"""

    def settled_reading(self, in_chans: int) -> Reading:
        """How images are read, by settings that :func:`resolve` has settled."""
        return Reading(
            in_chans, cast(tuple | None, self.value_range), self.bands, self.max_megapixels or MAX_MEGAPIXELS
        )


def resolve(
    config: PretrainConfig, source: Source, device: torch.device, trained_with: ImageStatistics | None = None
) -> PretrainConfig:
    """Settle what depends on the data, the machine and the weights; measure what is to be measured.

    Args:
        trained_with: of the images of the weights that the run starts from.

    Raises:
        InputError: a setting that cannot work, or images that can't be read by them.
    """
    for name in () if config.weights is not None else ("channels", "resume_optimizer"):
        if getattr(config, name):
            raise InputError(f"{name}={getattr(config, name)}: only with --weights")
    if config.decode_device not in ("cpu", "cuda"):
        raise InputError(f"decode_device={config.decode_device!r}: must be cpu or cuda")
    if config.decode_device == "cuda" and device.type != "cuda":
        raise InputError(
            f"decode_device=cuda: the run computes on {device.type}; use device=cuda or decode_device=cpu"
        )
    if config.show_bands is not None and max(config.show_bands) > config.in_chans:
        raise InputError(f"show_bands={list(config.show_bands)}: there are {config.in_chans} channels (in_chans)")
    usual = default_mean_std(config.in_chans)
    if trained_with is not None:
        usual = trained_with.mean, trained_with.std
    reading = config.reading(source, config.in_chans, trained_with and trained_with.reading)
    if config.decode_device == "cuda" and (not reading.is_plain or config.in_chans not in MODES):
        raise InputError(
            "decode_device=cuda: is for 1, 3 or 4 channels, without value_range or bands; use decode_device=cpu"
        )
    given = config.mean, config.std
    found = measure_statistics(source, reading) if "measure" in given else (None, None)
    statistics: dict[str, Any] = {
        name: measured if one == "measure" else one or usual
        for name, one, measured, usual in zip(("mean", "std"), given, found, usual, strict=True)
    }
    for name, values in statistics.items():
        if len(values) != config.in_chans:
            raise InputError(f"{name}={list(values)}: in_chans={config.in_chans} needs as many numbers")
    settled = settle(config, len(source), device, USUAL_WARMUP)
    return dataclasses.replace(config, **settled | statistics, value_range=reading.value_range, bands=reading.bands)


def build_model(config: ModelChoice) -> Method:
    """The model of a configuration, with random weights."""
    method = method_of(config.model)
    return method(method.Config.resolve(config.model, cast(MethodSettings, config)))
