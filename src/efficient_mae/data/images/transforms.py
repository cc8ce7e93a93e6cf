"""From an image to pixels for the model.

Letters: B images, R crops of an image, C channels, H and W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from PIL import Image
from torch import Tensor
from torch._guards import detect_fake_mode

from efficient_mae.data.images.crops import Crop, as_read, cut, random_resized_crop_box, resize_raster, to_tensor
from efficient_mae.data.images.decode import OpenedImage, damage_named
from efficient_mae.data.images.reading import Reading
from efficient_mae.errors import InputError

# MAE evaluates 224 pixels from the middle of an image whose shorter side was brought to 256, and of larger sizes all.
_EVAL_SHARE, _LARGEST_CROPPED = 224 / 256, 224


class PretrainTransform:
    """Random resized crop and random flip (Sec. 5.1; He et al. 2022, Table 8, names the crop alone)."""

    def __init__(
        self,
        img_size: tuple[int, int],
        reading: Reading,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: bool = True,
    ) -> None:
        """
        Args:
            img_size: (height, width) of the result in pixels.
            reading: how images are read.
            scale, ratio: see `random_resized_crop_box`.
            hflip: mirror every other image, left to right.

        Raises:
            InputError: bounds that cannot be.
        """
        if not 0 < scale[0] <= scale[1] <= 1:
            raise InputError(f"scale={scale}: the crop's share of the area must be 0 < smallest <= largest <= 1")
        if not 0 < ratio[0] <= ratio[1]:
            raise InputError(f"ratio={ratio}: the crop's width / height must be 0 < smallest <= largest")
        self.reading, self.img_size = reading, img_size
        self.scale = scale
        self.ratio = ratio
        self.hflip = hflip

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the result: channels, height, width."""
        return self.reading.in_chans, *self.img_size

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Shaped[Tensor, "C H W"]:
        """The same pixels for the same image and the same state of `rng`."""
        return self.crops(OpenedImage(image, "image"), [rng])[0]

    def crops(self, image: OpenedImage, rngs: Collection[np.random.Generator]) -> Shaped[Tensor, "R C H W"]:
        """A crop for each generator, of an image that is decoded once.

        Raises:
            UnreadableImage: the image turns out to be damaged, or cannot be read so.
        """
        return cut(image, [self.draw(image.size, rng) for rng in rngs], self.reading, self.img_size)

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> Crop:
        """A random part of an image of this (width, height), mirrored or not."""
        width, height = size
        top, left, h, w = random_resized_crop_box(height, width, self.scale, self.ratio, rng)
        return Crop(top, left, h, w, flip=self.hflip and bool(rng.random() < 0.5))


class EvalTransform:
    """The middle of an image: resized so that the crop is a share of the side that fits tighter, then cropped.

    The share is :func:`crop_share`'s. An image that already has the wanted size is left as it is.
    """

    def __init__(self, img_size: tuple[int, int], reading: Reading) -> None:
        """
        Args:
            img_size: (height, width) of the result in pixels.
            reading: how images are read.
        """
        self.reading, self.img_size = reading, img_size

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the result: channels, height, width."""
        return self.reading.in_chans, *self.img_size

    def __call__(self, image: OpenedImage | Image.Image) -> Shaped[Tensor, "C H W"]:
        """The pixels, uint8 or float32 from 0 to 1 as the reading says.

        Raises:
            UnreadableImage: the image turns out to be damaged, or cannot be read so.
        """
        opened = image if isinstance(image, OpenedImage) else OpenedImage(image, "image")
        (height, width), reading = self.img_size, self.reading
        same = opened.size == (width, height)
        box = (0.0, 0.0, float(width), float(height)) if same else self._box(*opened.size)
        if (raster := opened.raster(reading)) is not None:
            with damage_named(opened.name):
                return resize_raster(raster, reading, box, self.img_size, alone=same)
        picture = opened.decode(reading.in_chans, max_megapixels=reading.max_megapixels).image
        if not same:
            picture = picture.resize((width, height), Image.Resampling.BICUBIC, box=box)
        return as_read(to_tensor(picture), reading)

    def _box(self, image_width: int, image_height: int) -> tuple[float, float, float, float]:
        """The part of the image that the crop shows, (left, top, right, bottom) in its own pixels.

        Resizing this part alone gives the pixels of resizing the whole and cropping, to rounding, and does not
        make a gigapixel of a banner 30,000 wide and 2 high.
        """
        height, width = self.img_size
        share = crop_share((height, width))
        full_h, full_w = int(height / share), int(width / share)
        # How torchvision rounds the longer side where the result is square, and timm where it isn't.
        whole = int if height == width else round
        if full_h * image_width >= full_w * image_height:
            full_w = whole(full_h * image_width / image_height)
        else:
            full_h = whole(full_w * image_height / image_width)
        top, left = round((full_h - height) / 2), round((full_w - width) / 2)
        across, down = image_width / full_w, image_height / full_h
        return left * across, top * down, (left + width) * across, (top + height) * down


def crop_share(img_size: tuple[int, int], images: tuple[int, int] | None = None) -> float:
    """Share of a resized image's tighter side that evaluation shows: MAE's 224 / 256 up to 224 pixels, beyond all.

    Args:
        img_size: (height, width) of the result in pixels.
        images: (height, width) of all images, where they have one. If it is the result's, they are shown whole.
    """
    return _EVAL_SHARE if max(img_size) <= _LARGEST_CROPPED and images != img_size else 1.0


def normalize(
    images: Shaped[Tensor, "B C H W"], mean: Sequence[float], std: Sequence[float]
) -> Float32[Tensor, "B C H W"]:
    """(images - mean) / std, on the images' device, of images in uint8 divided by 255, in float32 as they are.

    Args:
        mean, std: one number a channel, for pixels from 0 to 1.

    Raises:
        InputError: there are not as many numbers as channels.
    """
    if not len(mean) == len(std) == images.shape[1]:
        raise InputError(
            f"images with {images.shape[1]} channels, but {len(mean)} means and {len(std)} standard deviations"
        )
    # Where tensors hold no numbers, none are kept for later.
    affine = _affine.__wrapped__ if detect_fake_mode() else _affine
    white = 1 if images.is_floating_point() else 255
    factor, offset = affine(tuple(mean), tuple(std), white, images.device)
    return images.to(torch.float32, copy=True).mul_(factor).add_(offset)


@lru_cache(maxsize=16)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], white: int, device: torch.device
) -> tuple[Float32[Tensor, "C 1 1"], Float32[Tensor, "C 1 1"]]:
    """Factor and offset by channel; kept, as copying them to a GPU at every step would make the host wait."""
    means, stds = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    factor, offset = 1 / (white * stds), -means / stds
    return factor.float().reshape(-1, 1, 1).to(device), offset.float().reshape(-1, 1, 1).to(device)
