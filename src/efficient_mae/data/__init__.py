"""Images: where they come from, how they are cropped, and how they reach a training step."""

from efficient_mae.data.augment import AugmentTransform
from efficient_mae.data.batch import EvalBatch, TrainBatch
from efficient_mae.data.datasets import TrainDataset
from efficient_mae.data.decode import OpenedImage, UnreadableImage, decode, open_image, to_channels
from efficient_mae.data.describe import ImageSummary, describe_images
from efficient_mae.data.device_decode import DeviceDecodeDataset
from efficient_mae.data.labelled import LabelledData, open_labelled
from efficient_mae.data.loader import make_eval_loader, make_train_loader
from efficient_mae.data.order import ResumableBatchSampler, sample_rng
from efficient_mae.data.sources import Source, open_source
from efficient_mae.data.subset import Subset, spread
from efficient_mae.data.transforms import EvalTransform, PretrainTransform, default_mean_std, normalize

__all__ = [
    "AugmentTransform",
    "DeviceDecodeDataset",
    "EvalBatch",
    "EvalTransform",
    "ImageSummary",
    "LabelledData",
    "OpenedImage",
    "PretrainTransform",
    "ResumableBatchSampler",
    "Source",
    "Subset",
    "TrainBatch",
    "TrainDataset",
    "UnreadableImage",
    "decode",
    "default_mean_std",
    "describe_images",
    "make_eval_loader",
    "make_train_loader",
    "normalize",
    "open_image",
    "open_labelled",
    "open_source",
    "sample_rng",
    "spread",
    "to_channels",
]
