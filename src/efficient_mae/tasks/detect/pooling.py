"""What the heads of Mask R-CNN see of a proposal.

B images, h x w a level of the pyramid, n boxes of all images, s x s places of each.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

# Side of the boxes that are taken from the level of this stride, as torchvision has it: larger ones are from coarser.
_CANONICAL_SIDE, _CANONICAL_STRIDE = 224, 16


class AlignedPool(nn.Module):
    """Parts of a pyramid's maps, each from the level that fits its size, as ViTDet takes them.

    torchvision's MultiScaleRoIAlign has a map's first place lie at the edge; here, as in detectron2, its middle lies
    half a stride inside. And strides are given: torchvision guesses them by how large images are.

    Args:
        side: s.
        strides: of the levels in pixels, each twice the one before.
    """

    def __init__(self, side: int, strides: Sequence[int]):
        super().__init__()
        self.side, self.strides = side, tuple(strides)
        octaves = [stride.bit_length() - 1 for stride in (*strides, _CANONICAL_STRIDE)]
        self._level = LevelMapper(octaves[0], octaves[-2], _CANONICAL_SIDE, octaves[-1])

    def forward(
        self,
        maps: Mapping[str, Float[Tensor, "B width _ _"]],
        boxes: list[Float[Tensor, "_ 4"]],
        sizes: Sequence[tuple[int, int]],
    ) -> Float[Tensor, "n width s s"]:
        """
        Args:
            maps: the levels, named `0`, `1`, ...; others are passed over.
            boxes: of each image, left, top, right and bottom in pixels.
            sizes: of the images; torchvision's pooling needs them.
        """
        of_image = torch.cat([one.new_full((len(one), 1), number) for number, one in enumerate(boxes)])
        regions, levels = torch.cat([of_image, torch.cat(boxes)], dim=1), self._level(boxes)
        pooled = maps["0"].new_zeros(len(regions), maps["0"].shape[1], self.side, self.side)
        for number, stride in enumerate(self.strides):
            here = torch.where(levels == number)[0]
            pooled[here] = roi_align(
                maps[str(number)], regions[here], self.side, 1 / stride, sampling_ratio=0, aligned=True
            )
        return pooled
