"""Settings of `emae predict`, whatever it is that is predicted."""

from dataclasses import dataclass
from typing import Literal

from efficient_mae.data import DataChoice
from efficient_mae.data.sources.measure import ReadingSettings
from efficient_mae.ranges import Location, NonNegativeInt, PositiveInt


@dataclass(frozen=True, kw_only=True)
class PredictConfig(DataChoice, ReadingSettings):
    """Settings of `emae predict`."""

    weights: Location
    """run directory of finetune, linear-probe, segment or detect, or an export of one"""
    data: Location
    """folder of images, hf:NAME_OR_PATH, wds:PATTERN, fashion-mnist-sample or photographs-sample; labels aren't
    needed"""
    out: Location | None = None
    """classes of images: table to write, .csv or .parquet (null: predictions.csv); of pixels: folder for a PNG of
    each image, numbered as the label maps that were learned from (null: predictions); of objects: .json for boxes and
    masks as COCO's results have them (null: predictions.json)"""
    part: Literal["train", "test"] = "train"
    """of the data; data without parts are train"""
    top: PositiveInt = 5
    """classes of images: that are named for each, the likeliest first; all where there are fewer"""
    batch_size: PositiveInt = 256
    """images, or windows of one, at a time; where objects are found, no more than 8"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    precision: str = "auto"
    """bf16, fp32, or auto: bf16 where the hardware computes in it"""
    num_workers: NonNegativeInt = 1
    """processes that read images"""
