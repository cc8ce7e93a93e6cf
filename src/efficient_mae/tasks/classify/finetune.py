"""Fine-tuning: the whole encoder and a linear head on its mean token, as MAE does it, in timm's model."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le, Lt
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from efficient_mae.backbones import Backbone
from efficient_mae.data import AugmentTransform, LabelledData
from efficient_mae.engine.machine.distributed import Processes
from efficient_mae.engine.optim import adamw
from efficient_mae.errors import InputError
from efficient_mae.interop import classifiers
from efficient_mae.interop.headers import Head
from efficient_mae.ranges import NonNegative, Positive, PositiveInt, Probability
from efficient_mae.tasks.classify.config import ClassifierConfig
from efficient_mae.tasks.classify.result import ClassifierResult, SeedsResult
from efficient_mae.tasks.classify.run import (
    Classification,
    ClassifierRun,
    run_classifier,
)
from efficient_mae.tasks.downstream import BETAS, layer_decay_groups

# MAE's fine-tuning: a head so small that training starts from equal odds.
HEAD_STD = 2e-5


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(ClassifierConfig):
    """Settings of `emae finetune`; the defaults are those of MAE's published instructions for ViT-B.

    MAE's own table (He et al. 2022, Table 9) has a base rate of 1e-3, layer decay 0.75 and no random erasing.
    """

    epochs: PositiveInt = 100
    """passes over the data"""
    base_lr: Positive = 5e-4
    """learning rate at batch size 256; scales with the batch"""
    warmup_epochs: NonNegative | None = None
    """epochs of linear warm-up (null: 5, or a fifth of the epochs where that is less)"""
    weight_decay: NonNegative = 0.05
    """AdamW's, on weight matrices alone"""
    layer_decay: Probability = 0.65
    """factor by which the learning rate falls from each layer to the one before it"""
    drop_path: Annotated[float, Ge(0), Le(0.99)] = 0.1
    """share of the images for which the last block is skipped; grows from 0 in the first block"""
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    """timm's description of a RandAugment (null: none)"""
    random_erasing: Probability = 0.25
    """probability that a rectangle of an image is filled with noise"""
    mixup: NonNegative = 0.8
    """alpha of mixup (0: none); it and cutmix are used for every other batch each"""
    cutmix: NonNegative = 1.0
    """alpha of cutmix (0: none)"""
    label_smoothing: Annotated[float, Ge(0), Le(0.99)] = 0.1
    """share of the target that is spread over all classes"""
    ema_decay: Annotated[float, Ge(0), Lt(1)] | None = None
    """judge and export the average of the weights that decays by this factor a step (null: the weights themselves)"""
    grad_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, a third more work"""


def finetune(config: FinetuneConfig) -> ClassifierResult | SeedsResult:
    """Fine-tune, or resume, until done; see :func:`efficient_mae.tasks.classify.run.run_classifier`."""
    return run_classifier(config, FinetuneRun)


class FinetuneRun(ClassifierRun[FinetuneConfig]):
    """What fine-tuning adds to the engine."""

    task = "finetune"
    fc_norm = True
    verb = "fine-tuning"
    usual_warmup = 5.0
    model: Any

    def __init__(self, config: FinetuneConfig, data: LabelledData, processes: Processes):
        super().__init__(config, data, processes)
        micro = self.batch_size // (config.accum_iter * processes.world_size)
        self.multiple = 2 if config.mixup or config.cutmix else 1
        if micro % self.multiple:
            raise InputError(f"batch_size={self.batch_size}: mixup pairs images, but a micro-batch has {micro}")
        self._ema = None
        if config.ema_decay is not None:
            self._ema = ModelEmaV3(self.model, decay=config.ema_decay)
            self.companions = {"ema": self._ema.module}

    def build_model(self, config: FinetuneConfig, encoder: Backbone, num_classes: int) -> nn.Module:
        model = build_classifier(encoder, num_classes, config.drop_path)
        model.set_grad_checkpointing(config.grad_checkpointing)
        return model

    def pool_of(self, config: FinetuneConfig) -> str:
        return "avg"

    def build_transform(self, config: FinetuneConfig) -> AugmentTransform:
        return AugmentTransform(
            self.img_size,
            self.reading,
            scale=config.crop_scale,
            hflip=config.hflip,
            auto_augment=config.auto_augment,
        )

    def build_optimizer(self) -> torch.optim.AdamW:
        config = self.config
        return adamw(layer_decay_groups(self.model, config.weight_decay, config.layer_decay), BETAS)

    def objective(self) -> Classification:
        config, mix = self.config, None
        if config.random_erasing or config.mixup or config.cutmix:
            mix = Augmentation(config, len(self.data.classes), self.processes.device)
        return Classification(self.statistics, mix, config.label_smoothing)

    @property
    def judged(self) -> nn.Module:
        return self.model if self._ema is None else self._ema.module

    def after_step(self) -> None:
        if self._ema is not None:
            self._ema.update(self.model)

    def as_timm(self, judged: nn.Module) -> nn.Module:
        return judged


class Augmentation:
    """Random erasing, then mixup or cutmix, of a batch on the device; timm's.

    Args:
        config: says how much.
        num_classes: K.
        device: of the images.
    """

    def __init__(self, config: FinetuneConfig, num_classes: int, device: torch.device):
        self._erase = self._mix = None
        if config.random_erasing:
            self._erase = RandomErasing(config.random_erasing, mode="pixel", device=str(device))
        if config.mixup or config.cutmix:
            self._mix = Mixup(
                config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=num_classes
            )

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (B, C, h, w) and labels (B,) to images and labels, or targets (B, K) with mixup."""
        if self._erase is not None:
            images = self._erase(images)
        return (images, labels) if self._mix is None else self._mix(images, labels)


def build_classifier(encoder: Backbone, num_classes: int, drop_path: float = 0.0) -> Any:
    """timm's model with the encoder's weights, a new norm after the mean of the tokens, and a new head.

    Its positions start as the encoder's and are learned from there on, as in MAE.
    """
    model = classifiers.build_classifier(encoder, Head(("",) * num_classes, "avg", fc_norm=True), drop_path)
    nn.init.trunc_normal_(model.get_classifier().weight, std=HEAD_STD)
    return model
