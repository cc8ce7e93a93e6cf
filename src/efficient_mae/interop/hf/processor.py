"""A picture in any mode as a model of 1 (grey) or 4 (RGBA) channels takes it: goes with an export for transformers.

It stands alone: transformers runs it where efficient-mae isn't installed.
"""

from typing import Any

import torch
from PIL import Image
from transformers import ViTImageProcessor


class OwnModeProcessor(ViTImageProcessor):
    """transformers' own, for PIL images in any mode; transparent parts lie on white where the model takes grey ones.

    Such images are resized here already: an image in mode RGBA must be while its colours are weighted by its alpha.
    """

    def process_image(self, image: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        if isinstance(image, Image.Image):
            image = self._resized(_converted(image, "L" if len(self.image_mean) == 1 else "RGBA"))
        return super().process_image(image, *arguments, **options)

    def _resized(self, image: Image.Image) -> Image.Image:
        short = self.size["shortest_edge"]
        # As torchvision rounds: down.
        size = (short, int(short * image.height / image.width))
        if image.width > image.height:
            size = (int(short * image.width / image.height), short)
        return image.resize(size, Image.Resampling.BICUBIC)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    transparent = image.has_transparency_data
    if transparent:
        image = image.convert("RGBA")
        if mode != "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode not in ("1", "L"):
        image = image.convert("RGB")
    return image.convert(mode)
