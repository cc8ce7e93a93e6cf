"""Features of a frozen encoder, and the labelled images that it is judged by.

Letters: B images, C channels, h and w height and width in pixels, D width.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from efficient_mae.backbones import Backbone
from efficient_mae.data import EvalTransform, Reading, Source, make_eval_loader, normalize
from efficient_mae.engine.machine.distributed import autocast
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics


@torch.no_grad()
def extract_features(
    encoder: Backbone,
    images: Float[Tensor, "B C h w"],
    pool: str = "avg",
) -> Float[Tensor, "B D"]:
    """One feature an image, of the encoder's kinds, in float32.

    Raises:
        InputError: the encoder has no such.
    """
    return encoder.pooled(images, pool).float()


def embed(
    encoder: Backbone,
    images: Shaped[Tensor, "B C h w"],
    statistics: ImageStatistics,
    *,
    precision: str,
    pool: str = "avg",
) -> Float[Tensor, "B D"]:
    """Features of images that lie where the encoder does."""
    pixels = normalize(images, statistics.mean, statistics.std)
    with autocast(precision, images.device):
        return extract_features(encoder, pixels, pool)


def labelled_batches(
    source: Source,
    encoder: Backbone,
    reading: Reading,
    *,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> Iterator[tuple[Shaped[Tensor, "B C h w"], Int64[Tensor, " B"], Int64[Tensor, " B"]]]:
    """The readable images of a labelled source as the encoder takes them and their labels, on the device, and their
    numbers in the source, on the host.

    Raises:
        InputError: none of the images can be read.
        ValueError: an image has no label.
    """
    transform = EvalTransform(encoder.img_size, reading)
    found = False
    pinned = {"pin_memory": device.type == "cuda"}
    for batch in make_eval_loader(source, transform, batch_size, num_workers, min_size=encoder.patch_size, **pinned):
        if not len(batch.images):
            continue
        if batch.labels is None or (batch.labels < 0).any():
            raise ValueError(f"{source.name}: unlabelled images reached a judgement; open_labelled refuses them")
        found = True
        there = batch.to(device, non_blocking=True)
        yield there.images, there.labels, batch.indices
    if not found:
        raise InputError(f"{source.name}: none of its images can be read")
