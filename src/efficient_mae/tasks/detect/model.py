"""Mask R-CNN of torchvision's parts on an encoder of ours; and what a file of one holds.

B images, C channels, H x W pixels, all of which an image may not fill.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from efficient_mae.backbones import Backbone
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine.storage.checkpoint import load_model
from efficient_mae.engine.storage.durable import replace_tensors
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics, file_metadata
from efficient_mae.interop.classifiers import hollow
from efficient_mae.interop.files import load_own, read_heads
from efficient_mae.interop.headers import TaskHeads, foreign
from efficient_mae.methods import backbone_of
from efficient_mae.ranges import NonNegativeInt, PositiveInt, Settings, with_tuples
from efficient_mae.tasks.detect.backbone import ChannelNorm, SimplePyramid, WindowedViT
from efficient_mae.tasks.detect.pooling import AlignedPool
from efficient_mae.tasks.downstream import feature_maps, timm_encoder

# The task's name in files.
DETECT = "detect"
# Boxes that are tried at each place: of this side times the stride of the level, of these heights over widths.
_ANCHOR_STRIDES, _ANCHOR_RATIOS = 8, (0.5, 1.0, 2.0)
# Places of an image that proposals are learned of, and of those that the heads learn of, objects at most.
_PLACES, _OBJECTS = 256, 0.25
# Proposals of a level before those that overlap are left out, in training and judged, and of an image after.
_CANDIDATES, _KEPT = {"training": 2000, "testing": 1000}, {"training": 1000, "testing": 1000}
# Sides of what the heads see of a proposal.
_BOX_SIDE, _MASK_SIDE = 7, 14
# Width of the box head's linear map, times that of its convolutions.
_LINEAR = 4
# Least score that an object is named with, and most objects of an image, as COCO counts them.
_LEAST_SCORE, MOST_OBJECTS = 0.05, 100


@dataclass(frozen=True)
class DetectorConfig(Settings):
    """What is built on an encoder.

    Attributes:
        img_size: (H, W).
        window_size: side of a plain ViT's windows, in patches.
        global_blocks: blocks of a plain ViT that attend everywhere.
        width: of the pyramid and of the heads' convolutions; the linear map of boxes is four times as wide.
        proposals: of an image, that the heads learn of.
        category_ids: numbers of the classes in COCO's files.
    """

    img_size: tuple[PositiveInt, PositiveInt]
    window_size: PositiveInt = 14
    global_blocks: NonNegativeInt = 4
    width: PositiveInt = 256
    proposals: PositiveInt = 512
    category_ids: tuple[int, ...] = ()


class Detector(nn.Module):
    """From normalised images to losses in training, and to boxes and masks.

    Args:
        encoder: whose weights are copied.
        num_classes: of objects.
        config: of all else.
        drop_path: share of the images for which the last block is skipped in training; grows from 0 in the first.
        grad_checkpointing: recompute each block in the backward pass.

    Attributes:
        encoder: timm's model.

    Raises:
        InputError: no pyramid can be made of the encoder's features of such images.
    """

    def __init__(
        self,
        encoder: Backbone,
        num_classes: int,
        config: DetectorConfig,
        drop_path: float = 0.0,
        grad_checkpointing: bool = False,
    ):
        super().__init__()
        check_sizes(encoder, config.img_size)
        self.encoder = timm_encoder(encoder, drop_path)
        self.stages: tuple[int, ...] = tuple(range(len(encoder.strides))) if len(encoder.strides) > 1 else ()
        if self.stages:
            self.encoder.set_grad_checkpointing(grad_checkpointing)
            self.windows, levels = None, len(self.stages)
            self.neck: nn.Module = FeaturePyramidNetwork(
                list(encoder.dims), config.width, LastLevelMaxPool(), norm_layer=ChannelNorm
            )
        else:
            grid = config.img_size[0] // encoder.patch_size, config.img_size[1] // encoder.patch_size
            self.windows = WindowedViT(
                self.encoder, grid, config.window_size, config.global_blocks, grad_checkpointing
            )
            self.neck, levels = SimplePyramid(encoder.dims[0], config.width), 4
            self.encoder.cls_token.requires_grad_(False)  # not seen
        finest = min(encoder.strides) if self.stages else encoder.patch_size // 4
        strides = [finest * 2**level for level in range(levels + 1)]
        self.proposals = config.proposals
        self.rpn: Any
        self.roi_heads: Any
        self.rpn, self.roi_heads = _mask_rcnn(num_classes, config.width, config.proposals, strides)

    @property
    def heads(self) -> list[nn.Module]:
        """All that follows the encoder's last block."""
        return [self.neck, self.rpn, self.roi_heads]

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        sizes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Losses by name, in training mode; in evaluation mode, a sum of what takes as much memory at least.

        That is made of no numbers, so that it can be counted on tensors that hold none: which proposals are kept
        depends on them. It is of as many proposals as the heads learn of at most.

        Args:
            sizes: (height, width) that each image fills, from the upper left corner.
            targets: as torchvision's Mask R-CNN takes them.
        """
        features = self.features(images)
        if not self.training:
            return {"memory": self._of_fixed_size(features)}
        with _whole_numbers(images.device):
            proposals, of_proposals = self.rpn(ImageList(images, sizes), features, targets)
            _, of_heads = self.roi_heads(features, proposals, sizes, targets)
        return {**of_proposals, **of_heads}

    def detect(self, images: Float[Tensor, "B C H W"], sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Of each image `boxes` (n, 4), `labels`, `scores` (n,), and `masks` (n, 1, 28, 28), shares within the boxes.

        In evaluation mode.
        """
        features = self.features(images)
        with _whole_numbers(images.device):
            proposals, _ = self.rpn(ImageList(images, sizes), features)
            found, _ = self.roi_heads(features, proposals, sizes)
        return found

    def features(self, images: Float[Tensor, "B C H W"]) -> "OrderedDict[str, Tensor]":
        """The pyramid, in float32, the finest level first."""
        if self.windows is None:
            maps = feature_maps(self.encoder, images, self.stages)
            levels = self.neck(OrderedDict((str(number), one) for number, one in enumerate(maps)))
        else:
            levels = self.neck(self.windows(self.encoder, images))
        return OrderedDict((name, level.float()) for name, level in levels.items())

    def _of_fixed_size(self, features: "OrderedDict[str, Tensor]") -> Tensor:
        images, (width, heads) = len(features["0"]), (features["0"].shape[1], self.roi_heads)
        with _whole_numbers(features["0"].device):
            logits, boxes = self.rpn.head(list(features.values()))
            shown = features["0"].new_zeros(images * self.proposals, width, _BOX_SIDE, _BOX_SIDE)
            scores, corners = heads.box_predictor(heads.box_head(shown))
            shown = shown.new_zeros(round(images * self.proposals * _OBJECTS), width, _MASK_SIDE, _MASK_SIDE)
            masks = heads.mask_predictor(heads.mask_head(shown))
        return sum(one.sum() for one in (*logits, *boxes, scores, corners, masks))  # pyright: ignore[reportReturnType]


# Under autocast too what is told of boxes is float32: torchvision takes the type of all that is made of them from it,
# and bfloat16 has no odd pixel beyond 256.
class _Proposing(RPNHead):
    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [one.float() for one in logits], [one.float() for one in deltas]


class _BoxPredictor(FastRCNNPredictor):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()


class _MaskPredictor(MaskRCNNPredictor):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()


class Anchors(AnchorGenerator):
    """torchvision's, copied by what they are made of: they hold tensors that are no buffers."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Anchors":
        return Anchors(self.sizes, self.aspect_ratios)


def _mask_rcnn(num_classes: int, width: int, proposals: int, strides: list[int]) -> tuple[nn.Module, nn.Module]:
    """Proposals of all levels, and heads of boxes and masks of all but the coarsest, as ViTDet has them.

    Losses, first weights and masks are torchvision's; docs/readings.md says in what they differ.

    Args:
        strides: of the levels, in pixels.
    """
    anchors = Anchors(tuple((_ANCHOR_STRIDES * one,) for one in strides), (_ANCHOR_RATIOS,) * len(strides))
    rpn = RegionProposalNetwork(
        anchors,
        _Proposing(width, len(_ANCHOR_RATIOS), conv_depth=2),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=_PLACES,
        positive_fraction=0.5,
        pre_nms_top_n=_CANDIDATES,
        post_nms_top_n=_KEPT,
        nms_thresh=0.7,
    )
    normed: Any = {"norm_layer": ChannelNorm}
    heads = RoIHeads(
        AlignedPool(_BOX_SIDE, strides[:-1]),
        FastRCNNConvFCHead((width, _BOX_SIDE, _BOX_SIDE), [width] * 4, [_LINEAR * width], **normed),
        _BoxPredictor(_LINEAR * width, num_classes + 1),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=proposals,
        positive_fraction=_OBJECTS,
        bbox_reg_weights=None,
        score_thresh=_LEAST_SCORE,
        nms_thresh=0.5,
        detections_per_img=MOST_OBJECTS,
        mask_roi_pool=AlignedPool(_MASK_SIDE, strides[:-1]),
        mask_head=MaskRCNNHeads(width, [width] * 4, 1, **normed),
        mask_predictor=_MaskPredictor(width, width, num_classes + 1),
    )
    return rpn, heads


def _whole_numbers(device: torch.device) -> torch.autocast:
    """On a CPU float32, which torchvision's operations on proposals take there alone; elsewhere as it was."""
    wanted = device.type != "cpu" and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def check_sizes(encoder: Backbone, img_size: Sequence[int]) -> None:
    """Raise InputError unless a pyramid can be made of an encoder's features of images of this size."""
    if encoder.family not in ("vit", "swin", "swinv2"):
        raise InputError(f"weights: a {encoder.family} encoder: detect takes a plain ViT's or a Swin's")
    if len(encoder.strides) > 1:
        if tuple(img_size) != encoder.img_size:
            raise InputError(f"img_size={img_size}: this {encoder.family} takes {encoder.img_size}")
        return
    patch, needed = encoder.patch_size, 4 * encoder.patch_size
    if patch < 4 or patch & (patch - 1):
        raise InputError(
            f"weights: patches of {patch} pixels: levels of a quarter to four times that need a power of two of at "
            "least 4; emae export --patch_size 16 makes others"
        )
    if any(side % needed for side in img_size):
        fit = [max(1, round(side / needed)) * needed for side in img_size]
        raise InputError(f"img_size={list(img_size)}: must be multiples of {needed}, four patches: {fit} would fit")


@dataclass(frozen=True)
class TrainedDetector:
    """A trained detector.

    Attributes:
        model: in evaluation mode.
        encoder: that it has, without its numbers.
        heads: say the classes and what all else is built by.
        config: the same.
        statistics: of its images.
    """

    model: Detector
    encoder: Backbone
    heads: TaskHeads
    config: DetectorConfig
    statistics: ImageStatistics


def describe(config: DetectorConfig, classes: tuple[str, ...]) -> TaskHeads:
    """What a file says of what is built on the encoder."""
    return TaskHeads(DETECT, classes, asdict(config))


def save_detector(
    file: Path, model: Detector, encoder: Backbone, statistics: ImageStatistics, heads: TaskHeads
) -> None:
    """Write a detector: timm's parameter names behind `encoder.`, and the rest.

    Raises:
        OSError: the disk is full or not writable.
    """
    replace_tensors(file, model.state_dict(), file_metadata(encoder, statistics, heads))


@torch_seeded(0)
def load_detector(path: str | Path) -> TrainedDetector:
    """A trained detector, in evaluation mode. Nothing in a file is ever run.

    Args:
        path: a run directory of `emae detect`, or what it wrote there.

    Raises:
        InputError: nothing there, something that holds no detector, or a damaged file.
    """
    file, header, heads = read_heads(path, DETECT)
    encoder = backbone_of(load_own(file))
    try:
        config = DetectorConfig(**with_tuples(heads.arguments))
    except TypeError:
        raise foreign(file) from None
    if len(config.category_ids) != len(heads.classes):
        raise foreign(file)
    model = Detector(encoder, len(heads.classes), config)
    load_model(file, model)
    return TrainedDetector(model.eval(), hollow(encoder), heads, config, header.statistics)
