"""Augmentation for training with labels: a random crop, then timm's RandAugment.

Letters: R crops of an image, C channels, H and W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image
from timm.data.auto_augment import posterize, rand_augment_transform
from torch import Tensor

from efficient_mae.channels import default_mean_std
from efficient_mae.data.batches.generators import seeded_generators
from efficient_mae.data.images.crops import to_tensor
from efficient_mae.data.images.decode import OpenedImage, to_channels
from efficient_mae.data.images.reading import Reading
from efficient_mae.data.images.transforms import PretrainTransform
from efficient_mae.errors import InputError

# timm's transforms_imagenet_train: the largest translation, as a share of the shorter side.
_LARGEST_TRANSLATION = 0.45


class AugmentTransform:
    """Random resized crop, random flip, and RandAugment if so wished."""

    def __init__(
        self,
        img_size: tuple[int, int],
        reading: Reading,
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        hflip: bool = True,
        auto_augment: str | None = None,
    ) -> None:
        """
        Args:
            img_size: (height, width) of the result in pixels.
            reading: how images are read.
            scale, hflip: see `PretrainTransform`.
            auto_augment: timm's description of a RandAugment, `rand-m9-mstd0.5-inc1`; None for none. It works on
                RGB: grey images are made RGB for it, then grey again.

        Raises:
            InputError: a description that timm doesn't understand, RandAugment of other pixels than 8 bits of grey
                or RGB, or as `PretrainTransform`.
        """
        self._crop = PretrainTransform(img_size, reading, scale=scale, hflip=hflip)
        self._in_chans = in_chans = reading.in_chans
        self._augment: Any = None
        if auto_augment is not None:
            if in_chans not in (1, 3) or reading.value_range is not None:
                pixels = f"{in_chans} channels" if reading.value_range is None else "a value_range"
                raise InputError(
                    f"auto_augment={auto_augment}: works on 8 bits of 1 or 3 channels, not {pixels}; set it to null"
                )
            self._crop = PretrainTransform(img_size, replace(reading, in_chans=3), scale=scale, hflip=hflip)
            # What a shifted or rotated image leaves bare: ImageNet's mean, timm's choice.
            fill = tuple(round(255 * value) for value in default_mean_std(3)[0])
            limits = {"translate_const": int(min(img_size) * _LARGEST_TRANSLATION), "img_mean": fill}
            try:
                augment = rand_augment_transform(auto_augment, {**limits, "interpolation": Image.Resampling.BICUBIC})
            except (AssertionError, ValueError, KeyError):
                raise InputError(
                    f"auto_augment={auto_augment!r}: must be a RandAugment of timm's, such as rand-m9-mstd0.5-inc1"
                ) from None
            for operation in augment.ops:
                if operation.aug_fn is posterize:
                    operation.aug_fn = _posterize
            self._augment = augment

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Shaped[Tensor, "C H W"]:
        """The same pixels for the same image and the same state of `rng`."""
        return self.crops(OpenedImage(image, "image"), [rng])[0]

    def crops(self, image: OpenedImage, rngs: Collection[np.random.Generator]) -> Shaped[Tensor, "R C H W"]:
        """As :meth:`PretrainTransform.crops`."""
        crops = self._crop.crops(image, rngs)
        if self._augment is None:
            return crops
        return torch.stack([self._augmented(crop, rng) for crop, rng in zip(crops, rngs, strict=True)])

    def _augmented(self, crop: UInt8[Tensor, "3 H W"], rng: np.random.Generator) -> UInt8[Tensor, "C H W"]:
        image = Image.fromarray(crop.permute(1, 2, 0).numpy())
        with seeded_generators(rng):
            image = self._augment(image)
        return to_tensor(to_channels(image, self._in_chans))


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """timm's, which at full strength asks for 0 bits: a black image, until Pillow 13 began to refuse it."""
    return posterize(image, bits, **options) if bits > 0 else Image.new(image.mode, image.size)
