"""Settings that fine-tuning and linear probing share."""

from dataclasses import dataclass

from efficient_mae.ranges import Location, Share
from efficient_mae.tasks.downstream import DownstreamConfig


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(DownstreamConfig):
    """Settings of a run that learns to classify images."""

    data: Location
    """labelled images: folder with train/ and val/, hf:NAME_OR_PATH, wds:PATTERN, or fashion-mnist-sample"""
    crop_scale: tuple[Share, Share] = (0.08, 1.0)
    """share of the image's area that a random crop covers, from and to"""
    hflip: bool = True
    """flip every other image horizontally"""
