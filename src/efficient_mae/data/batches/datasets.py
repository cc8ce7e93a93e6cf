"""Batches by number: the same whoever makes them, and when. Letters: B images, R crops of an image, L patches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, Shaped
from torch import Tensor
from torch.utils.data import Dataset

from efficient_mae.data.batches.batch import EvalBatch, TrainBatch
from efficient_mae.data.batches.order import sample_rng
from efficient_mae.data.batches.workers import note_image
from efficient_mae.data.images.decode import OpenedImage, UnreadableImage
from efficient_mae.data.images.transforms import EvalTransform
from efficient_mae.data.sources.registry import Source
from efficient_mae.errors import InputError
from efficient_mae.flat import Flat

T = TypeVar("T")


@runtime_checkable
class TrainTransform(Protocol):
    """From an image to pixels, the same for the same random numbers."""

    def crops(self, image: OpenedImage, rngs: Collection[np.random.Generator]) -> Shaped[Tensor, "R C H W"]:
        """A crop for each generator, of an image that is decoded once; raises UnreadableImage if it's damaged."""
        ...


# So many unreadable images one after another mean that the data set as a whole is not what it should be.
LONGEST_DAMAGE = 100


class TrainDataset(Dataset[TrainBatch]):
    """Makes training batches of (epoch, index) pairs.

    The crop and the mask of a pair are functions of (seed, epoch, index). The masks of a batch are made here, in
    the worker, at once: so their lengths are known on the host and training never waits for the device to tell.
    """

    def __init__(
        self,
        source: Source,
        transform: TrainTransform | None,
        seed: int,
        *,
        min_size: int = 1,
        num_patches: int | None = None,
        make_masks: Callable[[Float32[Tensor, "B L"], Float64[Tensor, " B"]], Any] | None = None,
        epochs: int = 1,
    ) -> None:
        """
        Args:
            transform: makes crops; None where :meth:`crop` does without.
            min_size: an image with a side shorter than this, in pixels, counts as unreadable (the patch size).
            num_patches: L, random numbers in [0, 1) that an image's mask is made of; goes with `make_masks`.
            make_masks: from the random numbers of a batch, and how far training is when each sample is seen (0 in
                the first epoch, 1 in the last, be it the only one), to its masks: any object that can be pickled; it
                is handed over as a :class:`Flat`.
            epochs: of training.
        """
        if (num_patches is None) != (make_masks is None):
            raise ValueError("num_patches and make_masks go together: give both or neither")
        self.source = source
        self.transform = transform
        self.seed = seed
        self.min_size = min_size
        self.num_patches = num_patches
        self.make_masks = make_masks
        self.epochs = epochs

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, pair: tuple[int, int]) -> TrainBatch:
        return self.__getitems__([pair])

    def __getitems__(self, pairs: Sequence[tuple[int, int]]) -> TrainBatch:
        """The batch of these (epoch, index) pairs; an image that stands in several in a row is decoded once.

        Raises:
            InputError: an image and the 100 that follow it are all unreadable.
        """
        crops, indices = [], []
        damaged: dict[str, str] = {}
        for index, group in groupby(pairs, key=lambda pair: pair[1]):
            epochs = [epoch for epoch, _ in group]
            made, used = self.first_readable(index, damaged, partial(self.crop, index, epochs))
            crops.append(made)
            indices += [used] * len(epochs)
        labels = _labels(self.source, indices)
        facts = {"indices": torch.tensor(indices), "labels": labels, "damaged": list(damaged.items())}
        return self.batch(crops, masks=self._masks(pairs), **facts)

    def crop(self, index: int, epochs: Sequence[int], image: OpenedImage, number: int) -> Any:
        """What the image gives to a batch: its crop in each of these epochs; raises UnreadableImage.

        Args:
            index: the number that was asked for: the image itself may be one that replaces it.
            number: of the image itself.
        """
        if self.transform is None:
            raise ValueError("a data set without a transform has a `crop` of its own")
        return self.transform.crops(image, self.rngs(index, epochs))

    def rngs(self, index: int, epochs: Sequence[int]) -> list[np.random.Generator]:
        """The random numbers of an image's crop in each of these epochs."""
        return [sample_rng(self.seed, epoch, index, "crop") for epoch in epochs]

    def batch(self, crops: list[Any], **facts: Any) -> TrainBatch:
        """The batch of what :meth:`crop` made and what else is known of it."""
        return TrainBatch(images=torch.cat(crops), **facts)

    def first_readable(
        self, index: int, damaged: dict[str, str], read: Callable[[OpenedImage, int], T]
    ) -> tuple[T, int]:
        """What `read` makes of the image at `index` or the next after it that can be read, and its number.

        Args:
            damaged: filled with the reason, by name, of every unreadable image on the way.
            read: decodes the image, given with its number; raises UnreadableImage where it cannot.

        Raises:
            InputError: this image and the 100 that follow it are all unreadable.
        """
        looked_at = min(LONGEST_DAMAGE + 1, len(self.source))
        for step in range(looked_at):
            candidate = (index + step) % len(self.source)
            try:
                return read(_open(self.source, candidate, self.min_size), candidate), candidate
            except UnreadableImage as error:
                damaged[error.name] = error.reason
        name = self.source.sample_name(index)
        raise InputError(
            f"data={self.source.name}: no readable image among {looked_at} of {len(self.source)} looked at; "
            f"{name}: {damaged[name]}"
        )

    def reads(self, index: int) -> bool:
        """Whether this image can be read."""
        try:
            self.crop(index, [0], _open(self.source, index, self.min_size), index)
        except UnreadableImage:
            return False
        return True

    def _masks(self, pairs: Sequence[tuple[int, int]]) -> Flat[Any] | None:
        if self.make_masks is None or self.num_patches is None:
            return None
        noise = torch.empty(len(pairs), self.num_patches)
        for row, (epoch, index) in zip(noise.numpy(), pairs, strict=True):
            sample_rng(self.seed, epoch, index, "mask").random(out=row, dtype=row.dtype)
        epoch, last = torch.tensor([epoch for epoch, _ in pairs], dtype=torch.float64), self.epochs - 1
        progress = (epoch / last).clamp(max=1) if last else torch.ones_like(epoch)
        return Flat.of(self.make_masks(noise, progress))


class EvalDataset(Dataset[EvalBatch]):
    """Makes evaluation batches of indices; arguments as for TrainDataset."""

    def __init__(self, source: Source, transform: EvalTransform, *, min_size: int = 1) -> None:
        self.source = source
        self.transform = transform
        self.min_size = min_size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> EvalBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> EvalBatch:
        """The batch of these images; a smaller one, down to none, where some are unreadable."""
        images, used = [], []
        damaged: dict[str, str] = {}
        for index in indices:
            try:
                images.append(self.read(_open(self.source, index, self.min_size), index))
                used.append(index)
            except UnreadableImage as error:
                damaged[error.name] = error.reason
        facts = {"labels": _labels(self.source, used), "damaged": list(damaged.items())}
        return self.batch(images, indices=torch.tensor(used, dtype=torch.int64), **facts)

    def read(self, image: OpenedImage, number: int) -> Any:
        """What the image of this number gives to a batch; raises UnreadableImage."""
        return self.transform(image)

    def batch(self, images: list[Any], **facts: Any) -> EvalBatch:
        """The batch of what :meth:`read` made and what else is known of it."""
        nothing = torch.empty((0, *self.transform.shape), dtype=self.transform.reading.dtype)
        return EvalBatch(images=torch.stack(images) if images else nothing, **facts)


def _open(source: Source, index: int, min_size: int) -> OpenedImage:
    """An image of sufficient size; raises UnreadableImage."""
    note_image(index)
    image = source.open(index)
    if min(image.size) < min_size:
        width, height = image.size
        reason = f"{width} x {height} pixels, smaller than a patch of {min_size}"
        raise UnreadableImage(source.sample_name(index), reason)
    return image


def _labels(source: Source, indices: Sequence[int]) -> Int64[Tensor, " B"] | None:
    if source.classes is None:
        return None
    labels = [source.label(index) for index in indices]
    return torch.tensor([-1 if label is None else label for label in labels], dtype=torch.int64)
