"""What fine-tuning and linear probing have in common: labelled data, evaluation, results, several seeds."""

import dataclasses
import json
from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Generic

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from efficient_mae.backbones import Backbone
from efficient_mae.command import Result
from efficient_mae.console import say
from efficient_mae.data import LabelledData, TrainBatch, TrainDataset, normalize, open_labelled
from efficient_mae.data.batches.datasets import TrainTransform
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine.machine.distributed import Processes, join_processes
from efficient_mae.engine.run import Run
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.engine.storage.plain_files import parse_json
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics
from efficient_mae.tasks.classifier_config import (
    OPERATIONAL,
    Config,
    check_start,
    resolve,
    starting_encoder,
)
from efficient_mae.tasks.confusion import draw_confusion
from efficient_mae.tasks.evaluation import Evaluation, Evaluator
from efficient_mae.tasks.intervals import Interval, mean_and_interval

RESULTS = "results.json"

# From normalised images (B, C, h, w) and labels (B,) to images and targets: labels, or a distribution (B, K).
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierResult(Result):
    """A classifier, and how well it does on held-out images; accuracies from 0 to 1.

    Attributes:
        data, weights, epochs, seed: as given; weights are None from scratch.
        train_images: that it was trained on.
        test_images: that it was judged by.
        top1, top5, per_class, confusion: as :class:`efficient_mae.tasks.evaluation.Evaluation` has them.
        classes: their names.
        run: directory.
    """

    data: str
    weights: str | None
    epochs: int
    seed: int
    train_images: int
    test_images: int
    top1: float
    top5: float | None = None
    classes: list[str]
    per_class: list[float | None]
    confusion: list[list[int]]
    run: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedsResult(Result):
    """What the classifiers of several seeds say together; attributes as of :class:`ClassifierResult`, and `seeds`."""

    data: str
    weights: str | None
    epochs: int
    train_images: int
    test_images: int
    classes: list[str]
    seeds: list[int]
    top1: Interval
    top5: Interval | None = None
    run: str


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
    """What learning to classify adds to the engine; a task says which model, crops and optimiser."""

    operational = OPERATIONAL
    results = (RESULTS,)
    verb: str
    usual_warmup: float
    config: Config

    def __init__(self, config: Config, data: LabelledData, processes: Processes):
        config = resolve(config, len(data.train), processes.device, self.usual_warmup)
        encoder, statistics = starting_encoder(config)
        config = self.settle(config, encoder)
        self.data, self.img_size, self.patch_size = data, encoder.img_size, encoder.patch_size
        self.reading = config.reading(data.train, encoder.in_chans, statistics.reading)
        self.statistics = statistics.read_by(self.reading)
        with torch_seeded(config.seed):
            model = self.build_model(config, encoder, len(data.classes))
        super().__init__(config, data.train, model, processes)
        self.transform = self.build_transform(config)

    @classmethod
    def make(cls, config: Config, processes: Processes) -> "ClassifierRun":
        """A run on the data that the settings name."""
        return cls(config, open_labelled(config.data, config.val_data), processes)

    def settle(self, config: Config, encoder: Backbone) -> Config:
        """Settle what depends on the encoder; raises InputError where it cannot be."""
        return config

    @abstractmethod
    def build_model(self, config: Config, encoder: Backbone, num_classes: int) -> nn.Module:
        """The classifier, from normalised images to logits."""

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
        statistics = {"mean": self.statistics.mean, "std": self.statistics.std}
        return {"efficient_mae_classifier": json.dumps({"classes": self.data.classes, **statistics})}

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
            top1=evaluation.top1,
            top5=evaluation.top5,
            classes=list(classes),
            per_class=evaluation.per_class,
            confusion=evaluation.confusion,
            run=str(self.out),
        )
        title = f"{evaluation.images:,} held-out images, {evaluation.top1:.2%} right"
        draw_confusion(evaluation.confusion, classes, title, self.out / "confusion.png")
        _write(result)


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
        data = open_labelled(config.data, config.val_data)
        if config.seeds == 1:
            make_run(config, data, processes).execute()
            processes.barrier()
            return _read(out)
        _refuse_other_contents(out)
        singles = [
            dataclasses.replace(config, seed=seed, seeds=1, out=str(out / f"seed-{seed}"))
            for seed in range(config.seed, config.seed + config.seeds)
        ]
        for single in singles:
            make_run(single, data, processes).execute()
        processes.barrier()
        summary = _summary(out, [_read(Path(single.out)) for single in singles])
        if processes.is_main:
            _write(summary)
        return summary


def _write(result: ClassifierResult | SeedsResult) -> None:
    held = result.plain()
    replace_file(Path(held.pop("run")) / RESULTS, json.dumps(held, indent=1).encode())


def _read(run: Path) -> ClassifierResult:
    file = run / RESULTS
    try:
        return ClassifierResult(**parse_json(file.read_bytes(), str(file)), run=str(run))
    except TypeError:
        raise InputError(f"{file}: isn't what a finished run writes; name another directory with --out") from None


def _refuse_other_contents(out: Path) -> None:
    """Raise InputError if the directory of several seeds holds something else."""
    if out.is_dir():
        for entry in sorted(out.iterdir()):
            if entry.name != RESULTS and not entry.name.startswith("seed-"):
                raise InputError(f"out={out}: holds {entry.name}, which is no run of several seeds; name another")


def _summary(out: Path, results: list[ClassifierResult]) -> SeedsResult:
    """Means and intervals over the seeds' results."""
    first = results[0]
    top5 = [one.top5 for one in results if one.top5 is not None]
    return SeedsResult(
        data=first.data,
        weights=first.weights,
        epochs=first.epochs,
        train_images=first.train_images,
        test_images=first.test_images,
        classes=first.classes,
        seeds=[one.seed for one in results],
        top1=mean_and_interval([one.top1 for one in results]),
        top5=mean_and_interval(top5) if top5 else None,
        run=str(out),
    )


def show_classifier(result: ClassifierResult | SeedsResult, console: Console) -> None:
    """Print the accuracies and where the rest is."""
    table = Table("held-out", "accuracy", title=f"{result.data}: {result.test_images:,} held-out images")
    for name, score in (("top1", result.top1), ("top5", result.top5)):
        if isinstance(score, Interval):
            several = f"{score.mean:.2%} ± {score.half_width:.2%} (95 %, {len(score.values)} seeds)"
            table.add_row(name, several)
        elif score is not None:
            table.add_row(name, f"{score:.2%}")
    console.print(table)
    run = Path(result.run)
    picture = "" if isinstance(result, SeedsResult) else f", {run / 'confusion.png'}"
    console.print(f"per class and more: {run / RESULTS}{picture}", markup=False)
