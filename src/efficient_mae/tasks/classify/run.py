"""What fine-tuning and linear probing have in common: labelled data, evaluation, results, several seeds."""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efficient_mae.data import LabelledData, TrainBatch, TrainDataset, normalize, open_labelled
from efficient_mae.data.batches.datasets import TrainTransform
from efficient_mae.engine.machine.distributed import Processes
from efficient_mae.interop import ImageStatistics, file_metadata
from efficient_mae.interop.classifiers import Classifier, save_classifier
from efficient_mae.interop.files import CLASSIFIER_FILE
from efficient_mae.interop.headers import Head
from efficient_mae.interop.timm_models import describe_run
from efficient_mae.tasks.classify.config import ClassifierConfig
from efficient_mae.tasks.classify.confusion import draw_confusion
from efficient_mae.tasks.classify.evaluation import Evaluation, Evaluator
from efficient_mae.tasks.classify.result import ClassifierResult, SeedsResult, summarise
from efficient_mae.tasks.downstream import DownstreamRun
from efficient_mae.tasks.seeds import RESULTS, run_seeds, write_result

Config = TypeVar("Config", bound=ClassifierConfig)

# From normalised images (B, C, h, w) and labels (B,) to images and targets: labels, or a distribution (B, K).
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True)
class Classification:
    """Mean cross-entropy over the images of the global batch.

    Attributes:
        statistics: by which images are normalised.
        mix: augments normalised images and their labels on the device; None leaves them.
        label_smoothing: share of the target that is spread over all classes; for `mix` to see to if there is one.
    """

    statistics: ImageStatistics
    mix: Mix | None = None
    label_smoothing: float = 0.0

    def weight(self, batch: TrainBatch) -> Tensor:
        """Number of images; filled in on their device, so that nothing is copied."""
        return torch.full((), float(len(batch.images)), device=batch.images.device)

    def weighted_sum(self, model: nn.Module, batch: TrainBatch) -> Tensor:
        """Sum of the images' cross-entropies."""
        return self._cross_entropy(model, batch, "sum")

    def sample_sums(self, model: nn.Module, batch: TrainBatch) -> Tensor:
        """Cross-entropy of each image, (B,)."""
        return self._cross_entropy(model, batch, "none")

    def _cross_entropy(self, model: nn.Module, batch: TrainBatch, reduction: str) -> Tensor:
        if batch.labels is None:
            raise ValueError("unlabelled images reached a classifier; open_labelled refuses them")
        images, targets = normalize(batch.images, self.statistics.mean, self.statistics.std), batch.labels
        smoothing = self.label_smoothing
        if self.mix is not None:
            images, targets = self.mix(images, targets)
            smoothing = 0.0 if targets.is_floating_point() else smoothing
        return F.cross_entropy(model(images).float(), targets, reduction=reduction, label_smoothing=smoothing)


class ClassifierRun(DownstreamRun[Config, LabelledData, Evaluation]):
    """What learning to classify adds; a task says which model, crops and optimiser.

    Attributes:
        fc_norm: whether the classifier's last norm follows the pool.
    """

    results = (RESULTS, CLASSIFIER_FILE)
    fc_norm: bool

    def __init__(self, config: Config, data: LabelledData, processes: Processes):
        super().__init__(config, data, processes)
        self.head = Head(data.classes, pool=self.pool_of(self.config), fc_norm=self.fc_norm)
        self.transform = self.build_transform(self.config)

    @classmethod
    def make(cls, config: Config, processes: Processes) -> "ClassifierRun":
        """A run on the data that the settings name."""
        return cls(config, open_labelled(config.data, config.val_data, config), processes)

    @abstractmethod
    def pool_of(self, config: Config) -> str:
        """How the classifier makes one feature of an image's tokens, `avg` or `token`."""

    @abstractmethod
    def build_transform(self, config: Config) -> TrainTransform:
        """Makes training images."""

    def dataset(self) -> TrainDataset:
        return TrainDataset(self.source, self.transform, self.config.seed, min_size=self.patch_size)

    def metadata(self) -> dict[str, str]:
        return file_metadata(self.encoder, self.statistics, self.head)

    @abstractmethod
    def as_timm(self, judged: nn.Module) -> nn.Module:
        """What is judged, as timm's model with a head."""

    def finished(self) -> None:
        judged = self.whole(self.judged, wanted=self.processes.is_main)
        if self.processes.is_main:
            vit, file = self.as_timm(judged), self.out / CLASSIFIER_FILE
            describe_run(file, vit.state_dict(), self.encoder, self.statistics, self.head)
            save_classifier(file, Classifier(vit, self.encoder, self.head, self.statistics))

    @cached_property
    def _evaluator(self) -> Evaluator:
        return Evaluator(self.data.test, **self.judging)

    def evaluate(self, model: nn.Module) -> Evaluation:
        return self._evaluator(model)

    def write_results(self, evaluation: Evaluation) -> None:
        classes = self.data.classes
        result = ClassifierResult(
            **self.told,
            test_images=evaluation.images,
            damaged=evaluation.damaged,
            top1=evaluation.top1,
            top5=evaluation.top5,
            per_class=evaluation.per_class,
            confusion=evaluation.confusion,
        )
        title = f"{evaluation.images:,} held-out images, {evaluation.top1:.2%} right"
        draw_confusion(evaluation.confusion, classes, title, self.out / "confusion.png")
        write_result(result)


def run_classifier(
    config: Config, make_run: Callable[[Config, LabelledData, Processes], ClassifierRun]
) -> ClassifierResult | SeedsResult:
    """Train and judge a classifier, or one for each of several seeds; see :func:`run_seeds`."""

    def open_data() -> LabelledData:
        return open_labelled(config.data, config.val_data, config)

    return run_seeds(config, open_data, make_run, ClassifierResult, summarise)
