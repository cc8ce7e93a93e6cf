"""What `emae bench step` times: this project's methods, and other implementations of masked autoencoding."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from efficient_mae.bench.flops import MAE_MASK_RATIO, count_gmacs, mae_counterpart, paper_gmacs
from efficient_mae.data import TrainBatch, default_mean_std, normalize
from efficient_mae.engine.loop import Objective, Step
from efficient_mae.engine.machine.distributed import ALONE, autocast
from efficient_mae.engine.machine.parallel import compile_blocks
from efficient_mae.engine.machine.step_memory import count_passes
from efficient_mae.engine.optim import build_adamw
from efficient_mae.errors import InputError
from efficient_mae.flat import Flat
from efficient_mae.interop import ImageStatistics, to_hf
from efficient_mae.methods.mae import MAEConfig, MaskedAutoencoder, part_size
from efficient_mae.tasks.pretrain import Reconstruction

# Mask ratios at which Efficient MAE is timed; the first is the paper's default.
EFFICIENT_RATIOS = (0.85, 0.90, 0.95)
# Batches of a contender: their packed lengths differ, as they do in training.
BATCHES = 3
# Steps that tell a model's speed, after one that warms up.
TIMED_STEPS = 3


@dataclass
class Contender:
    """An implementation and a method, ready to do training steps.

    Attributes:
        name: how tables call it.
        gmacs: multiply-accumulates of one image's forward pass, 1e9.
        step: the engine's training step.
        batches: which it does in turn, on their device.
    """

    name: str
    gmacs: float
    step: Step
    batches: list[TrainBatch]
    _steps: Iterator[int] = field(default_factory=itertools.count)

    def __call__(self) -> None:
        """One training step: forward, backward, optimiser."""
        index = next(self._steps)
        self.step(index, [self.batches[index % len(self.batches)]])

    @property
    def counted_bytes(self) -> int:
        """What a step takes beside what stays, counted; 0 of other implementations."""
        if isinstance(self.step.objective, PeerLoss):
            return 0

        def loss(model: nn.Module, batch: TrainBatch) -> Tensor:
            with autocast(self.step.precision, batch.images.device):
                return self.step.objective.weighted_sum(model, batch)

        batch = self.batches[0]
        return max(count_passes(loss, self.step.model, batch, batch.images.device))

    @property
    def static_bytes(self) -> int:
        """What stays between two steps: weights and the optimiser's state."""
        optimizer = self.step.optimizer
        state = [v for values in optimizer.state.values() for v in values.values() if isinstance(v, Tensor)]
        held = [*self.step.model.parameters(), *self.step.model.buffers(), *state]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


@dataclass(frozen=True)
class PeerLoss:
    """Another implementation's own loss, which is a mean over a batch of one size."""

    statistics: ImageStatistics

    def weight(self, batch: TrainBatch) -> Tensor:
        """One; filled in on the images' device."""
        return torch.ones((), device=batch.images.device)

    def weighted_sum(self, model: nn.Module, batch: TrainBatch) -> Tensor:
        """The loss."""
        return model(normalize(batch.images, self.statistics.mean, self.statistics.std)).loss


def methods(config: MAEConfig) -> dict[str, MAEConfig]:
    """The methods that are compared, by name: MAE's and Efficient MAE's masks for one and the same model."""
    mae = mae_counterpart(config)
    compared = {f"MAE {MAE_MASK_RATIO:.2f}": mae, "MAE 0.85": replace(mae, mask_ratio=0.85)}
    for ratio in EFFICIENT_RATIOS:
        compared[f"Efficient MAE {ratio:.2f}"] = replace(config, mask_ratio=ratio)
    return compared


def own_contenders(
    model: MaskedAutoencoder, batch_size: int, device: torch.device, precision: str, compile: bool
) -> list[Contender]:
    """This project's, which share one model and optimiser: they differ in their masks alone."""
    model.to(device).train()
    if compile:
        compile_blocks(model)
    step = _step(model, Reconstruction(_statistics(model.config)), device, precision)
    return [
        Contender(name, count_gmacs(method), step, _batches(method, batch_size, device))
        for name, method in methods(model.config).items()
    ]


def model_step(
    model: MaskedAutoencoder, batch_size: int, device: torch.device, precision: str
) -> tuple[Step, list[TrainBatch]]:
    """The engine's training step of a model as it is, and batches for it that lie on the device."""
    step = _step(model.to(device).train(), Reconstruction(_statistics(model.config)), device, precision)
    return step, _batches(model.config, batch_size, device)


def step_images_per_second(model: MaskedAutoencoder, batch_size: int, device: torch.device, precision: str) -> float:
    """Speed of a training step whose data lie on the device: forward, backward, optimiser."""
    step, batches = model_step(model, batch_size, device, precision)
    contender = Contender("", float("nan"), step, batches)
    contender()
    return batch_size / statistics.median(seconds_of(contender, device) for _ in range(TIMED_STEPS))


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """How long a function takes, with all that it leaves to the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def peer_contenders(config: MAEConfig, batch_size: int, device: torch.device, precision: str) -> list[Contender]:
    """Other implementations that are installed, at MAE's mask ratio, with the same optimiser.

    Raises:
        InputError: there is none.
    """
    config = mae_counterpart(config)
    batch = TrainBatch(_images(config, batch_size), torch.arange(batch_size), None, []).to(device)
    contenders = []
    for name, make in _peers(config).items():
        torch.manual_seed(0)
        step = _step(make().to(device).train(), PeerLoss(_statistics(config)), device, precision)
        contenders.append(Contender(name, _peer_gmacs(name, config), step, [batch]))
    if not contenders:
        raise InputError("peers=true: no other implementation is installed; pip install 'efficient-mae[hub]'")
    return contenders


def _peers(config: MAEConfig) -> dict[str, Callable[[], nn.Module]]:
    peers: dict[str, Callable[[], nn.Module]] = {}
    if find_spec("transformers"):
        peers[f"transformers ViTMAE {MAE_MASK_RATIO:.2f}"] = lambda: to_hf(MaskedAutoencoder(config))
    if find_spec("stable_pretraining"):
        peers[f"stable-pretraining MAE {MAE_MASK_RATIO:.2f}"] = lambda: _stable("MAE", config)
        peers[f"stable-pretraining CrossMAE {MAE_MASK_RATIO:.2f}"] = lambda: _stable("CrossMAE", config)
    return peers


def _stable(method: str, config: MAEConfig) -> nn.Module:
    """stable-pretraining's MAE or CrossMAE around timm's encoder of the same sizes, with the same decoder's."""
    from stable_pretraining import methods as theirs  # pyright: ignore[reportMissingImports]
    from timm.models import VisionTransformer

    encoder = VisionTransformer(
        img_size=config.img_size,
        patch_size=config.patch_size,
        in_chans=config.in_chans,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        num_classes=0,
    )
    settings: dict[str, Any] = {
        "decoder_embed_dim": config.decoder_embed_dim,
        "decoder_depth": config.decoder_depth,
        "decoder_num_heads": config.decoder_num_heads,
        "mask_ratio": config.mask_ratio,
        "norm_pix_loss": config.norm_pix_loss,
    }
    if method == "CrossMAE":
        settings |= {"image_size": config.img_size[0], "in_channels": config.in_chans}
    return getattr(theirs, method)(encoder, **settings)


def _peer_gmacs(name: str, config: MAEConfig) -> float:
    """As the paper counts MAE, which is what these compute; CrossMAE's decoder is another, and isn't counted."""
    return float("nan") if "CrossMAE" in name else paper_gmacs(config)


def _step(model: nn.Module, objective: Objective, device: torch.device, precision: str) -> Step:
    optimizer = build_adamw(model, weight_decay=0.05)
    return Step(
        model, optimizer, objective, replace(ALONE, device=device), learning_rate=lambda _: 1e-4, precision=precision
    )


def _batches(config: MAEConfig, batch_size: int, device: torch.device) -> list[TrainBatch]:
    """Of the same images, with several draws of this method's masks."""
    images = _images(config, batch_size)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(BATCHES, batch_size, config.grid_size[0] * config.grid_size[1], generator=generator)
    planner = config.planner(part_size(config, device))
    layouts = [planner(part) for part in noise]
    return [TrainBatch(images, torch.arange(batch_size), None, [], Flat.of(layout)).to(device) for layout in layouts]


def _images(config: MAEConfig, batch_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, config.in_chans, *config.img_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def _statistics(config: MAEConfig) -> ImageStatistics:
    return ImageStatistics(*default_mean_std(config.in_chans))
