"""What fine-tuning and linear probing have in common: labelled data, evaluation, results, several seeds."""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Generic

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efficient_mae.backbones import Backbone
from efficient_mae.console import say
from efficient_mae.data import LabelledData, TrainBatch, TrainDataset, common_size, normalize, open_labelled
from efficient_mae.data.batches.datasets import TrainTransform
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine.machine.distributed import Processes, join_processes
from efficient_mae.engine.run import Run
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics, file_metadata
from efficient_mae.interop.classifiers import Classifier, hollow, save_classifier
from efficient_mae.interop.files import CLASSIFIER_FILE
from efficient_mae.interop.headers import Head
from efficient_mae.interop.timm_models import describe_run
from efficient_mae.tasks.classify.config import (
    OPERATIONAL,
    Config,
    check_start,
    resolve,
    starting_encoder,
)
from efficient_mae.tasks.classify.confusion import draw_confusion
from efficient_mae.tasks.classify.evaluation import Evaluation, Evaluator
from efficient_mae.tasks.classify.result import (
    RESULTS,
    ClassifierResult,
    SeedsResult,
    read_result,
    summarise,
    write_result,
)

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


class ClassifierRun(Run, Generic[Config]):
    """What learning to classify adds to the engine; a task says which model, crops and optimiser.

    Attributes:
        fc_norm: whether the classifier's last norm follows the pool.
    """

    operational = OPERATIONAL
    results = (RESULTS, CLASSIFIER_FILE)
    fc_norm: bool
    verb: str
    usual_warmup: float
    config: Config

    def __init__(self, config: Config, data: LabelledData, processes: Processes):
        config = resolve(config, len(data.train), processes.device, self.usual_warmup)
        encoder, statistics = starting_encoder(config)
        config = self.settle(config, encoder)
        self.data, self.encoder = data, hollow(encoder)
        self.head = Head(data.classes, pool=self.pool_of(config), fc_norm=self.fc_norm)
        self.img_size, self.in_chans, self.patch_size = encoder.img_size, encoder.in_chans, encoder.patch_size
        self.reading = config.reading(data.train, encoder.in_chans, statistics.reading)
        self.statistics = dataclasses.replace(statistics, size=common_size(data.train)).read_by(self.reading)
        with torch_seeded(config.seed):
            model = self.build_model(config, encoder, len(data.classes))
        super().__init__(config, data.train, model, processes)
        self.transform = self.build_transform(config)

    @classmethod
    def make(cls, config: Config, processes: Processes) -> "ClassifierRun":
        """A run on the data that the settings name."""
        return cls(config, open_labelled(config.data, config.val_data, config), processes)

    def settle(self, config: Config, encoder: Backbone) -> Config:
        """Settle what depends on the encoder; raises InputError where it cannot be."""
        return config

    @abstractmethod
    def build_model(self, config: Config, encoder: Backbone, num_classes: int) -> nn.Module:
        """The classifier, from normalised images to logits."""

    @abstractmethod
    def pool_of(self, config: Config) -> str:
        """How the classifier makes one feature of an image's tokens, `avg` or `token`."""

    @abstractmethod
    def build_transform(self, config: Config) -> TrainTransform:
        """Makes training images."""

    @property
    def judged(self) -> nn.Module:
        """The model that is evaluated."""
        return self.model

    def title(self) -> str:
        start = "scratch" if self.config.weights is None else self.config.weights
        return f"{self.verb} from {start} on {len(self.source):,} images of {len(self.data.classes)} classes"

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
        return Evaluator(
            self.data.test,
            img_size=self.img_size,
            statistics=self.statistics,
            num_classes=len(self.data.classes),
            min_size=self.patch_size,
            batch_size=max(1, self.batch_size // (self.config.accum_iter * self.processes.world_size)),
            num_workers=self.num_workers,
            precision=self.config.precision,
            processes=self.processes,
        )

    def epoch_ended(self, epochs_done: int) -> None:
        last = epochs_done == self.config.epochs
        if epochs_done % self.config.eval_every and not last:
            return
        judged = self.judged.eval()
        evaluation = self._evaluator(self.whole(judged))
        judged.train(judged is self.model)
        if self.metrics:
            scores = evaluation.scores()
            step = epochs_done * self.steps_per_epoch
            self.metrics.write({"step": step, "epoch": float(epochs_done), **scores})
            say(f"epoch {epochs_done}: " + "  ".join(f"{name} {value:.2%}" for name, value in scores.items()))
            if last:
                self._write_results(evaluation)

    def _write_results(self, evaluation: Evaluation) -> None:
        classes = self.data.classes
        result = ClassifierResult(
            data=self.config.data,
            weights=self.config.weights,
            epochs=self.config.epochs,
            seed=self.config.seed,
            train_images=len(self.source),
            test_images=evaluation.images,
            damaged=evaluation.damaged,
            top1=evaluation.top1,
            top5=evaluation.top5,
            classes=list(classes),
            per_class=evaluation.per_class,
            confusion=evaluation.confusion,
            run=str(self.out),
        )
        title = f"{evaluation.images:,} held-out images, {evaluation.top1:.2%} right"
        draw_confusion(evaluation.confusion, classes, title, self.out / "confusion.png")
        write_result(result)


def run_classifier(
    config: Config, make_run: Callable[[Config, LabelledData, Processes], ClassifierRun]
) -> ClassifierResult | SeedsResult:
    """Train and judge a classifier, or one for each of several seeds; resume whatever is unfinished.

    Returns:
        What the run directory's `results.json` holds too.

    Raises:
        InputError: a setting that cannot work, unusable data or weights, or a directory of another run.
        DivergedError: too many losses or gradients, or the weights, are not finite; the last checkpoint is good.
        OSError: the disk is full; the last checkpoint is intact.
    """
    check_start(config)
    out = Path(config.out)
    with join_processes(config.device) as processes:
        data = open_labelled(config.data, config.val_data, config)
        if config.seeds == 1:
            make_run(config, data, processes).execute()
            processes.barrier()
            return read_result(out)
        _refuse_other_contents(out)
        singles = [
            dataclasses.replace(config, seed=seed, seeds=1, out=str(out / f"seed-{seed}"))
            for seed in range(config.seed, config.seed + config.seeds)
        ]
        for single in singles:
            make_run(single, data, processes).execute()
        processes.barrier()
        summary = summarise(out, [read_result(Path(single.out)) for single in singles])
        if processes.is_main:
            write_result(summary)
        return summary


def _refuse_other_contents(out: Path) -> None:
    """Raise InputError if the directory of several seeds holds something else."""
    if out.is_dir():
        for entry in sorted(out.iterdir()):
            if entry.name != RESULTS and not entry.name.startswith("seed-"):
                raise InputError(f"out={out}: holds {entry.name}, which is no run of several seeds; name another")
