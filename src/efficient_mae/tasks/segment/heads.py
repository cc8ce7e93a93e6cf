"""UPerNet's parts: the pyramid of a plain ViT, the head, and the auxiliary head.

Their parameters carry mmsegmentation's names, but for those within a unit of convolution, norm and ReLU, which are
torchvision's.

B images, D_i x h_i x w_i the map of a level, the first level the finest; K classes.

Source: Xiao et al. 2018, UPerNet; the pyramid is that of BEiT and MAE on ADE20K.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

# Sides of the grids to which the coarsest level is pooled.
POOL_SIDES = (1, 2, 3, 6)
# Of a class' first weights.
_CLASSIFIER_STD = 0.01


class PlainPyramid(nn.Module):
    """Levels of 4, 2, 1 and 1/2 times the grid, of four feature maps of a plain ViT; all keep their width.

    Args:
        dim: D.
    """

    def __init__(self, dim: int):
        super().__init__()
        up = [nn.ConvTranspose2d(dim, dim, 2, stride=2) for _ in range(3)]
        self.fpn1 = nn.Sequential(up[0], nn.BatchNorm2d(dim), nn.GELU(), up[1])
        self.fpn2 = nn.Sequential(up[2])
        self.fpn4 = nn.MaxPool2d(2)

    def forward(self, maps: Sequence[Float[Tensor, "B D h w"]]) -> list[Float[Tensor, "B D _ _"]]:
        return [self.fpn1(maps[0]), self.fpn2(maps[1]), maps[2], self.fpn4(maps[3])]


class NormedStages(nn.Module):
    """A Swin's own pyramid, each level with a layer norm of its own.

    Args:
        dims: D_i.
    """

    def __init__(self, dims: Sequence[int]):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)

    def forward(self, maps: Sequence[Float[Tensor, "B _ _ _"]]) -> list[Float[Tensor, "B _ _ _"]]:
        return [norm(one.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, one in zip(self.norms, maps, strict=True)]


class UPerHead(nn.Module):
    """Pooling of the coarsest level, a way down through the others, and classes at the finest.

    Args:
        dims: D_i.
        width: of the head's own maps.
        num_classes: K.
        dropout: share of the channels, before the classes.
    """

    def __init__(self, dims: Sequence[int], width: int, num_classes: int, dropout: float = 0.1):
        super().__init__()
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), _unit(dims[-1], width, 1)) for side in POOL_SIDES
        )
        self.bottleneck = _unit(dims[-1] + len(POOL_SIDES) * width, width, 3)
        self.lateral_convs = nn.ModuleList(_unit(dim, width, 1) for dim in dims[:-1])
        self.fpn_convs = nn.ModuleList(_unit(width, width, 3) for _ in dims[:-1])
        self.fpn_bottleneck = _unit(len(dims) * width, width, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = _classifier(width, num_classes)

    def forward(self, levels: Sequence[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B K h w"]:
        top = levels[-1]
        pooled = [resize(pool(top), top) for pool in self.psp_modules]
        maps = [self.bottleneck(torch.cat([top, *pooled], dim=1))]  # from the coarsest up to the finest
        for lateral, level in zip(reversed(self.lateral_convs), reversed(levels[:-1]), strict=True):
            finer = lateral(level)
            maps.append(finer + resize(maps[-1], finer))
        fused = [maps[0], *(conv(one) for conv, one in zip(reversed(self.fpn_convs), maps[1:], strict=True))]
        same = [resize(one, fused[-1]) for one in reversed(fused)]
        return self.conv_seg(self.dropout(self.fpn_bottleneck(torch.cat(same, dim=1))))


class FCNHead(nn.Module):
    """Classes of one level, an auxiliary task in training.

    Args:
        dim: of the level.
        width: of the head's own map.
        num_classes: K.
        dropout: share of the channels, before the classes.
    """

    def __init__(self, dim: int, width: int, num_classes: int, dropout: float = 0.1):
        super().__init__()
        self.convs = nn.Sequential(_unit(dim, width, 3))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = _classifier(width, num_classes)

    def forward(self, level: Float[Tensor, "B D h w"]) -> Float[Tensor, "B K h w"]:
        return self.conv_seg(self.dropout(self.convs(level)))


def resize(maps: Float[Tensor, "B D _ _"], like: Tensor | tuple[int, int]) -> Float[Tensor, "B D _ _"]:
    """Bilinear, to the (height, width) of another map or to one given."""
    size = tuple(like.shape[-2:]) if isinstance(like, Tensor) else like
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size, mode="bilinear", align_corners=False)


def _unit(dim: int, width: int, side: int) -> nn.Module:
    return Conv2dNormActivation(dim, width, side)


def _classifier(width: int, num_classes: int) -> nn.Conv2d:
    conv = nn.Conv2d(width, num_classes, 1)
    nn.init.normal_(conv.weight, std=_CLASSIFIER_STD)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
