"""Training a tokenizer: a small discrete VAE on images of one's own. Letters: B images, C channels, K words."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._guards import detect_fake_mode

from efficient_mae.backbones.patches import as_pair
from efficient_mae.data import (
    EvalTransform,
    PretrainTransform,
    Source,
    TrainBatch,
    TrainDataset,
    normalize,
    open_source,
)
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.data.images.reading import Reading
from efficient_mae.engine import settings
from efficient_mae.engine.machine.distributed import Processes
from efficient_mae.engine.optim import build_adamw
from efficient_mae.engine.run import Run
from efficient_mae.engine.settings import RunConfig, settle
from efficient_mae.engine.storage.durable import replace_file, replace_tensors
from efficient_mae.errors import InputError
from efficient_mae.methods.tokenizer import (
    TOKENIZER_FILE,
    DiscreteVAE,
    DiscreteVAEConfig,
    DiscreteVAESettings,
    Relaxed,
    tokenizer_metadata,
)
from efficient_mae.ranges import NonNegative, Pixels, Positive, PositiveInt, Share
from efficient_mae.tasks.codebook import CODEBOOK, codebook_use, draw_token_panel
from efficient_mae.tasks.left_out import held_out_images

# Settings that may differ when a run is resumed: none of them changes what is learned.
OPERATIONAL = (*settings.OPERATIONAL, "panel_every")

# AdamW as DALL-E's discrete VAE had it (Ramesh et al. 2021, appendix A.2).
BETAS, WEIGHT_DECAY = (0.9, 0.999), 1e-4

# Shares of training: at which the KL has its whole weight, and the temperature its last value.
_KL_RAMP, _COOLING = 0.2, 0.8

# Images that are looked at for the use of the vocabulary, and those of a picture.
_LOOKED_AT, _PANEL = 256, 6


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(DiscreteVAESettings, RunConfig):
    """Settings of `emae tokenizer`."""

    vocab_size: PositiveInt = 1024
    """words of the vocabulary"""
    img_size: Pixels = 112
    """pixels, one number or [height, width]; multiples of stride"""
    crop_scale: tuple[Share, Share] = (0.2, 1.0)
    """share of the image's area that a random crop covers, from and to"""
    hflip: bool = True
    """flip every other image horizontally"""
    base_lr: Positive = 2e-3
    """learning rate at batch size 256; scales with the batch"""
    temperature: tuple[Positive, Positive] = (1.0, 0.0625)
    """of the mixtures of words, at first and at last; it falls by an equal factor at each step"""
    kl_weight: NonNegative = 2e-3
    """of a token's KL divergence from even choice, in nats, beside the squared error of pixels from 0 to 1: more
    brings more words into use, too much blurs"""
    panel_every: PositiveInt = 10
    """epochs between two pictures of reconstructions, and figures of the vocabulary's use; the last epoch has one"""


@dataclass(frozen=True)
class NoiseSeeds:
    """Of what is drawn to choose a batch's words: a number of each sample's own."""

    seeds: tuple[int, ...]


def noise_seeds(noise: Float[Tensor, "B 2"], progress: Tensor | None = None) -> NoiseSeeds:
    """A seed of each sample, of its random numbers from 0 to 1."""
    high, low = (noise * 2**24).long().unbind(dim=1)
    return NoiseSeeds(tuple((high << 24 | low).tolist()))


def gumbel_noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> Float[Tensor, "B K H W"]:
    """Numbers of the standard Gumbel distribution; a sample's follow from its seed alone."""
    noise = torch.empty(len(seeds), *shape, device=device)
    for row, seed in zip(noise, seeds, strict=True):
        row.exponential_(generator=None if detect_fake_mode() else torch.Generator(device).manual_seed(seed))
    return noise.clamp_(min=1e-30).log_().neg_()


@dataclass
class Schedule:
    """What changes over training.

    Attributes:
        step: steps that are done.
    """

    total_steps: int
    temperatures: tuple[float, float]
    kl_weight: float
    step: int = 0

    @property
    def temperature(self) -> float:
        """Of the next step."""
        first, last = self.temperatures
        return first * (last / first) ** min(1.0, self._share / _COOLING)

    @property
    def weight(self) -> float:
        """Of the KL divergence at the next step."""
        return self.kl_weight * min(1.0, self._share / _KL_RAMP)

    @property
    def _share(self) -> float:
        return self.step / max(1, self.total_steps - 1)


@dataclass(frozen=True)
class Reconstruction:
    """Mean over the images of the squared error of their pixels, and the weighted KL divergence of their tokens."""

    schedule: Schedule

    def weight(self, batch: TrainBatch) -> Tensor:
        """Number of images."""
        return torch.full((), float(len(batch.images)), device=batch.images.device)

    def weighted_sum(self, model: nn.Module, batch: TrainBatch) -> Tensor:
        """Sum of the images' errors."""
        return self.sample_sums(model, batch).sum()

    def sample_sums(self, model: nn.Module, batch: TrainBatch) -> Tensor:
        """Each image's error, (B,)."""
        pixels = _pixels(batch.images)
        vae = cast(DiscreteVAE, getattr(model, "module", model))  # without what averages its gradients
        grid = [side // vae.stride for side in pixels.shape[2:]]
        seeds = cast(Any, batch.masks).value.seeds
        noise = gumbel_noise(seeds, (vae.vocab_size, *grid), pixels.device)
        out: Relaxed = model(pixels, noise, self.schedule.temperature)
        errors = (out.pixels.float() - pixels).square().mean(dim=(1, 2, 3))
        return errors + self.schedule.weight * out.kl.mean(dim=(1, 2))


def _pixels(images: Tensor) -> Tensor:
    """Images as float32 from 0 to 1."""
    channels = images.shape[1]
    return normalize(images, (0.0,) * channels, (1.0,) * channels)


def make_tokenizer_run(config: TokenizerConfig, processes: Processes) -> "TokenizerRun":
    """A run of these settings, with random weights.

    Raises:
        InputError: a setting that cannot work, or unusable data.
    """
    if config.parallel == "fsdp":
        raise InputError("parallel='fsdp': a tokenizer is small enough for every device to hold all of it; take ddp")
    height, width = as_pair(config.img_size)
    vae = DiscreteVAEConfig.of(config)
    if height % vae.stride or width % vae.stride:
        raise InputError(f"img_size={config.img_size}: must be multiples of stride={vae.stride}")
    source = open_source(config.data, "train", config)
    reading = config.reading(source, config.in_chans)
    settled = settle(config, len(source), processes.device, usual_warmup=5.0)
    with torch_seeded(config.seed):
        model = DiscreteVAE(vae)
    return TokenizerRun(
        replace(config, **settled, value_range=reading.value_range), source, reading, model, processes
    )


class TokenizerRun(Run):
    """What training a tokenizer adds to the engine."""

    task = "tokenizer"
    operational = OPERATIONAL
    results = (TOKENIZER_FILE, CODEBOOK)
    config: TokenizerConfig
    model: DiscreteVAE

    def __init__(
        self, config: TokenizerConfig, source: Source, reading: Reading, model: DiscreteVAE, processes: Processes
    ):
        super().__init__(config, source, model, processes)
        self.img_size, self.reading = as_pair(config.img_size), reading
        self.transform = PretrainTransform(self.img_size, reading, scale=config.crop_scale, hflip=config.hflip)
        self.schedule = Schedule(self.total_steps, config.temperature, config.kl_weight)

    def title(self) -> str:
        return f"training a tokenizer of {self.config.vocab_size:,} words on {len(self.source):,} images"

    def dataset(self) -> TrainDataset:
        return TrainDataset(self.source, self.transform, self.config.seed, num_patches=2, make_masks=noise_seeds)

    def build_optimizer(self) -> torch.optim.Optimizer:
        return build_adamw(self.model, WEIGHT_DECAY, BETAS)

    def objective(self) -> Reconstruction:
        return Reconstruction(self.schedule)

    def metadata(self) -> dict[str, str]:
        return tokenizer_metadata(self.model.config)

    def begin(self) -> None:
        self.schedule.step = 0

    def restore(self, folder: Path, accepted: Collection[int] = ()) -> int:
        self.schedule.step = super().restore(folder, accepted)
        return self.schedule.step

    def after_step(self) -> None:
        self.schedule.step += 1

    def epoch_ended(self, epochs_done: float) -> None:
        last = epochs_done == self.epochs
        if not (self.processes.is_main and (last or epochs_done % self.config.panel_every == 0)):
            return
        use = codebook_use(self.model, self._looked_at)
        if self.metrics is not None:
            figures = {"perplexity": use.perplexity, "used": use.used, "mean_squared_error": use.mean_squared_error}
            step = round(epochs_done * self.steps_per_epoch)
            self.metrics.write({"step": step, "epoch": epochs_done, **figures})
        draw_token_panel(
            self.model,
            self._looked_at[:: max(1, len(self._looked_at) // _PANEL)][:_PANEL],
            title=f"after epoch {epochs_done:g}",
            path=self.out / "figures" / f"panel-epoch-{epochs_done:04g}.png",
        )

    def finished(self) -> None:
        if self.processes.is_main:
            use = codebook_use(self.model, self._looked_at)
            replace_file(self.out / CODEBOOK, json.dumps(asdict(use)).encode())
            replace_tensors(self.out / TOKENIZER_FILE, self.model.state_dict(), self.metadata())

    @cached_property
    def _looked_at(self) -> Float[Tensor, "B C h w"]:
        """Readable images, evenly spread over the held-out ones if the source has them, from 0 to 1."""
        transform = EvalTransform(self.img_size, self.reading)
        return _pixels(held_out_images(self.config.data, self.config, transform, _LOOKED_AT)[0])
