"""Settings of `emae segment`."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from efficient_mae.ranges import (
    Location,
    NonNegative,
    Pixels,
    Positive,
    PositiveInt,
    Probability,
    Share,
)
from efficient_mae.tasks.downstream import DownstreamConfig


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(DownstreamConfig):
    """Settings of `emae segment`; the defaults are those published for MAE's ViT-B on ADE20K, 160,000 steps of 16."""

    data: Location
    """folder with images/ and annotations/ (labels/, masks/), each of training/ and validation/ (train/, val/): a
    label map is a PNG of its image's name, with a palette or grey, whose numbers are classes"""
    classes: Location | None = None
    """names of the classes, one a line (null: classes.txt or ADE20K's objectInfo150.txt in the data's folder)"""
    ignore_index: Annotated[int, Ge(0)] | None = 255
    """number in label maps of pixels that neither train nor count (null: none)"""
    reduce_zero_label: bool = False
    """0 in label maps is no class, and the first class is 1, as in ADE20K"""
    img_size: Pixels | None = 512
    """crop in pixels, one number or [height, width]; the encoder is adapted (null: what it was trained with)"""
    epochs: PositiveInt = 127
    """passes over the data"""
    batch_size: PositiveInt | None = 16
    """images of an optimiser step, over all processes (null: 256, or fewer where the data set is smaller)"""
    accum_iter: PositiveInt = 1
    """micro-batches that an optimiser step is cut into, to fit the memory; batch norm takes the statistics of each
    (of all GPUs' together), so this changes what is learned"""
    base_lr: Positive = 1.6e-3
    """learning rate at batch size 256; scales with the batch, and falls in a straight line"""
    warmup_epochs: NonNegative | None = None
    """epochs of linear warm-up (null: 1.2, or a fifth of the epochs where that is less)"""
    weight_decay: NonNegative = 0.05
    """AdamW's, on weight matrices and kernels alone"""
    layer_decay: Probability = 0.65
    """factor by which the learning rate falls from each layer of the encoder to the one before it"""
    drop_path: Annotated[float, Ge(0), Le(0.99)] = 0.1
    """share of the images for which the last block is skipped; grows from 0 in the first block"""
    relative_positions: bool = False
    """of a plain ViT: each block also learns a bias by relative position, and scales its layers, as published"""
    head_width: PositiveInt | None = None
    """channels of the head's maps (null: the width of a plain ViT, of a Swin 512)"""
    aux_width: PositiveInt = 256
    """channels of the auxiliary head's map"""
    aux_weight: NonNegative = 0.4
    """weight of the auxiliary head's loss"""
    dropout: Probability = 0.1
    """share of the channels that is dropped before the classes"""
    resize_range: tuple[Positive, Positive] = (0.5, 2.0)
    """factor, drawn evenly, by which an image is resized before it is cropped; at 1 it fits in 4 crops by 1"""
    class_share: Share = 0.75
    """share of a crop that its commonest class may have; ten places are tried for one with less"""
    hflip: bool = True
    """flip every other crop horizontally"""
    photometric: bool = True
    """change brightness, contrast, saturation and hue, each of every other crop"""
    stride: Share = 2 / 3
    """evaluation: share of the crop by which the sliding window moves"""
    flip_test: bool = False
    """evaluation: take the mean with the mirrored image"""
    scales: tuple[Positive, ...] = (1.0,)
    """evaluation: factors at which an image is looked at, of which the mean is taken"""
    grad_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, a third more work"""
