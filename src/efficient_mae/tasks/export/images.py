"""Whether another library's transform makes of an image the pixels that evaluation here makes of it.

C channels, h x w pixels.
"""

import math
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

from efficient_mae.data import EvalTransform, Reading, crop_share, normalize
from efficient_mae.data.images.decode import MODES
from efficient_mae.interop import ImageStatistics
from efficient_mae.interop.hf.images import quiet

# Average difference, of 255 grey levels, up to which pixels count as the same: rounding makes a quarter of a level
# at most, a crop that lies a pixel beside some 15.
SAME_PIXELS = 1.0

# From an image to normalised pixels.
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
    """Compare a transform with :class:`EvalTransform`, on images of the model's size, and larger ones, wide and tall;
    and on grey, coloured, transparent ones and ones with a palette.

    Args:
        img_size: (height, width) that the model takes.
        in_chans: C.
        statistics: by which its images are normalised.
    """
    if in_chans not in MODES:
        return TransformCheck(None, [f"its transform can't be compared: no picture has {in_chans} channels"])
    (height, width), ours = img_size, EvalTransform(img_size, Reading(in_chans))
    share = crop_share(img_size)

    def difference(size: tuple[int, int], mode: str = MODES[in_chans]) -> float:
        image = _picture(size, mode)
        wanted = normalize(ours(image)[None], statistics.mean, statistics.std)[0]
        levels = 255 * torch.tensor(statistics.std).view(-1, 1, 1)
        try:
            given = transform(image)
        except Exception:  # each library fails in its own way for what it can't take
            return math.inf
        return ((given - wanted) * levels).abs().mean().item() if given.shape == wanted.shape else math.inf

    # Images twice as large as those that are cropped, but for their longer side: what is cut off that is even.
    tall, wide = 2 * int(height / share), 2 * int(width / share)
    others = f"images of other sizes than {width} x {height}, whose middle {share:.1%} is evaluated here"
    sizes = {f"images of {width} x {height} pixels, which are left as they are here": [img_size]}
    sizes[others] = [(tall, wide + 16), (tall + 16, wide)]
    found = {kind: max(map(difference, examples)) for kind, examples in sizes.items()}
    right = [kind for kind, value in found.items() if value <= SAME_PIXELS]
    if others in right:
        # Half of what is cut off is 1.5, 3.5, ...: torchvision and timm round it to even, transformers down.
        odd = (3 - (wide // 2 - width)) % 4
        found["one shape in four of the others, whose crop lies a pixel beside"] = difference((tall, wide + 2 * odd))
    same = [value for value in found.values() if value <= SAME_PIXELS]
    remarks = [
        f"but not for {kind}: {value:.0f} of 255 levels apart" for kind, value in found.items() if value > SAME_PIXELS
    ]
    modes = {mode: difference(sizes[right[-1]][0], mode) for mode in _PICTURED if right}
    if wrong := [mode for mode, value in modes.items() if value > SAME_PIXELS]:
        remarks.append(
            f"but not for images in mode {', '.join(wrong)}: bring them to mode {MODES[in_chans]} first"
            + (", what is transparent on white" if in_chans != 4 else "")
        )
    if not statistics.reading.is_plain:
        remarks.append("but it knows neither value_range nor bands, by which images are read here")
    return TransformCheck(
        max(same + [value for value in modes.values() if value <= SAME_PIXELS], default=None), remarks
    )


# Modes of pictures: grey, coloured, with transparent parts, and with a palette of which one colour is transparent.
_PICTURED = ("L", "RGB", "RGBA", "P")


def _picture(size: tuple[int, int], mode: str) -> Image.Image:
    """Noise over a gradient: structure at every scale. (height, width) in pixels."""
    height, width = size
    ramp = np.linspace(0, 120, height)[:, None, None] + np.linspace(0, 80, width)[None, :, None]
    noise = np.random.default_rng(0).integers(0, 56, (height, width, 3))
    image = Image.fromarray((ramp + noise).astype(np.uint8))
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        return image
    image = image.quantize(64) if mode == "P" else image.convert(mode)
    if mode == "P":
        image.info["transparency"] = 7
    return image


def timm_transform(folder: Path) -> Transform:
    """What timm makes of images for the model in a folder."""
    vit: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    data: Any = timm.data
    return data.create_transform(**data.resolve_model_data_config(vit), is_training=False)


def transformers_transform(folder: Path) -> Transform:
    """What transformers makes of images for the model in a folder, which was written here: so is the code in it."""
    import transformers

    with quiet(transformers):
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=True
        )
    return lambda image: processor(image, return_tensors="pt")["pixel_values"][0]
