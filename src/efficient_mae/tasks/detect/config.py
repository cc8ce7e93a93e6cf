"""Settings of `emae detect`."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from efficient_mae.ranges import (
    Location,
    NonNegative,
    NonNegativeInt,
    Pixels,
    Positive,
    PositiveInt,
    Probability,
    Ratio,
)
from efficient_mae.tasks.downstream import DownstreamConfig


@dataclass(frozen=True, kw_only=True)
class DetectConfig(DownstreamConfig):
    """Settings of `emae detect`; the defaults are those that ViTDet published for ViT-B on COCO."""

    data: Location
    """folder in COCO's layout: annotations/instances_train*.json and instances_val*.json, and folders of images that
    are called as what follows instances_"""
    val_data: Location | None = None
    """another such folder, of whose val part the held-out images are (null: of the data's)"""
    train_annotations: Location | None = None
    """the file of the images to learn from, wherever it is (null: annotations/instances_train*.json)"""
    val_annotations: Location | None = None
    """the file of the held-out images (null: annotations/instances_val*.json)"""
    train_images: Location | None = None
    """folder of the images to learn from (null: as their file is called)"""
    val_images: Location | None = None
    """folder of the held-out images (null: as their file is called)"""
    img_size: Pixels | None = 1024
    """pixels that images are resized to and filled up to, one number or [height, width], multiples of four patches
    (null: what the encoder was trained with)"""
    epochs: PositiveInt = 100
    """passes over the data"""
    batch_size: PositiveInt | None = 64
    """images of an optimiser step, over all processes (null: 256, or fewer where the data set is smaller)"""
    base_lr: Positive = 4e-4
    """learning rate at batch size 256; scales with the batch"""
    warmup_epochs: NonNegative | None = None
    """epochs of linear warm-up (null: 0.14, COCO's 250 steps, or a fifth of the epochs where that is less)"""
    lr_drops: tuple[Ratio, ...] = (0.8889, 0.963)
    """shares of the run after the warm-up at which the learning rate falls to a tenth of what it is"""
    weight_decay: NonNegative = 0.1
    """AdamW's, on weight matrices alone"""
    layer_decay: Probability = 0.7
    """factor by which the learning rate falls from each layer to the one before it"""
    drop_path: Annotated[float, Ge(0), Le(0.99)] = 0.1
    """share of the images for which the last block is skipped; grows from 0 in the first block"""
    window_size: PositiveInt = 14
    """side, in patches, of the windows that the blocks of a plain ViT attend within"""
    global_blocks: NonNegativeInt = 4
    """blocks of a plain ViT that attend everywhere, evenly spread; the last is one of them"""
    width: PositiveInt = 256
    """channels of the pyramid and of the heads' convolutions; the linear map of boxes is four times as wide"""
    proposals: PositiveInt = 512
    """proposals of an image that the heads learn of, drawn at random, a quarter of them objects at most"""
    jitter: tuple[Positive, Positive] = (0.1, 2.0)
    """times the size with which an image just fits, from and to which it is resized, before a part is cut out"""
    hflip: bool = True
    """flip every other image horizontally"""
    grad_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, a third more work"""
