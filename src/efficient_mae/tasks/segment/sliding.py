"""Classes of a whole image by a window that slides over it, and perhaps flipped and at several scales.

C channels, K classes; h x w a window, H x W the resized image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int16, Shaped
from torch import Tensor

from efficient_mae.data import normalize
from efficient_mae.engine.machine.distributed import autocast
from efficient_mae.interop import ImageStatistics
from efficient_mae.tasks.segment.batches import pad
from efficient_mae.tasks.segment.heads import resize

# Classes whose maps are brought to an image's own size at a time: all of a large image's would fill the memory.
_CLASSES_AT_ONCE = 16


@dataclass(frozen=True)
class Sliding:
    """How images are segmented.

    Attributes:
        img_size: (height, width) of a window in pixels.
        statistics: by which images are normalised.
        stride: share of a window by which the next one is shifted.
        flip_test: take the mean with the mirrored image.
        batch_size: windows at a time.
        precision: `bf16` or `fp32`.
        device: of the model.
    """

    img_size: tuple[int, int]
    statistics: ImageStatistics
    stride: float
    flip_test: bool
    batch_size: int
    precision: str
    device: torch.device

    @torch.no_grad()
    def classes(
        self, segment: Callable[[Tensor], Tensor], pixels: Sequence[Shaped[Tensor, "C _ _"]], size: tuple[int, int]
    ) -> Int16[Tensor, "_ _"]:
        """The likeliest class of each pixel, on the host.

        Args:
            segment: from normalised windows (B, C, h, w) to logits, at any size.
            pixels: the image at each scale.
            size: (height, width) of the image itself.
        """
        several = len(pixels) > 1 or self.flip_test
        total: Tensor | None = None
        for one in pixels:
            for flip in (False, True)[: 1 + self.flip_test]:
                logits = self.logits(segment, one.flip(-1) if flip else one)
                logits = logits.flip(-1) if flip else logits
                if several:  # probabilities, for logits of different scales don't compare
                    logits = logits.softmax(0) if total is None else resize(logits.softmax(0)[None], total)[0]
                total = logits if total is None else total + logits
        assert total is not None
        return _likeliest(total, size)

    def logits(self, segment: Callable[[Tensor], Tensor], pixels: Shaped[Tensor, "C H W"]) -> Float[Tensor, "K H W"]:
        """Of each pixel the mean over the windows in which it lies; an image smaller than a window is padded."""
        (height, width), (rows, columns) = self.img_size, pixels.shape[1:]
        beyond = (0, max(0, width - columns), 0, max(0, height - rows))
        padded = pad(pixels, beyond, self.statistics.mean)
        tops, lefts = (
            _starts(side, window, max(1, int(window * self.stride)))
            for side, window in zip(padded.shape[1:], self.img_size, strict=True)
        )
        places = [(top, left) for top in tops for left in lefts]
        total, count = None, torch.zeros(padded.shape[1:], device=self.device)
        for first in range(0, len(places), self.batch_size):
            part = places[first : first + self.batch_size]
            windows = torch.stack([padded[:, y : y + height, x : x + width] for y, x in part]).to(self.device)
            with autocast(self.precision, self.device):
                found = segment(normalize(windows, self.statistics.mean, self.statistics.std))
            found = resize(found.float(), (height, width))
            if total is None:
                total = found.new_zeros(found.shape[1], *padded.shape[1:])
            for (y, x), one in zip(part, found, strict=True):
                total[:, y : y + height, x : x + width] += one
                count[y : y + height, x : x + width] += 1
        assert total is not None
        return (total / count)[:, :rows, :columns]


def _starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin that cover a side, the last at its end."""
    number = -(-max(0, side - window) // stride) + 1
    return [min(place * stride, side - window) for place in range(number)]


def _likeliest(maps: Float[Tensor, "K H W"], size: tuple[int, int]) -> Int16[Tensor, "_ _"]:
    """The class of each pixel of the image itself, to which the maps are brought bilinearly."""
    most, where = None, None
    for first in range(0, len(maps), _CLASSES_AT_ONCE):
        part = maps[None, first : first + _CLASSES_AT_ONCE]
        part = F.interpolate(part, size, mode="bilinear", align_corners=False)[0]
        value, number = part.max(dim=0)
        number = (number + first).to(torch.int16)
        if most is None or where is None:
            most, where = value, number
        else:
            better = value > most
            most, where = torch.where(better, value, most), torch.where(better, number, where)
    assert where is not None
    return where.cpu()
