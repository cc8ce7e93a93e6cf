"""Whether another library's transform makes of an image the pixels that evaluation here makes of it.

C channels, h x w pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from efficient_mae.data import EvalTransform, crop_share, normalize, to_channels
from efficient_mae.data.images.decode import MODES
from efficient_mae.interop import ImageStatistics
from efficient_mae.interop.vit_mae import quiet

# Average difference, of 255 grey levels, up to which pixels count as the same: rounding makes a quarter of a level
# at most, a crop that lies a pixel beside some 15.
SAME_PIXELS = 1.0

# Of an image in one of `MODES`, with the model's channels, to normalised pixels.
Transform = Callable[[Image.Image], Float[Tensor, "C h w"]]


@dataclass(frozen=True)
class TransformCheck:
    """How far a transform's pixels are from those that are evaluated.

    Attributes:
        largest_difference: average over an image's pixels, of 255 grey levels, for images that it is right for; None
            where it is for none.
        remarks: a line for each kind of image of which it makes something else.
    """

    largest_difference: float | None
    remarks: list[str]


def check_transform(
    transform: Transform, img_size: tuple[int, int], in_chans: int, statistics: ImageStatistics
) -> TransformCheck:
    """Compare a transform with :class:`EvalTransform` on images larger than the model's, wide and tall, and of its size.

    Args:
        img_size: (height, width) that the model takes.
        in_chans: C.
        statistics: by which its images are normalised.
    """
    if in_chans not in MODES:
        return TransformCheck(None, [f"{in_chans} channels: evaluation here makes no such images"])
    (height, width), ours = img_size, EvalTransform(img_size, in_chans)
    share = crop_share(img_size)

    def difference(size: tuple[int, int]) -> float:
        image = _picture(size, in_chans)
        wanted = normalize(ours(image)[None], statistics.mean, statistics.std)[0]
        levels = 255 * torch.tensor(statistics.std).view(-1, 1, 1)
        return ((transform(image) - wanted) * levels).abs().mean().item()

    # Twice the size that they are brought to, and a margin by which no library's rounding of crops shows.
    tall, wide = 2 * int(height / share), 2 * int(width / share)
    found = {
        f"images of {width} x {height} pixels, which evaluation here leaves as they are": difference(img_size),
        f"other images than of {width} x {height} pixels, of which evaluation here shows the middle {share:.1%}": max(
            difference((tall, wide + 16)), difference((tall + 16, wide))
        ),
    }
    same = [value for value in found.values() if value <= SAME_PIXELS]
    remarks = [
        f"{kind}: its pixels differ from ours by {value:.0f} of 255 levels on average"
        for kind, value in found.items()
        if value > SAME_PIXELS
    ]
    return TransformCheck(max(same, default=None), remarks)


def _picture(size: tuple[int, int], in_chans: int) -> Image.Image:
    """Noise over a gradient: structure at every scale. (height, width) in pixels."""
    height, width = size
    ramp = np.linspace(0, 120, height)[:, None, None] + np.linspace(0, 80, width)[None, :, None]
    noise = np.random.default_rng(0).integers(0, 56, (height, width, 3))
    return to_channels(Image.fromarray((ramp + noise).astype(np.uint8)), in_chans)


def timm_transform(folder: Path) -> Transform:
    """What timm makes of images for the model in a folder."""
    vit: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    made: Any = timm.data.create_transform(**timm.data.resolve_model_data_config(vit), is_training=False)
    return made


def transformers_transform(folder: Path) -> Transform:
    """What transformers makes of images for the model in a folder."""
    import transformers

    with quiet(transformers):
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    return lambda image: processor(image, return_tensors="pt")["pixel_values"][0]
