"""UPerNet on an encoder of ours, in timm's model; and what a file of one holds.

B images, C channels, h x w pixels; K classes at a quarter of the patches' (or a Swin's first) stride, H x W.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from efficient_mae.backbones import BACKBONES, Backbone
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine.storage.checkpoint import load_model
from efficient_mae.engine.storage.durable import replace_tensors
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics, file_metadata
from efficient_mae.interop.classifiers import hollow
from efficient_mae.interop.files import read_heads
from efficient_mae.interop.headers import TaskHeads, foreign
from efficient_mae.ranges import (
    NonNegativeInt,
    Positive,
    PositiveInt,
    Probability,
    Settings,
    Share,
    with_tuples,
)
from efficient_mae.tasks.downstream import feature_maps, timm_encoder
from efficient_mae.tasks.segment.heads import FCNHead, NormedStages, PlainPyramid, UPerHead
from efficient_mae.tasks.segment.relative import with_relative_positions

# The task's name in files.
SEGMENT = "segment"
# Shares of a plain ViT's depth after which features are taken: blocks 4, 6, 8 and 12 of 12.
_DEPTHS = (4 / 12, 6 / 12, 8 / 12, 1)
# The level that the auxiliary head sees.
_AUXILIARY_LEVEL = 2


@dataclass(frozen=True)
class UPerNetConfig(Settings):
    """What the heads are built by, and how label maps number the classes.

    Attributes:
        width, aux_width: of the head's and the auxiliary head's own maps.
        dropout: share of the channels, before the classes.
        relative_positions: whether a plain ViT also learns a bias by relative position in each block.
        first_label: number in label maps of the first class: 1 where 0 stands for none, as in ADE20K.
        stride, flip_test, scales: how whole images are segmented; see `SegmentConfig`.
    """

    width: PositiveInt
    aux_width: PositiveInt = 256
    dropout: Probability = 0.1
    relative_positions: bool = False
    first_label: NonNegativeInt = 0
    stride: Share = 2 / 3
    flip_test: bool = False
    scales: tuple[Positive, ...] = (1.0,)


class UPerNet(nn.Module):
    """From normalised images to logits.

    Args:
        encoder: whose weights are copied.
        num_classes: K.
        config: of the heads.
        drop_path: share of the images for which the last block is skipped in training; grows from 0 in the first.

    Attributes:
        encoder: timm's model.

    Raises:
        InputError: the encoder has too few patches, or too few stages.
    """

    def __init__(self, encoder: Backbone, num_classes: int, config: UPerNetConfig, drop_path: float = 0.0):
        super().__init__()
        self.img_size = encoder.img_size
        self.places = feature_places(encoder)
        make = with_relative_positions if config.relative_positions else timm_encoder
        self.encoder = make(encoder, drop_path)
        plain = len(encoder.strides) == 1
        dims = encoder.dims * len(self.places) if plain else encoder.dims
        self.neck = PlainPyramid(encoder.dims[0]) if plain else NormedStages(dims)
        self.decode_head = UPerHead(dims, config.width, num_classes, config.dropout)
        self.auxiliary_head = FCNHead(dims[_AUXILIARY_LEVEL], config.aux_width, num_classes, config.dropout)

    @property
    def heads(self) -> list[nn.Module]:
        """All but the encoder."""
        return [self.neck, self.decode_head, self.auxiliary_head]

    def forward(self, images: Float[Tensor, "B C h w"]) -> tuple[Float[Tensor, "B K H W"], Float[Tensor, "B K _ _"]]:
        """Logits, and the auxiliary head's."""
        levels = self._levels(images)
        return self.decode_head(levels), self.auxiliary_head(levels[_AUXILIARY_LEVEL])

    def segment(self, images: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K H W"]:
        """Logits alone."""
        return self.decode_head(self._levels(images))

    def _levels(self, images: Tensor) -> list[Tensor]:
        return self.neck(feature_maps(self.encoder, images, self.places))


def feature_places(encoder: Backbone) -> tuple[int, ...]:
    """Blocks of a plain ViT, or stages of a Swin, counted from 0, after which features are taken.

    Raises:
        InputError: there are none of which four levels can be made.
    """
    rows, columns = encoder.last_grid
    if len(encoder.strides) > 1:
        if len(encoder.strides) <= _AUXILIARY_LEVEL:
            raise InputError(f"an encoder of {len(encoder.strides)} stages: UPerNet takes features of 3 at least")
        return tuple(range(len(encoder.strides)))
    if min(rows, columns) < 2:
        height, width = encoder.img_size
        raise InputError(f"img_size={height}x{width}: {rows} x {columns} patches: UPerNet halves them, take more")
    depth = int(encoder.arguments["depth"])
    return tuple(max(1, round(depth * share)) - 1 for share in _DEPTHS)


@dataclass(frozen=True)
class Segmenter:
    """A trained UPerNet.

    Attributes:
        model: in evaluation mode.
        encoder: that it has, without its numbers.
        heads: say the classes and what the heads are built by.
        statistics: of its images.
    """

    model: UPerNet
    encoder: Backbone
    heads: TaskHeads
    statistics: ImageStatistics

    @property
    def config(self) -> UPerNetConfig:
        """What the heads are built by, and how images are segmented."""
        return UPerNetConfig(**with_tuples(self.heads.arguments))


def describe(config: UPerNetConfig, classes: tuple[str, ...]) -> TaskHeads:
    """What a file says of the heads."""
    return TaskHeads(SEGMENT, classes, asdict(config))


def save_segmenter(file: Path, segmenter: Segmenter) -> None:
    """Write a UPerNet: timm's parameter names behind `encoder.`, and the heads'.

    Raises:
        OSError: the disk is full or not writable.
    """
    metadata = file_metadata(segmenter.encoder, segmenter.statistics, segmenter.heads)
    replace_tensors(file, segmenter.model.state_dict(), metadata)


@torch_seeded(0)
def load_segmenter(path: str | Path) -> Segmenter:
    """A trained UPerNet, in evaluation mode. Nothing in a file is ever run.

    Args:
        path: a run directory of `emae segment`, or what it wrote there.

    Raises:
        InputError: nothing there, something that holds no UPerNet, or a damaged file.
    """
    file, header, heads = read_heads(path, SEGMENT)
    try:
        config = UPerNetConfig(**with_tuples(heads.arguments))
        encoder = BACKBONES[header.backbone](**with_tuples(header.model))
    except (KeyError, TypeError):
        raise foreign(file) from None
    model = UPerNet(encoder, len(heads.classes), config)
    load_model(file, model)
    return Segmenter(model.eval(), hollow(encoder), heads, header.statistics)
