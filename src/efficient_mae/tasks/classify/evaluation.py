"""How well a classifier does on held-out images. Letters: B images, K classes."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from efficient_mae.data import EvalTransform, Source, Subset, make_eval_loader, normalize
from efficient_mae.engine.machine.distributed import Processes, autocast
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics
from efficient_mae.tasks.left_out import gather_left_out


@dataclass(frozen=True)
class Evaluation:
    """Figures over held-out images; accuracies from 0 to 1.

    Attributes:
        images: their number.
        top1: share of the images whose class is the classifier's first choice.
        top5: share whose class is among its first five; None where there are five classes or fewer.
        per_class: top-1 accuracy by class; None for a class without images.
        confusion: number of images by class (row) and first choice (column).
        damaged: the reason, by name, of each image that could not be read, and isn't counted.
    """

    images: int
    top1: float
    top5: float | None
    per_class: list[float | None]
    confusion: list[list[int]]
    damaged: dict[str, str] = field(default_factory=dict)

    def scores(self) -> dict[str, float]:
        """`top1`, and `top5` where there is one."""
        return {"top1": self.top1} | ({} if self.top5 is None else {"top5": self.top5})


class Scorer:
    """Counts a classifier's answers, then gives the :class:`Evaluation`; over all processes where there are several.

    Args:
        num_classes: K.
        device: of the logits.
    """

    def __init__(self, num_classes: int, device: torch.device):
        # Unchecked: the labels were checked when the data were opened, and a check would wait for the device.
        common: dict[str, Any] = {"num_classes": num_classes, "validate_args": False}
        metrics: dict[str, Any] = {
            "top1": MulticlassAccuracy(**common, average="micro"),
            "per_class": MulticlassAccuracy(**common, average="none"),
            "confusion": MulticlassConfusionMatrix(**common),
        }
        if num_classes > 5:
            metrics["top5"] = MulticlassAccuracy(**common, average="micro", top_k=5)
        self._metrics = MetricCollection(metrics).to(device)

    def add(self, logits: Float[Tensor, "B K"], labels: Int64[Tensor, " B"]) -> None:
        """Count these images."""
        self._metrics.update(logits, labels)

    def result(self) -> Evaluation:
        """The figures over all images that any process has counted; every process must call this."""
        found = {name: value.cpu() for name, value in self._metrics.compute().items()}
        counts = found["confusion"].sum(dim=1).tolist()
        # Six decimals are what float32 knows.
        per_class = [round(accuracy, 6) for accuracy in found["per_class"].tolist()]
        return Evaluation(
            images=sum(counts),
            top1=round(found["top1"].item(), 6),
            top5=round(found["top5"].item(), 6) if "top5" in found else None,
            per_class=[accuracy if count else None for accuracy, count in zip(per_class, counts, strict=True)],
            confusion=found["confusion"].tolist(),
        )


class Evaluator:
    """Evaluates classifiers on the same held-out images, which the processes share out among themselves.

    Args:
        source: of the images, labelled.
        img_size: (height, width) of the images that the classifier takes, in pixels.
        statistics: by which they are normalised; as many channels as the classifier takes.
        num_classes: K.
        min_size: an image with a side shorter than this, in pixels, is left out, as unreadable ones are.
        batch_size: images at a time.
        num_workers: processes that read images.
        precision: `bf16` or `fp32`.
        processes: that share the work.
    """

    def __init__(
        self,
        source: Source,
        *,
        img_size: tuple[int, int],
        statistics: ImageStatistics,
        num_classes: int,
        min_size: int,
        batch_size: int,
        num_workers: int,
        precision: str,
        processes: Processes,
    ):
        part = Subset(source, np.arange(processes.rank, len(source), processes.world_size))
        transform = EvalTransform(img_size, statistics.reading)
        options = {"min_size": min_size, "pin_memory": processes.device.type == "cuda"}
        self._loader = make_eval_loader(part, transform, batch_size, num_workers, **options)
        self._source, self._statistics, self._num_classes = source, statistics, num_classes
        self._precision, self._processes, self._known = precision, processes, dict[str, str]()

    @torch.no_grad()
    def __call__(self, classify: Callable[[Tensor], Tensor]) -> Evaluation:
        """Evaluate a classifier, from normalised images (B, C, h, w) to logits (B, K), in evaluation mode.

        Raises:
            InputError: none of the images can be read, or too many can't be.
        """
        device = self._processes.device
        scorer = Scorer(self._num_classes, device)
        damaged: list[tuple[str, str]] = []
        for batch in self._loader:
            damaged += batch.damaged
            if len(batch.images):
                batch = batch.to(device, non_blocking=True)
                images = normalize(batch.images, self._statistics.mean, self._statistics.std)
                with autocast(self._precision, device):
                    logits = classify(images)
                scorer.add(logits.float(), batch.labels)
        found = gather_left_out(self._source, damaged, self._known, self._processes)
        result = replace(scorer.result(), damaged=found)
        if not result.images:
            raise InputError(f"{self._source.name}: none of the held-out images can be read")
        return result
