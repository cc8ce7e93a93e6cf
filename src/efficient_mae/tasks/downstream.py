"""What learning with labels has in common: an encoder to start from, layer decay, evaluation, several seeds.

B images, C channels, h x w pixels; D_i x h_i x w_i a feature map.
"""

import dataclasses
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from timm.optim import param_groups_layer_decay  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from efficient_mae.backbones import Backbone
from efficient_mae.console import say
from efficient_mae.data import Source, common_size, default_mean_std
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine import settings
from efficient_mae.engine.machine.distributed import Processes
from efficient_mae.engine.run import Run
from efficient_mae.engine.settings import RunConfig, settle
from efficient_mae.errors import InputError
from efficient_mae.interop import (
    ImageStatistics,
    adapt_encoder,
    adapt_statistics,
    load,
    load_statistics,
    to_timm,
)
from efficient_mae.interop.classifiers import hollow
from efficient_mae.methods import method_of
from efficient_mae.ranges import Location, Pixels, PositiveInt, Seed

# Settings that may differ when a run is resumed: none of them changes what is learned.
OPERATIONAL = (*settings.OPERATIONAL, "grad_checkpointing", "eval_every")
# AdamW's betas in fine-tuning (MAE, Table 9).
BETAS = (0.9, 0.999)

_DEFAULT_MODEL = "mae_vit_base_patch16"


@dataclass(frozen=True, kw_only=True)
class DownstreamConfig(RunConfig):
    """Settings of a run that learns with labels, from a trained encoder or from scratch."""

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
    eval_every: PositiveInt = 5
    """epochs between two evaluations on the held-out images; the last epoch ends with one too"""
    seed: Seed = 0
    """of the head's weights, order, crops and all that is random"""
    seeds: PositiveInt = 1
    """runs with successive seeds, in seed-0, seed-1, ... of the run directory; their mean and 95 % interval"""


Config = TypeVar("Config", bound=DownstreamConfig)


def resolve(config: Config, num_samples: int, device: torch.device, usual_warmup: float) -> Config:
    """Settle what depends on the data and the machine.

    Raises:
        InputError: a setting that cannot work.
    """
    return dataclasses.replace(config, **settle(config, num_samples, device, usual_warmup))


def check_start(config: DownstreamConfig) -> None:
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


def starting_encoder(config: DownstreamConfig) -> tuple[Backbone, ImageStatistics]:
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


def timm_encoder(encoder: Backbone, drop_path: float = 0.0) -> Any:
    """timm's model with the encoder's weights, without a head, to be trained as part of another.

    Its last norm is frozen, for features are taken before it (:func:`feature_maps`); it stays, so that the encoder
    is whole wherever the model is saved.
    """
    model = to_timm(encoder, drop_path)
    model.norm.requires_grad_(False)
    return model


def feature_maps(
    encoder: Any, images: Float[Tensor, "B C h w"], places: Sequence[int]
) -> list[Float[Tensor, "B _ _ _"]]:
    """Features of timm's model, not normalised, as (B, D_i, h_i, w_i).

    Args:
        encoder: of :func:`timm_encoder`.
        images: normalised.
        places: after which blocks of a plain ViT, or stages of a Swin, counted from 0; one may be named repeatedly.
    """
    different = sorted(set(places))
    maps = encoder.forward_intermediates(images, indices=different, output_fmt="NCHW", intermediates_only=True)
    return [maps[different.index(place)] for place in places]


def layer_decay_groups(
    encoder: Any, weight_decay: float, layer_decay: float, heads: Iterable[nn.Module] = ()
) -> list[dict[str, Any]]:
    """Parameters by layer: each has a learning rate `layer_decay` times that of the next, and the head the whole.

    Args:
        encoder: timm's model, with a head of its own or without.
        heads: what else is trained, at the whole rate; its matrices and kernels are decayed, vectors aren't.
    """
    groups = param_groups_layer_decay(
        encoder, weight_decay, no_weight_decay_list=encoder.no_weight_decay(), layer_decay=layer_decay
    )
    ours = [p for head in heads for p in head.parameters() if p.requires_grad]
    if ours:  # a layer above the encoder's last
        groups = [group | {"lr_scale": group["lr_scale"] * layer_decay} for group in groups]
    matrices, vectors = [p for p in ours if p.ndim > 1], [p for p in ours if p.ndim < 2]
    for parameters, decay in ((matrices, weight_decay), (vectors, 0.0)):
        groups += [{"params": parameters, "weight_decay": decay, "lr_scale": 1.0}] if parameters else []
    return groups


@runtime_checkable
class Data(Protocol):
    """Images to learn from, and their classes."""

    @property
    def train(self) -> Source: ...

    @property
    def classes(self) -> tuple[str, ...]: ...


@runtime_checkable
class Scored(Protocol):
    """What came of an evaluation."""

    def scores(self) -> dict[str, float]:
        """What is logged of it: shares, from 0 to 1."""
        ...


Labels = TypeVar("Labels", bound=Data)
Evaluated = TypeVar("Evaluated", bound=Scored)


class DownstreamRun(Run, Generic[Config, Labels, Evaluated]):
    """What learning with labels adds to the engine; a task says which model, batches, optimiser and evaluation.

    Attributes:
        verb: what the task does, as in `fine-tuning from ...`.
        usual_warmup: epochs of warm-up where none are given and the run is long enough.
        data: to learn from and to be judged on.
        encoder: that it starts from, without its numbers.
        statistics: of its images.
        patch_size: of the encoder, in pixels.
    """

    operational = OPERATIONAL
    verb: str
    usual_warmup: float
    config: Config

    def __init__(self, config: Config, data: Labels, processes: Processes):
        config = resolve(config, len(data.train), processes.device, self.usual_warmup)
        encoder, statistics = self.start(config)
        config = self.settle(config, encoder)
        self.data, self.encoder = data, hollow(encoder)
        self.img_size, self.in_chans, self.patch_size = encoder.img_size, encoder.in_chans, encoder.patch_size
        self.reading = config.reading(data.train, encoder.in_chans, statistics.reading)
        self.statistics = dataclasses.replace(statistics, size=common_size(data.train)).read_by(self.reading)
        with torch_seeded(config.seed):
            model = self.build_model(config, encoder, len(data.classes))
        super().__init__(config, data.train, model, processes)

    def start(self, config: Config) -> tuple[Backbone, ImageStatistics]:
        """The encoder that training starts from, and how its images are normalised; raises InputError."""
        return starting_encoder(config)

    def settle(self, config: Config, encoder: Backbone) -> Config:
        """Settle what depends on the encoder; raises InputError where it cannot be."""
        return config

    @abstractmethod
    def build_model(self, config: Config, encoder: Backbone, num_classes: int) -> nn.Module:
        """What is trained."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> Evaluated:
        """Judge a model on the held-out images; every process calls this."""

    @abstractmethod
    def write_results(self, evaluation: Evaluated) -> None:
        """Write what came of the last evaluation, on the main process."""

    @property
    def judged(self) -> nn.Module:
        """The model that is evaluated."""
        return self.model

    @property
    def images_at_a_time(self) -> int:
        """Of a micro-batch."""
        return max(1, self.batch_size // (self.config.accum_iter * self.processes.world_size))

    @property
    def told(self) -> dict[str, Any]:
        """What a result says of the run that it is of, and of its data."""
        given = {name: getattr(self.config, name) for name in ("data", "weights", "epochs", "seed")}
        return given | {
            "train_images": len(self.source),
            "classes": list(self.data.classes),
            "run": str(self.out),
        }

    @property
    def judging(self) -> dict[str, Any]:
        """How held-out images are read and shared out, as evaluators take it."""
        return {
            "img_size": self.img_size,
            "statistics": self.statistics,
            "num_classes": len(self.data.classes),
            "min_size": self.patch_size,
            "batch_size": self.images_at_a_time,
            "num_workers": self.num_workers,
            "precision": self.config.precision,
            "processes": self.processes,
        }

    def title(self) -> str:
        start = "scratch" if self.config.weights is None else self.config.weights
        return f"{self.verb} from {start} on {len(self.source):,} images of {len(self.data.classes)} classes"

    def epoch_ended(self, epochs_done: float) -> None:
        last = epochs_done == self.epochs
        if epochs_done % self.config.eval_every and not last:
            return
        judged = self.judged.eval()
        evaluation = self.evaluate(self.whole(judged))
        judged.train(judged is self.model)
        if self.metrics:
            scores = evaluation.scores()
            step = round(epochs_done * self.steps_per_epoch)
            self.metrics.write({"step": step, "epoch": epochs_done, **scores})
            say(f"epoch {epochs_done:g}: " + "  ".join(f"{name} {value:.2%}" for name, value in scores.items()))
            if last:
                self.write_results(evaluation)
