"""Learning to detect: an encoder with ViTDet's pyramid and Mask R-CNN, on the engine.

B images.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from efficient_mae.backbones import Backbone
from efficient_mae.backbones.patches import as_pair
from efficient_mae.console import say
from efficient_mae.data import TrainDataset, normalize
from efficient_mae.engine.machine.distributed import Processes
from efficient_mae.engine.machine.launcher import place
from efficient_mae.engine.optim import adamw
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics, file_metadata
from efficient_mae.interop.files import TASK_FILE
from efficient_mae.tasks.detect.augment import DetectBatch, DetectDataset, LargeScaleJitter
from efficient_mae.tasks.detect.config import DetectConfig
from efficient_mae.tasks.detect.data import CocoData, open_coco
from efficient_mae.tasks.detect.evaluation import Evaluation, Evaluator
from efficient_mae.tasks.detect.model import DETECT, Detector, DetectorConfig, describe, save_detector
from efficient_mae.tasks.detect.pictures import draw_found
from efficient_mae.tasks.detect.result import PICTURE, DetectResult, DetectSeedsResult, summarise
from efficient_mae.tasks.downstream import (
    BETAS,
    OPERATIONAL,
    DownstreamRun,
    layer_decay_groups,
    starting_encoder,
)
from efficient_mae.tasks.seeds import RESULTS, run_seeds, write_result


@dataclass(frozen=True)
class Detection:
    """Sum of Mask R-CNN's losses, averaged over the images of the global batch by micro-batches.

    Each loss is a mean over what is drawn of a micro-batch, as torchvision has it.

    Attributes:
        statistics: by which images are normalised.
    """

    statistics: ImageStatistics

    def weight(self, batch: DetectBatch) -> Tensor:
        """Number of images; filled in on their device, so that nothing is copied."""
        return torch.full((), float(len(batch.images)), device=batch.images.device)

    def weighted_sum(self, model: nn.Module, batch: DetectBatch) -> Tensor:
        """The losses of the micro-batch, times its images."""
        return len(batch.images) * self._loss(model, batch, range(len(batch.images)))

    def sample_sums(self, model: nn.Module, batch: DetectBatch) -> Tensor:
        """The losses of each image by itself, (B,), of what is drawn of it then."""
        return torch.stack([self._loss(model, batch, [number]) for number in range(len(batch.images))])

    def _loss(self, model: nn.Module, batch: DetectBatch, numbers: Any) -> Tensor:
        if batch.targets is None:
            raise ValueError("images without objects reached a detector; DetectDataset makes them")
        images = normalize(batch.images[list(numbers)], self.statistics.mean, self.statistics.std)
        chosen = [batch.targets.value[number] for number in numbers]
        width, targets = images.shape[-1], []
        if model.training:  # else memory is counted
            targets = [{"boxes": one.boxes, "labels": one.labels, "masks": one.masks(width)} for one in chosen]
        losses = model(images, [one.size for one in chosen], targets)
        return torch.stack([loss.float() for loss in losses.values()]).sum()


class DetectRun(DownstreamRun[DetectConfig, CocoData, Evaluation]):
    """What learning to detect adds to the engine."""

    task = DETECT
    # Losses are means over what is drawn of a micro-batch.
    operational = tuple(name for name in OPERATIONAL if name != "accum_iter")
    results = (RESULTS, TASK_FILE)
    verb = "learning to detect"
    # COCO's 250 steps.
    usual_warmup = 0.14
    draws = True
    model: Any

    def __init__(self, config: DetectConfig, data: CocoData, processes: Processes):
        if config.jitter[0] > config.jitter[1]:
            raise InputError(f"jitter={list(config.jitter)}: the first number must be at most the second")
        super().__init__(config, data, processes)
        self.img_size = self._detector(self.config).img_size
        self.heads = describe(self._detector(self.config), data.classes)

    @classmethod
    def make(cls, config: DetectConfig, processes: Processes) -> "DetectRun":
        """A run on the data that the settings name."""
        return cls(config, open_coco(config), processes)

    def start(self, config: DetectConfig) -> tuple[Backbone, ImageStatistics]:
        """A plain ViT as it was trained, for its positions stretch with the image; a Swin for these images."""
        encoder, statistics = starting_encoder(replace(config, img_size=None))
        return (encoder, statistics) if len(encoder.strides) == 1 else starting_encoder(config)

    def build_model(self, config: DetectConfig, encoder: Backbone, num_classes: int) -> nn.Module:
        return Detector(encoder, num_classes, self._detector(config), config.drop_path, config.grad_checkpointing)

    def _detector(self, config: DetectConfig) -> DetectorConfig:
        size = as_pair(config.img_size or self.encoder.img_size)
        ids = tuple(self.data.categories)
        shape = config.window_size, config.global_blocks, config.width
        return DetectorConfig(size, *shape, config.proposals, ids)

    def fall(self, progress: float) -> float:
        """To a tenth at each of `lr_drops`."""
        return 0.1 ** sum(progress >= drop for drop in self.config.lr_drops)

    def dataset(self) -> TrainDataset:
        config = self.config
        jitter = LargeScaleJitter(self.img_size, self.reading, self.statistics.mean, config.jitter, config.hflip)
        return DetectDataset(self.data.train, jitter, config.seed, min_size=self.patch_size)

    def build_optimizer(self) -> torch.optim.AdamW:
        config, model = self.config, self.model
        groups = layer_decay_groups(model.encoder, config.weight_decay, config.layer_decay, model.heads)
        if model.windows is not None:  # relative positions learn as their blocks do
            blocks = list(model.windows.blocks)
            for number, positions in enumerate(blocks):
                scale = config.layer_decay ** (len(blocks) - number)
                params = list(positions.parameters())
                groups.append({"params": params, "weight_decay": config.weight_decay, "lr_scale": scale})
        return adamw(groups, BETAS)

    def objective(self) -> Detection:
        return Detection(self.statistics)

    def metadata(self) -> dict[str, str]:
        return file_metadata(self.encoder, self.statistics, self.heads)

    @cached_property
    def _evaluator(self) -> Evaluator:
        return Evaluator(self.data.test, **self.judging)

    def evaluate(self, model: nn.Module) -> Evaluation:
        return self._evaluator(cast(Detector, model))

    def write_results(self, evaluation: Evaluation) -> None:
        result = DetectResult(
            **self.told,
            test_images=evaluation.images,
            damaged=evaluation.damaged,
            left_out=list(self.data.notes),
            box=evaluation.box,
            mask=evaluation.mask,
        )
        title = f"{len(evaluation.drawn)} of {evaluation.images:,} held-out images"
        draw_found(evaluation.drawn, self.data.classes, title, self.out / PICTURE)
        write_result(result)

    def finished(self) -> None:
        model = self.whole(self.model, wanted=self.processes.is_main)
        if self.processes.is_main:
            file = self.out / TASK_FILE
            save_detector(file, cast(Detector, model), self.encoder, self.statistics, self.heads)


def detect(config: DetectConfig) -> DetectResult | DetectSeedsResult:
    """Learn to detect, or resume, until done; see :func:`efficient_mae.tasks.seeds.run_seeds`."""

    def open_data() -> CocoData:
        data = open_coco(config)
        for note in data.notes if place().rank == 0 else ():
            say(note)
        return data

    return run_seeds(config, open_data, DetectRun, DetectResult, summarise)
