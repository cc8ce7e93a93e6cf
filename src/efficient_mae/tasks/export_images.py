"""Whether another library's transform makes of an image the pixels that evaluation here makes of it.

C channels, h x w pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm.data
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from efficient_mae.data import EvalTransform, Reading, crop_share, normalize, to_channels
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
    """Compare a transform with :class:`EvalTransform`, on images of the model's size, and larger ones, wide and tall.

    Args:
        img_size: (height, width) that the model takes.
        in_chans: C.
        statistics: by which its images are normalised.
    """
    if in_chans not in MODES:
        return TransformCheck(None, [f"its transform can't be compared: no picture has {in_chans} channels"])
    (height, width), ours = img_size, EvalTransform(img_size, Reading(in_chans))
    share = crop_share(img_size)

    def difference(size: tuple[int, int]) -> float:
        image = _picture(size, in_chans)
        wanted = normalize(ours(image)[None], statistics.mean, statistics.std)[0]
        levels = 255 * torch.tensor(statistics.std).view(-1, 1, 1)
        return ((transform(image) - wanted) * levels).abs().mean().item()

    # Images twice as large as those that are cropped, but for their longer side: what is cut off that is even.
    tall, wide = 2 * int(height / share), 2 * int(width / share)
    others = f"images of other sizes than {width} x {height}, whose middle {share:.1%} is evaluated here"
    found = {
        f"images of {width} x {height} pixels, which are left as they are here": difference(img_size),
        others: max(difference((tall, wide + 16)), difference((tall + 16, wide))),
    }
    if found[others] <= SAME_PIXELS:
        # Half of what is cut off is 1.5, 3.5, ...: torchvision and timm round it to even, transformers down.
        odd = (3 - (wide // 2 - width)) % 4
        found["one shape in four of the others, whose crop lies a pixel beside"] = difference((tall, wide + 2 * odd))
    same = [value for value in found.values() if value <= SAME_PIXELS]
    remarks = [
        f"but not for {kind}: {value:.0f} of 255 levels apart" for kind, value in found.items() if value > SAME_PIXELS
    ]
    if not statistics.reading.is_plain:
        remarks.append("but it knows neither value_range nor bands, by which images are read here")
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
    data: Any = timm.data
    return data.create_transform(**data.resolve_model_data_config(vit), is_training=False)


def transformers_transform(folder: Path) -> Transform:
    """What transformers makes of images for the model in a folder."""
    import transformers

    with quiet(transformers):
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    return lambda image: processor(image, return_tensors="pt")["pixel_values"][0]
