"""Images: where they come from, how they are cropped, and how they reach a training step."""

from efficient_mae.data.batches.batch import EvalBatch, TrainBatch
from efficient_mae.data.batches.datasets import TrainDataset
from efficient_mae.data.batches.device_decode import DeviceDecodeDataset
from efficient_mae.data.batches.loader import make_eval_loader, make_train_loader
from efficient_mae.data.batches.order import ResumableBatchSampler, sample_rng
from efficient_mae.data.images.augment import AugmentTransform
from efficient_mae.data.images.decode import OpenedImage, UnreadableImage, decode, open_image, to_channels
from efficient_mae.data.images.reading import Reading
from efficient_mae.data.images.transforms import (
    EvalTransform,
    PretrainTransform,
    crop_share,
    default_mean_std,
    normalize,
)
from efficient_mae.data.sources.choice import DataChoice
from efficient_mae.data.sources.describe import ImageSummary, common_size, describe_images
from efficient_mae.data.sources.labelled import LabelledData, open_labelled
from efficient_mae.data.sources.registry import Source, open_held_out, open_source
from efficient_mae.data.sources.subset import Subset, spread

__all__ = [
    "AugmentTransform",
    "DataChoice",
    "DeviceDecodeDataset",
    "EvalBatch",
    "EvalTransform",
    "ImageSummary",
    "LabelledData",
    "OpenedImage",
    "PretrainTransform",
    "Reading",
    "ResumableBatchSampler",
    "Source",
    "Subset",
    "TrainBatch",
    "TrainDataset",
    "UnreadableImage",
    "common_size",
    "crop_share",
    "decode",
    "default_mean_std",
    "describe_images",
    "make_eval_loader",
    "make_train_loader",
    "normalize",
    "open_held_out",
    "open_image",
    "open_labelled",
    "open_source",
    "sample_rng",
    "spread",
    "to_channels",
]
