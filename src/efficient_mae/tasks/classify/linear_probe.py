"""Linear probing: a linear head on a frozen encoder, as MAE does it.

Letters: B images, C channels, D width, K classes.
"""

from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.distributed as dist
from jaxtyping import Float
from timm.optim.lars import Lars
from torch import Tensor, nn

from efficient_mae.backbones import Backbone
from efficient_mae.data import LabelledData, PretrainTransform
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine.machine.distributed import Processes
from efficient_mae.errors import InputError
from efficient_mae.interop.classifiers import build_classifier
from efficient_mae.interop.headers import Head
from efficient_mae.ranges import NonNegative, Positive, PositiveInt
from efficient_mae.tasks.classify.config import ClassifierConfig
from efficient_mae.tasks.classify.result import ClassifierResult, SeedsResult
from efficient_mae.tasks.classify.run import (
    Classification,
    ClassifierRun,
    run_classifier,
)
from efficient_mae.tasks.downstream import OPERATIONAL
from efficient_mae.tasks.features import extract_features

# MAE's linear probing: momentum of LARS (Table 10), and the spread of the head's first weights.
MOMENTUM = 0.9
HEAD_STD = 0.01
NORM_EPS = 1e-6
# PyTorch's share of a new batch in the running averages.
NORM_MOMENTUM = 0.1


@dataclass(frozen=True, kw_only=True)
class LinearProbeConfig(ClassifierConfig):
    """Settings of `emae linear-probe`; the defaults are MAE's for ViT-B (He et al. 2022, Table 10)."""

    pool: str | None = None
    """feature of an image: token, its class token, or avg, the mean over its patches (null: token, of a Swin avg)"""
    epochs: PositiveInt = 90
    """passes over the data"""
    base_lr: Positive = 0.1
    """LARS's rate at batch size 256; scales with the batch (ImageNet's; a data set of few steps wants 10 or more)"""
    warmup_epochs: NonNegative | None = None
    """epochs of linear warm-up (null: 10, or a fifth of the epochs where that is less)"""


def linear_probe(config: LinearProbeConfig) -> ClassifierResult | SeedsResult:
    """Train and judge a linear head; see :func:`efficient_mae.tasks.classify.run.run_classifier`."""
    return run_classifier(config, LinearProbeRun)


class LinearProbeRun(ClassifierRun[LinearProbeConfig]):
    """What linear probing adds to the engine."""

    task = "linear-probe"
    # Features are normalised by the statistics of a micro-batch: their number changes what is learned.
    operational = tuple(name for name in OPERATIONAL if name != "accum_iter")
    fc_norm = False
    verb = "linear probing"
    usual_warmup = 10.0
    model: "LinearProbe"

    def __init__(self, config: LinearProbeConfig, data: LabelledData, processes: Processes):
        if config.parallel == "fsdp":
            # LARS also looks at the norm of each weight as a whole.
            raise InputError("parallel='fsdp': there is nothing to shard where a head alone is trained; take ddp")
        super().__init__(config, data, processes)

    def settle(self, config: LinearProbeConfig, encoder: Backbone) -> LinearProbeConfig:
        pool = config.pool or encoder.pools[-1]
        encoder.check_pool(pool)
        encoder.classifier_arguments(1, pool, self.fc_norm)  # or there is no form to hand it over in
        return replace(config, pool=pool)

    def build_model(self, config: LinearProbeConfig, encoder: Backbone, num_classes: int) -> "LinearProbe":
        return LinearProbe(encoder, num_classes, cast(str, config.pool))

    def pool_of(self, config: LinearProbeConfig) -> str:
        return cast(str, config.pool)

    def as_timm(self, judged: nn.Module) -> nn.Module:
        return cast(LinearProbe, judged).folded(self.head)

    def build_transform(self, config: LinearProbeConfig) -> PretrainTransform:
        return PretrainTransform(self.img_size, self.reading, scale=config.crop_scale, hflip=config.hflip)

    def build_optimizer(self) -> Lars:
        head = self.model.head
        # timm adapts the rate only where there is weight decay, of which MAE's probe has none; biases never adapt.
        groups = [{"params": [head.weight], "always_adapt": True}, {"params": [head.bias]}]
        return Lars(groups, lr=0.0, momentum=MOMENTUM)  # pyright: ignore[reportArgumentType] - timm says int

    def objective(self) -> Classification:
        return Classification(self.statistics)


class LinearProbe(nn.Module):
    """A frozen encoder, batch norm without learned factors, and a linear head.

    Args:
        encoder: frozen here, and kept in evaluation mode.
        num_classes: K.
        pool: `token` or `avg`.
    """

    def __init__(self, encoder: Backbone, num_classes: int, pool: str):
        super().__init__()
        self.pool = pool
        self.encoder = encoder.requires_grad_(False)
        self.norm = GlobalBatchNorm(encoder.dims[-1])
        self.head = nn.Linear(encoder.dims[-1], num_classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD)
        nn.init.zeros_(self.head.bias)

    def train(self, mode: bool = True) -> "LinearProbe":
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    @torch_seeded(0)
    def folded(self, head: Head) -> nn.Module:
        """The same in evaluation, with what its batch norm does to features within the weights of the head."""
        weight = self.head.weight * torch.rsqrt(self.norm.running_var + NORM_EPS)
        bias = self.head.bias - weight @ self.norm.running_mean
        model = build_classifier(self.encoder, head)
        model.get_classifier().weight.copy_(weight)
        model.get_classifier().bias.copy_(bias)
        return model

    def forward(self, images: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K"]:
        return self.head(self.norm(extract_features(self.encoder, images, self.pool)))


class GlobalBatchNorm(nn.Module):
    """Batch norm without learned factors, over the batches of all processes, of features that carry no gradient.

    So the result doesn't depend on how many processes share the batch. (PyTorch's SyncBatchNorm needs a GPU.)

    Args:
        width: D.
    """

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.running_mean: Tensor
        self.running_var: Tensor

    @torch.no_grad()
    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Normalised by the batch's own statistics in training, by their running averages in evaluation."""
        if not self.training:
            return (features - self.running_mean) * torch.rsqrt(self.running_var + NORM_EPS)
        count = len(features) * (dist.get_world_size() if dist.is_initialized() else 1)
        mean = _sum_over_processes(features.sum(dim=0)) / count
        variance = _sum_over_processes((features - mean).square().sum(dim=0)) / count
        self.running_mean.lerp_(mean, NORM_MOMENTUM)
        self.running_var.lerp_(variance * count / max(1, count - 1), NORM_MOMENTUM)
        return (features - mean) * torch.rsqrt(variance + NORM_EPS)


def _sum_over_processes(value: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(value)
    return value
