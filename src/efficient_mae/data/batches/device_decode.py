"""JPEGs that are decoded and cropped on the device that trains (a GPU by nvJPEG) and not in the loader's processes.

The workers read files, choose crops and make masks as ever, from the files' headers; what nvJPEG doesn't take, they
decode. A batch decodes the rest when it is moved to its device. Crops, flips and masks are those of the other path;
pixels differ by rounding, by the decoder, and where that path reduces a JPEG.

Letters: B images, R crops of an image, C channels, H and W height and width in pixels, h and w the same of a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any, cast

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from efficient_mae.data.batches.batch import TrainBatch
from efficient_mae.data.batches.datasets import TrainDataset
from efficient_mae.data.images.crops import Crop, cut
from efficient_mae.data.images.decode import OpenedImage, UnreadableImage, open_image
from efficient_mae.data.images.reading import Reading, megapixels
from efficient_mae.data.images.transforms import PretrainTransform
from efficient_mae.errors import InputError

# Pixels that are decoded at a time, 200 MB of RGB, so that a batch of large photographs doesn't fill the device.
_MOST_PIXELS = 1 << 26
# What a whole JPEG ends with, but for a few bytes that some cameras append. libjpeg refuses a file that is cut short
# and nvJPEG may not, so a file without it is left to libjpeg.
_END_OF_IMAGE = b"\xff\xd9"
_LONGEST_TAIL = 64


@dataclass(frozen=True)
class CodedImage:
    """A JPEG that is yet to be decoded, and the crops that are wanted of it.

    Attributes:
        name: the sample, as its source calls it.
        num_bytes: length of its file.
        size: (width, height) in pixels, upright.
        orientation: of the stored pixels, 1 to 8, as EXIF numbers them.
        crops: parts of the upright image.
    """

    name: str
    num_bytes: int
    size: tuple[int, int]
    orientation: int
    crops: list[Crop]


@dataclass
class CodedBatch(TrainBatch):
    """A training batch whose JPEGs are decoded when it is moved to its device.

    Attributes:
        images: until then the crops of the other images alone, afterwards all.
        files: the JPEGs, end to end: one tensor, as each costs a worker a handle to shared memory.
        parts: in the batch's order, a JPEG, or how many of `images` are of an image that is none; empty once decoded.
    """

    images: UInt8[Tensor, "others C H W"]
    files: UInt8[Tensor, " bytes"] = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    parts: list[CodedImage | int] = field(default_factory=list)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> CodedBatch:
        """The batch on another device, decoded there.

        A JPEG that proves damaged only now is added to `damaged`, and the next image of the batch stands in for it.

        Raises:
            InputError: every image of the batch proves damaged.
        """
        bare = dataclasses.replace(self, files=self.files[:0], parts=[])
        moved = super(CodedBatch, bare).to(device, non_blocking)
        if not self.parts:
            return moved
        crops, lost = self._crops(moved.images)
        if len(lost) == len(crops):
            raise InputError(f"no image of a batch can be read; {lost[0]}")
        moved = dataclasses.replace(moved, images=torch.cat(crops))
        if not lost:
            return moved
        rows = _stand_ins([len(part) for part in crops], lost).to(device)
        return dataclasses.replace(
            moved,
            images=moved.images[rows],
            indices=moved.indices[rows],
            labels=None if moved.labels is None else moved.labels[rows],
            damaged=[*self.damaged, *((error.name, error.reason) for error in lost.values())],
        )

    def _crops(
        self, others: UInt8[Tensor, "others C H W"]
    ) -> tuple[list[UInt8[Tensor, "R C H W"]], dict[int, UnreadableImage]]:
        """Every part's crops, on the device of `others`, and what is wrong with the parts that can't be read."""
        coded = [part for part in self.parts if isinstance(part, CodedImage)]
        files = self.files.split([image.num_bytes for image in coded])
        shape, device = cast(tuple[int, int, int], tuple(others.shape[1:])), others.device
        chunks = _chunks(zip(coded, files, strict=True))
        made = chain.from_iterable(_decode_and_cut(chunk, shape, device) for chunk in chunks)
        rest = iter(others.split([part for part in self.parts if isinstance(part, int)]))
        crops, lost = [], {}
        for number, part in enumerate(self.parts):
            found = next(rest) if isinstance(part, int) else next(made)
            if isinstance(found, UnreadableImage) and isinstance(part, CodedImage):
                lost[number] = found
                found = others.new_zeros(len(part.crops), *shape)
            crops.append(found)
        return crops, lost


class DeviceDecodeDataset(TrainDataset):
    """Makes batches whose JPEGs are decoded by their device; other images, and odd JPEGs, are decoded here."""

    def __init__(self, source: Any, transform: PretrainTransform, seed: int, **options: Any) -> None:
        """Arguments as for TrainDataset."""
        super().__init__(source, transform, seed, **options)
        self._draw, self._shape, self._most = transform.draw, transform.shape, transform.reading.max_megapixels

    def crop(self, index: int, epochs: Sequence[int], image: OpenedImage, number: int) -> Any:
        if image.jpeg is None or not _suits_a_device(image) or megapixels(*image.size) > self._most:
            return super().crop(index, epochs, image, number)
        crops = [self._draw(image.size, rng) for rng in self.rngs(index, epochs)]
        return CodedImage(image.name, len(image.jpeg), image.size, image.orientation, crops), image.jpeg

    def batch(self, crops: list[Any], **facts: Any) -> CodedBatch:
        others = [crop for crop in crops if isinstance(crop, Tensor)]
        files = bytearray().join(crop[1] for crop in crops if not isinstance(crop, Tensor))
        nothing = torch.empty(0, dtype=torch.uint8)
        return CodedBatch(
            images=torch.cat(others) if others else nothing.reshape(0, *self._shape),
            files=torch.frombuffer(files, dtype=torch.uint8) if files else nothing,
            parts=[len(crop) if isinstance(crop, Tensor) else crop[0] for crop in crops],
            **facts,
        )


def _suits_a_device(image: OpenedImage) -> bool:
    """Whether nvJPEG gives the pixels that libjpeg does: usual colours or grey, and not cut short."""
    return image.mode in ("L", "YCbCr") and _END_OF_IMAGE in (image.jpeg or b"")[-_LONGEST_TAIL:]


# JPEGs and their contents, which differ in length.
Files = list[tuple[CodedImage, UInt8[Tensor, " _"]]]


def _chunks(files: Iterable[tuple[CodedImage, UInt8[Tensor, " _"]]]) -> Iterator[Files]:
    """Runs of images that hold no more pixels than are decoded at a time, or one that holds more."""
    chunk: Files = []
    pixels = 0
    for image, data in files:
        width, height = image.size
        if chunk and pixels + width * height > _MOST_PIXELS:
            yield chunk
            chunk, pixels = [], 0
        chunk.append((image, data))
        pixels += width * height
    if chunk:
        yield chunk


def _decode_and_cut(
    files: Files, shape: tuple[int, int, int], device: torch.device
) -> Iterator[UInt8[Tensor, "R C H W"] | UnreadableImage]:
    """The crops of each image, on the device; by libjpeg where the device's decoder fails."""
    grey = shape[0] == 1
    try:
        decoded: list[Tensor | None] = list(_decode([data for _, data in files], grey, device))
    except RuntimeError:  # one of them, and it doesn't tell which
        decoded = [_decode_alone(data, grey, device) for _, data in files]
    for (image, data), pixels in zip(files, decoded, strict=True):
        if pixels is not None:
            yield cut_on_device(_upright(pixels, image.orientation), image.crops, shape)
            continue
        try:
            opened = open_image(data.numpy().tobytes(), image.name)
            reading = Reading(shape[0], max_megapixels=megapixels(*opened.size))  # not too many, a worker found
            yield cut(opened, image.crops, reading, shape[1:]).to(device)
        except UnreadableImage as error:
            yield error


def _decode(files: list[Tensor], grey: bool, device: torch.device) -> list[Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg  # nothing else needs it

    if device.type == "cuda":
        # torchvision decodes on a stream of its own, into memory that this stream may still read: of images that were
        # decoded before, and are let go (pytorch/vision#9606).
        torch.cuda.current_stream(device).synchronize()
    return decode_jpeg(files, mode=ImageReadMode.GRAY if grey else ImageReadMode.RGB, device=device)  # pyright: ignore[reportReturnType]


def _decode_alone(data: UInt8[Tensor, " bytes"], grey: bool, device: torch.device) -> Tensor | None:
    try:
        return _decode([data], grey, device)[0]
    except RuntimeError:
        return None


def _upright(pixels: UInt8[Tensor, "c h w"], orientation: int) -> UInt8[Tensor, "c _h _w"]:
    """Stored pixels turned as EXIF says."""
    if orientation >= 5:
        pixels = pixels.transpose(-2, -1)
    reverse_x, reverse_y = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    return pixels.flip([-1] * reverse_x + [-2] * reverse_y)


def cut_on_device(
    pixels: UInt8[Tensor, "c h w"], crops: Sequence[Crop], shape: tuple[int, int, int]
) -> UInt8[Tensor, "R C H W"]:
    """The pixels of crops of a decoded image, on its device; antialiased bicubic, as :func:`cut` has it.

    Args:
        pixels: grey, or RGB, to which alpha is added where the shape has it.
        shape: (channels, height, width) of each crop's result.
    """
    channels, height, width = shape
    result = pixels.new_full((len(crops), *shape), 255)
    for row, crop in zip(result, crops, strict=True):
        part = pixels[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        resized = interpolate(part[None].float(), (height, width), mode="bicubic", antialias=True)[0]
        resized = resized.round_().clamp_(0, 255)
        row[: min(channels, 3)] = resized.flip(-1) if crop.flip else resized
    return result


def _stand_ins(counts: list[int], lost: Iterable[int]) -> Tensor:
    """For each row of a batch, the row that is shown there: its own, or the next readable image's first."""
    lost = frozenset(lost)
    starts = list(accumulate(counts, initial=0))
    rows = torch.arange(starts[-1])
    for number in lost:
        following = ((number + step) % len(counts) for step in range(1, len(counts)))
        rows[starts[number] : starts[number + 1]] = starts[next(other for other in following if other not in lost)]
    return rows
