"""How well boxes and masks are found: COCO's average precision.

n objects of an image of h x w pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import box_convert

from efficient_mae.data import Source, Subset, normalize
from efficient_mae.data.batches.loader import load_in_order
from efficient_mae.engine.machine.distributed import Processes, autocast
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics
from efficient_mae.tasks.detect.annotations import Objects
from efficient_mae.tasks.detect.augment import JudgedBatch, JudgedDataset, whole
from efficient_mae.tasks.detect.data import CocoSource
from efficient_mae.tasks.detect.model import MOST_OBJECTS, Detector
from efficient_mae.tasks.left_out import gather_left_out

# Share of a mask's certainty from which a pixel is the object's.
_INSIDE = 0.5
# Images of a picture.
_DRAWN = 6
# Images at a time, at most: they are large, and so is what is found in them.
MOST_AT_A_TIME = 8
# COCO's thresholds, in numbers of 64 bits: torchmetrics' own are of 32, and an overlap of just 0.6 would not do.
_OVERLAPS, _RECALLS = np.linspace(0.5, 0.95, 10).tolist(), np.linspace(0, 1, 101).tolist()


@dataclass(frozen=True)
class Found:
    """Objects that were found in an image, in its own pixels.

    Attributes:
        boxes: left, top, width and height.
        labels: numbers of their classes, from 0.
        scores: from 0 to 1, falling.
        masks: where each is.
    """

    boxes: Float[Tensor, "n 4"]
    labels: Int64[Tensor, " n"]
    scores: Float[Tensor, " n"]
    masks: Bool[Tensor, "n h w"]


@dataclass(frozen=True)
class Precision:
    """Average precision, from 0 to 1; None where nothing is to be found.

    Attributes:
        ap: mean over overlaps from 0.5 to 0.95.
        ap50, ap75: at overlaps of 0.5 and 0.75.
        small, medium, large: mean over objects of less than 32 x 32 pixels, less than 96 x 96, and of more.
        per_class: `ap` of each class.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    small: float | None
    medium: float | None
    large: float | None
    per_class: list[float | None]


@dataclass(frozen=True)
class Drawn:
    """An image that is drawn.

    Attributes:
        name: of the image.
        picture: its pixels.
        found, there: objects.
    """

    name: str
    picture: Shaped[Tensor, "C h w"]
    found: Found
    there: Objects


@dataclass(frozen=True)
class Evaluation:
    """What came of held-out images.

    Attributes:
        images: their number.
        box, mask: precision.
        damaged: the reason, by name, of each image that could not be read, and isn't counted.
        drawn: a few of the images, on the main process.
    """

    images: int
    box: Precision
    mask: Precision
    damaged: dict[str, str] = field(default_factory=dict)
    drawn: tuple[Drawn, ...] = ()

    def scores(self) -> dict[str, float]:
        """`box_ap` and the like, where there is something to be found."""
        named = {"box": self.box, "mask": self.mask}
        found = {
            f"{kind}_{name}": getattr(one, name) for kind, one in named.items() for name in ("ap", "ap50", "ap75")
        }
        return {name: value for name, value in found.items() if value is not None}


class Scorer:
    """Compares what was found with what is there, as pycocotools does; over all processes where there are several.

    Args:
        num_classes: of objects.
    """

    def __init__(self, num_classes: int):
        self._num_classes = num_classes
        self._metric = MeanAveragePrecision(
            box_format="xywh",
            iou_type=("bbox", "segm"),
            iou_thresholds=_OVERLAPS,
            rec_thresholds=_RECALLS,
            max_detection_thresholds=[1, 10, MOST_OBJECTS],
            extended_summary=True,
            backend="faster_coco_eval",
            sync_on_compute=False,
        )
        self._metric.warn_on_many_detections = False

    def add(self, found: Found, there: Objects) -> None:
        """Count an image."""
        self._metric.update(
            [{"boxes": found.boxes, "labels": found.labels, "scores": found.scores, "masks": found.masks}],
            [
                {
                    "boxes": torch.from_numpy(there.boxes),
                    "labels": torch.from_numpy(there.labels),
                    "masks": torch.from_numpy(there.masks()),
                    "iscrowd": torch.from_numpy(there.crowd).long(),
                    "area": torch.from_numpy(there.areas),
                }
            ],
        )

    def result(self, processes: Processes) -> tuple[int, Precision, Precision]:
        """Number of images, and precision of boxes and of masks, over those that any process counted, in the order of
        the processes; every process calls this."""
        # torchmetrics' own way needs as many images of each process, and mixes them.
        states = processes.gather(self._metric.metric_state if processes.world_size > 1 else None)
        found = None
        if processes.is_main:
            if processes.world_size > 1:
                for name in states[0]:
                    setattr(self._metric, name, list(chain.from_iterable(state[name] for state in states)))
            images, labels = len(self._metric.groundtruth_labels), self._metric.groundtruth_labels
            computed = self._metric.compute() if any(map(len, labels)) else {}
            found = images, *(self._precision(computed, kind) for kind in ("bbox", "segm"))
        return processes.gather(found)[0]

    def _precision(self, computed: dict[str, Any], kind: str) -> Precision:
        def share(value: Any) -> float | None:
            return None if value < 0 else round(float(value), 6)

        names = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
        whole = [share(computed[f"{kind}_{name}"]) if computed else None for name in names]
        per_class: list[float | None] = [None] * self._num_classes
        # Overlaps, recalls, classes, areas, numbers of objects: of all areas and most objects.
        curves = computed[f"{kind}_precision"][:, :, :, 0, -1].unbind(2) if computed else ()
        for label, curve in zip(computed["classes"].reshape(-1).tolist() if computed else (), curves, strict=True):
            per_class[label] = share(curve.mean())  # -1 throughout where the class is nowhere
        return Precision(*whole, per_class=per_class)


class Evaluator:
    """Judges detectors on the same held-out images, which the processes share out among themselves.

    Args:
        source: of the images and what is there.
        img_size: (H, W) that the detector takes, in pixels.
        statistics: by which images are normalised.
        num_classes: of objects.
        min_size: an image with a side shorter than this, in pixels, is left out, as unreadable ones are.
        batch_size: images at a time, up to :data:`MOST_AT_A_TIME`.
        num_workers: processes that read images.
        precision: `bf16` or `fp32`.
        processes: that share the work.
    """

    def __init__(
        self,
        source: CocoSource,
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
        # Each a run of them, so that their order is that of one process: where scores are equal, it counts.
        self._mine = np.array_split(np.arange(len(source)), processes.world_size)[processes.rank]
        self._loader = judged_batches(
            Subset(source, self._mine), img_size, statistics, min_size, batch_size, num_workers, processes.device
        )
        self._source, self._statistics, self._num_classes = source, statistics, num_classes
        self._precision, self._processes = precision, processes
        self._known = dict[str, str]()

    def __call__(self, model: Detector) -> Evaluation:
        """Evaluate a detector in evaluation mode.

        Raises:
            InputError: none of the images can be read, or too many can't be.
        """
        scorer = Scorer(self._num_classes)
        damaged: list[tuple[str, str]] = []
        drawn: list[Drawn] = []
        for batch in self._loader if len(self._mine) else ():
            damaged += batch.damaged
            everything = find(model, batch, self._statistics, self._precision)
            for place, found in zip(batch.indices.tolist(), everything, strict=True):
                number = int(self._mine[place])
                there = self._source.objects(number)
                scorer.add(found, there)
                if self._processes.is_main and len(drawn) < _DRAWN:
                    picture = whole(self._source.open(number), self._statistics.reading)
                    drawn.append(Drawn(self._source.sample_name(number), picture, found, there))
        lost = gather_left_out(self._source, damaged, self._known, self._processes)
        images, box, mask = scorer.result(self._processes)
        if not images:
            raise InputError(f"{self._source.name}: none of the held-out images can be read")
        return Evaluation(images, box, mask, lost, tuple(drawn))


def judged_batches(
    source: Source,
    img_size: tuple[int, int],
    statistics: ImageStatistics,
    min_size: int,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> Any:
    """A loader of whole images as a detector takes them, in order; arguments as of :class:`Evaluator`."""
    dataset = JudgedDataset(source, img_size, statistics.reading, statistics.mean, min_size)
    return load_in_order(dataset, min(batch_size, MOST_AT_A_TIME), num_workers, pin_memory=device.type == "cuda")


@torch.no_grad()
def find(model: Detector, batch: JudgedBatch, statistics: ImageStatistics, precision: str) -> list[Found]:
    """What a detector finds in images, on the host, in the images' own pixels.

    Args:
        batch: perhaps of no image; it is moved to where the model is.
    """
    if not len(batch.images):
        return []
    device = next(model.parameters()).device
    images = batch.images.to(device, non_blocking=True)
    with autocast(precision, device):
        found = model.detect(normalize(images, statistics.mean, statistics.std), batch.sizes)
    return [_own_pixels(one, size, own) for one, size, own in zip(found, batch.sizes, batch.own_sizes, strict=True)]


def _own_pixels(found: dict[str, Tensor], size: Sequence[int], own: tuple[int, int]) -> Found:
    boxes = resize_boxes(found["boxes"].float(), list(size), list(own))
    masks = paste_masks_in_image(found["masks"].float(), boxes, own)[:, 0] >= _INSIDE
    return Found(
        box_convert(boxes, "xyxy", "xywh").double().cpu(),
        found["labels"].cpu() - 1,
        found["scores"].double().cpu(),
        masks.cpu(),
    )
