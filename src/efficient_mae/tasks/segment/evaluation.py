"""How well images are segmented. K classes, h x w pixels of an image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Int16, Int64, Shaped, UInt8
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from efficient_mae.data import Reading
from efficient_mae.data.batches.loader import load_in_order
from efficient_mae.engine.machine.distributed import Processes
from efficient_mae.errors import InputError
from efficient_mae.tasks.left_out import gather_left_out
from efficient_mae.tasks.segment.batches import WholeDataset
from efficient_mae.tasks.segment.data import NOTHING, SegmentData
from efficient_mae.tasks.segment.sliding import Sliding

# Held-out images that are drawn, and the longer side to which they are reduced for that.
DRAWN = 6
_DRAWN_SIDE = 384


@dataclass(frozen=True)
class Drawn:
    """A held-out image, reduced, to be looked at.

    Attributes:
        name: of its file.
        picture: its first one or three channels.
        truth, found: the class of each pixel, from 0, and -1 for none.
    """

    name: str
    picture: UInt8[np.ndarray, "h w _"]
    truth: Int16[np.ndarray, "h w"]
    found: Int16[np.ndarray, "h w"]


@dataclass(frozen=True)
class Evaluation:
    """Figures over held-out images; shares from 0 to 1.

    Attributes:
        images: their number.
        miou: mean over the classes of intersection over union.
        macc: mean over the classes of the share of their pixels that is found.
        pixel_accuracy: share of all labelled pixels whose class is found.
        iou, accuracy: by class; None for one that no labelled pixel is of (and, of `iou`, none is taken for).
        confusion: number of pixels by class (row) and what they are taken for (column).
        damaged: the reason, by name, of each image that could not be read, and isn't counted.
        drawn: some of the images.
    """

    images: int
    miou: float
    macc: float
    pixel_accuracy: float
    iou: list[float | None]
    accuracy: list[float | None]
    confusion: list[list[int]]
    damaged: dict[str, str] = field(default_factory=dict)
    drawn: list[Drawn] = field(default_factory=list)

    def scores(self) -> dict[str, float]:
        """`miou`, `macc` and `pixel_accuracy`."""
        return {"miou": self.miou, "macc": self.macc, "pixel_accuracy": self.pixel_accuracy}


def score(confusion: Int64[np.ndarray, "K K"], images: int) -> Evaluation:
    """The figures that a confusion matrix says.

    Raises:
        InputError: it counts no pixel.
    """
    right, labelled = confusion.diagonal(), confusion.sum(axis=1)
    union = labelled + confusion.sum(axis=0) - right
    if not labelled.any():
        raise InputError("no pixel of the held-out images is of a class; look at ignore_index and reduce_zero_label")
    iou, accuracy = _shares(right, union), _shares(right, labelled)
    return Evaluation(
        images=images,
        miou=_mean(iou),
        macc=_mean(accuracy),
        pixel_accuracy=round(float(right.sum() / labelled.sum()), 6),
        iou=iou,
        accuracy=accuracy,
        confusion=confusion.tolist(),
    )


def _shares(parts: np.ndarray, wholes: np.ndarray) -> list[float | None]:
    return [round(part / whole, 6) if whole else None for part, whole in zip(parts.tolist(), wholes.tolist())]


def _mean(shares: Sequence[float | None]) -> float:
    return round(float(np.mean([share for share in shares if share is not None])), 6)


class Evaluator:
    """Evaluates models on the same held-out images, which the processes share out among themselves.

    Args:
        data: of which the held-out images are taken.
        sliding: how they are segmented.
        reading: how they are read.
        scales: factors at which they are looked at.
        min_size: an image with a side shorter than this, in pixels, is left out, as unreadable ones are.
        num_workers: processes that read images.
        processes: that share the work.
    """

    def __init__(
        self,
        data: SegmentData,
        sliding: Sliding,
        *,
        reading: Reading,
        scales: Sequence[float],
        min_size: int,
        num_workers: int,
        processes: Processes,
    ):
        source = data.test
        indices = np.arange(processes.rank, len(source), processes.world_size)
        dataset = WholeDataset(source, sliding.img_size, reading, data.labelling, scales, min_size, indices)
        self._loader = load_in_order(dataset, 1, num_workers)
        self._source, self._sliding, self._processes = source, sliding, processes
        self._num_classes, self._known = len(data.classes), dict[str, str]()
        self._drawn = set(np.linspace(0, len(source) - 1, DRAWN).round().astype(int).tolist())

    @torch.no_grad()
    def __call__(self, segment: Callable[[Tensor], Tensor]) -> Evaluation:
        """Evaluate a model, from normalised crops to logits, in evaluation mode; every process calls this.

        Raises:
            InputError: none of the images can be read, or too many can't be, or no pixel has a class.
        """
        counts = MulticlassConfusionMatrix(self._num_classes, ignore_index=NOTHING, validate_args=False)
        images = 0
        damaged: list[tuple[str, str]] = []
        drawn: list[tuple[int, Drawn]] = []
        for batch in self._loader:
            damaged += batch.damaged
            for index, whole in zip(batch.indices.tolist(), batch.whole, strict=True):
                found = self._sliding.classes(segment, whole.pixels, whole.size)
                counts.update(found.long().flatten(), torch.from_numpy(whole.numbers).long().flatten())
                images += 1
                if index in self._drawn:
                    name = self._source.sample_name(index)
                    drawn.append((index, _reduced(name, whole.pixels[0], whole.numbers, found.numpy())))
        found = gather_left_out(self._source, damaged, self._known, self._processes)
        gathered = self._processes.gather((counts.confmat.numpy(), images, drawn))
        total = sum(images for _, images, _ in gathered)
        if not total:
            raise InputError(f"{self._source.name}: none of the held-out images can be read")
        pictures = sorted((pair for *_, part in gathered for pair in part), key=lambda pair: pair[0])
        result = score(np.sum([confusion for confusion, *_ in gathered], axis=0), total)
        return replace(result, damaged=found, drawn=[one for _, one in pictures])


def _reduced(
    name: str,
    pixels: Shaped[Tensor, "C H W"],
    truth: Int16[np.ndarray, "h w"],
    found: Int16[np.ndarray, "h w"],
) -> Drawn:
    """Every so manieth pixel, of numbers that are classes; the picture's likewise."""
    height, width = truth.shape
    step = max(1, -(-max(height, width) // _DRAWN_SIDE))
    rows, columns = np.arange(0, height, step), np.arange(0, width, step)
    shown = pixels[:3] if len(pixels) >= 3 else pixels[:1]
    shown = (shown * 255 if shown.is_floating_point() else shown).to(torch.uint8).permute(1, 2, 0).numpy()
    y, x = rows * shown.shape[0] // height, columns * shown.shape[1] // width
    return Drawn(name, shown[np.ix_(y, x)], truth[np.ix_(rows, columns)], found[np.ix_(rows, columns)])
