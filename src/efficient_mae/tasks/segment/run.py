"""`emae segment`: an encoder and UPerNet learn a class for each pixel.

B images, C channels, h x w pixels, K classes.
"""

import dataclasses
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from efficient_mae.backbones import Backbone
from efficient_mae.data import TrainDataset, normalize
from efficient_mae.engine.loop import Step
from efficient_mae.engine.machine.distributed import Processes
from efficient_mae.engine.optim import adamw
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics, file_metadata
from efficient_mae.interop.files import TASK_FILE
from efficient_mae.tasks.classify.confusion import draw_confusion
from efficient_mae.tasks.downstream import BETAS, OPERATIONAL, DownstreamRun, layer_decay_groups
from efficient_mae.tasks.seeds import RESULTS, run_seeds, write_result
from efficient_mae.tasks.segment.batches import LONGEST, MappedBatch, MappedDataset, SegmentTransform
from efficient_mae.tasks.segment.config import SegmentConfig
from efficient_mae.tasks.segment.data import NOTHING, SegmentData, open_mapped
from efficient_mae.tasks.segment.evaluation import Evaluation, Evaluator
from efficient_mae.tasks.segment.heads import resize
from efficient_mae.tasks.segment.model import SEGMENT, Segmenter, UPerNet, UPerNetConfig, describe, save_segmenter
from efficient_mae.tasks.segment.pictures import draw_predictions
from efficient_mae.tasks.segment.result import SegmentResult, SegmentSeedsResult, summarise
from efficient_mae.tasks.segment.sliding import Sliding

# Of UPerNet's head on a Swin, whose last stage is wider than it need be.
_SWIN_WIDTH = 512


def segment(config: SegmentConfig) -> SegmentResult | SegmentSeedsResult:
    """Train and judge a model, or one for each of several seeds; see :func:`run_seeds`."""
    return run_seeds(config, lambda: open_data(config), SegmentRun, SegmentResult, summarise)


def open_data(config: SegmentConfig) -> SegmentData:
    """The images and label maps that the settings name.

    Raises:
        InputError: there are none, or no list of classes.
    """
    return open_mapped(config.data, config.val_data, config.classes, config.ignore_index, config.reduce_zero_label)


@dataclass(frozen=True)
class Segmentation:
    """Mean cross-entropy over the labelled pixels of the global batch, and the auxiliary head's.

    Attributes:
        statistics: by which images are normalised.
        aux_weight: of the auxiliary head's.
    """

    statistics: ImageStatistics
    aux_weight: float

    def weight(self, batch: MappedBatch) -> Tensor:
        """Number of labelled pixels."""
        return (batch.maps != NOTHING).sum().float()

    def weighted_sum(self, model: nn.Module, batch: MappedBatch) -> Tensor:
        """Sum of their cross-entropies."""
        return self.sample_sums(model, batch).sum()

    def sample_sums(self, model: nn.Module, batch: MappedBatch) -> Float[Tensor, " B"]:
        """The same of each image."""
        images = normalize(batch.images, self.statistics.mean, self.statistics.std)
        logits, auxiliary = model(images)
        targets = batch.maps.long()
        losses = self._cross_entropy(logits, targets)
        return losses + self.aux_weight * self._cross_entropy(auxiliary, targets)

    def _cross_entropy(self, logits: Float[Tensor, "B K _ _"], targets: Tensor) -> Float[Tensor, " B"]:
        whole = resize(logits.float(), (targets.shape[1], targets.shape[2]))
        return F.cross_entropy(whole, targets, ignore_index=NOTHING, reduction="none").sum(dim=(1, 2))


class SegmentRun(DownstreamRun[SegmentConfig, SegmentData, Evaluation]):
    """What segmentation adds to the engine."""

    task = SEGMENT
    # Batch norm takes the statistics of a micro-batch: their number changes what is learned.
    operational = tuple(name for name in OPERATIONAL if name != "accum_iter")
    results = (RESULTS, TASK_FILE)
    verb = "learning to segment"
    usual_warmup = 1.2
    unit = 2
    model: UPerNet

    def __init__(self, config: SegmentConfig, data: SegmentData, processes: Processes):
        super().__init__(config, data, processes)
        alone = processes.world_size == 1 or processes.device.type != "cuda"
        if alone and self.images_at_a_time < 2:
            raise InputError(
                f"batch_size={self.batch_size}: a micro-batch has 1 image, of which batch norm can take no "
                "statistics; take 2 images or more for each micro-batch and process"
            )
        if config.parallel == "fsdp" and self.config.precision == "bf16" and processes.device.type == "cuda":
            raise InputError("parallel='fsdp' in bf16: batch norm wants its weights in float32; take ddp")
        if not config.resize_range[0] <= config.resize_range[1]:
            raise InputError(f"resize_range={list(config.resize_range)}: the first number must not exceed the second")
        if not config.scales:
            raise InputError("scales=[]: must be one factor at least; [1.0] is the usual one")
        self.heads = describe(self.heads_config(self.config), data.classes)
        self.transform = SegmentTransform(
            self.img_size,
            self.reading,
            self.statistics.mean,
            resize_range=config.resize_range,
            class_share=config.class_share,
            hflip=config.hflip,
            photometric=config.photometric,
        )

    @classmethod
    def make(cls, config: SegmentConfig, processes: Processes) -> "SegmentRun":
        """A run on the data that the settings name."""
        return cls(config, open_data(config), processes)

    def settle(self, config: SegmentConfig, encoder: Backbone) -> SegmentConfig:
        width = encoder.dims[0] if len(encoder.strides) == 1 else _SWIN_WIDTH
        return replace(config, head_width=config.head_width or width)

    def heads_config(self, config: SegmentConfig) -> UPerNetConfig:
        """What the heads are built by."""
        return UPerNetConfig(
            width=config.head_width or 0,  # it is settled
            aux_width=config.aux_width,
            dropout=config.dropout,
            relative_positions=config.relative_positions,
            first_label=self.data.labelling.first_label,
            stride=config.stride,
            flip_test=config.flip_test,
            scales=config.scales,
        )

    def build_model(self, config: SegmentConfig, encoder: Backbone, num_classes: int) -> nn.Module:
        model = UPerNet(encoder, num_classes, self.heads_config(config), config.drop_path)
        model.encoder.set_grad_checkpointing(config.grad_checkpointing)
        return model

    def prepare(self) -> Step:
        if self._shares_norms:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # pyright: ignore[reportAttributeAccessIssue]
        return super().prepare()

    @property
    def _shares_norms(self) -> bool:
        """PyTorch's batch norm over several processes needs GPUs."""
        return self.processes.world_size > 1 and self.processes.device.type == "cuda"

    def after_step(self) -> None:
        """Where batch norm takes each process' own statistics, their running averages become those of all."""
        if self.processes.world_size > 1 and not self._shares_norms:
            for buffer in self.model.buffers():
                if buffer.is_floating_point():
                    self.processes.sum(buffer).div_(self.processes.world_size)

    def fall(self, progress: float) -> float:
        """In a straight line."""
        return 1 - progress

    def images_become(self) -> str:
        (height, width), (low, high) = self.img_size, self.config.resize_range
        short = min(self.img_size)
        return (
            f"images are resized to fit in {LONGEST * short:,} x {short:,} pixels, times {low:g} to {high:g}, and "
            f"{width:,} x {height:,} of that are a crop"
        )

    def dataset(self) -> TrainDataset:
        data, seed = self.data, self.config.seed
        return MappedDataset(data.train, self.transform, data.labelling, seed, self.patch_size)

    def build_optimizer(self) -> torch.optim.AdamW:
        config, model = self.config, self.model
        groups = layer_decay_groups(model.encoder, config.weight_decay, config.layer_decay, model.heads)
        return adamw(groups, BETAS)

    def objective(self) -> Segmentation:
        return Segmentation(self.statistics, self.config.aux_weight)

    def metadata(self) -> dict[str, str]:
        return file_metadata(self.encoder, self.statistics, self.heads)

    @cached_property
    def _evaluator(self) -> Evaluator:
        config = self.config
        sliding = Sliding(
            self.img_size,
            self.statistics,
            config.stride,
            config.flip_test,
            self.images_at_a_time,
            config.precision,
            self.processes.device,
        )
        return Evaluator(
            self.data,
            sliding,
            reading=self.reading,
            scales=config.scales,
            min_size=self.patch_size,
            num_workers=self.num_workers,
            processes=self.processes,
        )

    def evaluate(self, model: nn.Module) -> Evaluation:
        evaluation = self._evaluator(cast(UPerNet, model).segment)
        if self.processes.is_main:
            title = f"mean IoU {evaluation.miou:.2%} on {evaluation.images:,} held-out images"
            file = self.out / "figures" / "predictions.png"
            draw_predictions(evaluation.drawn, self.data.classes, title, file)
        return evaluation

    def write_results(self, evaluation: Evaluation) -> None:
        classes = self.data.classes
        figures = {one.name for one in dataclasses.fields(Evaluation)} - {"images", "drawn"}
        result = SegmentResult(
            **self.told,
            test_images=evaluation.images,
            **{name: getattr(evaluation, name) for name in figures},
        )
        title = f"pixels of {evaluation.images:,} held-out images, mean IoU {evaluation.miou:.2%}"
        draw_confusion(evaluation.confusion, classes, title, self.out / "confusion.png")
        write_result(result)

    def finished(self) -> None:
        model = self.whole(self.model, wanted=self.processes.is_main)
        if self.processes.is_main:
            segmenter = Segmenter(cast(UPerNet, model), self.encoder, self.heads, self.statistics)
            save_segmenter(self.out / TASK_FILE, segmenter)
