"""From an image and its objects to what Mask R-CNN learns of, and from an image to what it is judged by.

B images, C channels, H x W pixels of what the model takes, h x w of an image, n objects.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, Shaped, UInt8
from torch import Tensor
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes, Mask
from torchvision.tv_tensors import Image as Pixels

from efficient_mae.data import EvalBatch, EvalTransform, OpenedImage, Reading, TrainBatch, TrainDataset
from efficient_mae.data.batches.datasets import EvalDataset
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.data.images.crops import Crop, cut
from efficient_mae.flat import Flat
from efficient_mae.tasks.detect.annotations import Objects
from efficient_mae.tasks.detect.data import CocoSource


@dataclass(frozen=True)
class Target:
    """The objects of an image.

    Attributes:
        boxes: left, top, right and bottom in pixels of what the model takes.
        labels: from 1; 0 is nothing's.
        packed: masks, 8 pixels of a row to a byte.
        size: (height, width) that the image fills, from the upper left corner.
    """

    boxes: Float32[Tensor, "n 4"]
    labels: Int64[Tensor, " n"]
    packed: UInt8[Tensor, "n H bytes"]
    size: tuple[int, int]

    def masks(self, width: int) -> UInt8[Tensor, "n H {width}"]:
        """1 where an object is."""
        places = torch.arange(7, -1, -1, dtype=torch.uint8, device=self.packed.device)
        return (self.packed[..., None] >> places & 1).flatten(-2)[..., :width]


@dataclass
class DetectBatch(TrainBatch):
    """Images that each fill a part of H x W from the upper left corner, and their objects."""

    targets: Flat[list[Target]] | None = None


@dataclass
class JudgedBatch(EvalBatch):
    """Images likewise, and the (height, width) that each fills, and that it has itself."""

    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    own_sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class LargeScaleJitter:
    """Resize at random, then cut or fill up to one size, and mirror every other image.

    Source: Ghiasi et al. 2021, Simple Copy-Paste, Sec. 4.1.

    Attributes:
        img_size: (H, W).
        reading: how images are read.
        mean: by channel, of pixels from 0 to 1, with which images are filled up.
        scale: from and to which an image is resized, times the size with which it just fits.
        hflip: mirror every other image.
    """

    img_size: tuple[int, int]
    reading: Reading
    mean: tuple[float, ...]
    scale: tuple[float, float]
    hflip: bool

    def __call__(
        self, image: OpenedImage, objects: Objects, rng: np.random.Generator
    ) -> tuple[Shaped[Tensor, "C H W"], Target]:
        """The same for the same state of `rng`; raises UnreadableImage."""
        pixels, objects = whole(image, self.reading), objects.alone()
        corners = torch.from_numpy(objects.boxes.copy())
        corners[:, 2:] += corners[:, :2]
        sample: dict[str, Any] = {
            "image": Pixels(pixels),
            "boxes": BoundingBoxes(corners.float(), format="XYXY", canvas_size=objects.size),  # pyright: ignore[reportCallIssue]
            "masks": Mask(torch.from_numpy(objects.masks())),
            "labels": torch.from_numpy(objects.labels) + 1,
        }
        (low, high), (h, w) = self.scale, objects.size
        factor = (low + (high - low) * rng.random()) * min(self.img_size[0] / h, self.img_size[1] / w)
        resized = [max(1, round(h * factor)), max(1, round(w * factor))]
        height, width = (min(sides) for sides in zip(resized, self.img_size, strict=True))
        with torch_seeded(int(rng.integers(2**63))):
            sample = v2.Resize(resized)(sample)
            sample = v2.RandomCrop((height, width))(sample)
            if self.hflip:
                sample = v2.RandomHorizontalFlip()(sample)
        sample = v2.SanitizeBoundingBoxes(min_size=1)(sample)
        kept = sample["masks"].flatten(1).bool().any(dim=1)
        masks, boxes = sample["masks"][kept], sample["boxes"][kept].as_subclass(Tensor)
        if len(masks):
            # No larger than what is left to see of the object.
            seen = masks_to_boxes(masks)
            boxes = torch.cat([boxes[:, :2].maximum(seen[:, :2]), boxes[:, 2:].minimum(seen[:, 2:] + 1)], dim=1)
            boxes[:, 2:] = boxes[:, 2:].maximum(boxes[:, :2] + 1)
        filled = masks.new_zeros(len(masks), self.img_size[0], -(-self.img_size[1] // 8) * 8)
        filled[:, :height, :width] = masks
        packed = torch.from_numpy(np.packbits(filled.numpy(), axis=-1))
        target = Target(boxes, sample["labels"][kept], packed, (height, width))
        return fill_up(sample["image"].as_subclass(Tensor), self.img_size, self.mean), target


class DetectDataset(TrainDataset):
    """Makes batches of images and their objects.

    Args:
        source: of both.
        jitter: what is made of them.
        seed: of the run.
        min_size: see :class:`efficient_mae.data.TrainDataset`.
    """

    def __init__(self, source: CocoSource, jitter: LargeScaleJitter, seed: int, *, min_size: int):
        super().__init__(source, None, seed, min_size=min_size)
        self._coco, self._jitter = source, jitter

    def crop(self, index: int, epochs: Sequence[int], image: OpenedImage, number: int) -> Any:
        objects = self._coco.objects(number)
        return [self._jitter(image, objects, rng) for rng in self.rngs(index, epochs)]

    def batch(self, crops: list[Any], **facts: Any) -> DetectBatch:
        made = [pair for group in crops for pair in group]
        targets = Flat.of([target for _, target in made])
        return DetectBatch(images=torch.stack([image for image, _ in made]), targets=targets, **facts)


class JudgedDataset(EvalDataset):
    """Makes batches of whole images, each resized so that it just fits."""

    def __init__(
        self, source: Any, img_size: tuple[int, int], reading: Reading, mean: tuple[float, ...], min_size: int
    ):
        super().__init__(source, EvalTransform(img_size, reading), min_size=min_size)
        self._img_size, self._reading, self._mean = img_size, reading, mean

    def read(self, image: OpenedImage, number: int) -> Any:
        width, height = image.size
        factor = min(self._img_size[0] / height, self._img_size[1] / width)
        size = max(1, round(factor * height)), max(1, round(factor * width))
        pixels = v2.functional.resize(whole(image, self._reading), list(size), antialias=True)
        return fill_up(pixels, self._img_size, self._mean), size, (height, width)

    def batch(self, images: list[Any], **facts: Any) -> JudgedBatch:
        pixels = [image for image, _, _ in images]
        nothing = torch.empty((0, self._reading.in_chans, *self._img_size), dtype=self._reading.dtype)
        return JudgedBatch(
            images=torch.stack(pixels) if pixels else nothing,
            sizes=[size for _, size, _ in images],
            own_sizes=[size for _, _, size in images],
            **facts,
        )


def whole(image: OpenedImage, reading: Reading) -> Shaped[Tensor, "C h w"]:
    """All pixels of an image; raises UnreadableImage."""
    width, height = image.size
    return cut(image, [Crop(0, 0, height, width, flip=False)], reading, (height, width))[0]


def fill_up(
    pixels: Shaped[Tensor, "C h w"], img_size: tuple[int, int], mean: tuple[float, ...]
) -> Shaped[Tensor, "C H W"]:
    """The image in the upper left corner, and its channels' means beside it."""
    white = 1 if pixels.is_floating_point() else 255
    color = torch.tensor([round(white * one) if white == 255 else one for one in mean], dtype=pixels.dtype)
    filled = color[:, None, None].expand(-1, *img_size).clone()
    filled[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    return filled
