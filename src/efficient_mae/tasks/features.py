"""Features of a frozen encoder, and the labelled images that it is judged by.

Letters: B images, C channels, h and w height and width in pixels, D width, H and W patches of a column and a row.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from efficient_mae.backbones import Backbone, VisionTransformer
from efficient_mae.data import EvalBatch, EvalTransform, Reading, Source, make_eval_loader, normalize
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine.machine.distributed import autocast
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics
from efficient_mae.tasks.left_out import LeftOut

# No pool: a feature for each patch.
GRID = "none"
# The means of its quarters, and those after each of its last blocks, one after the other.
QUARTERS, BLOCKS = "grid2", "blocks"
# So many, as DINO's linear probes take them.
_LAST_BLOCKS = 4


@torch.no_grad()
def extract_features(
    encoder: Backbone,
    images: Float[Tensor, "B C h w"],
    pool: str = "avg",
) -> Float[Tensor, "B values"] | Float[Tensor, "B rows columns D"]:
    """One feature an image, of the encoder's kinds, or of several means, `grid2` and `blocks`; or, `none`, one of
    each of its last places; in float32.

    Raises:
        InputError: the encoder has no such.
    """
    if pool == GRID:
        return encoder.feature_map(images).float()
    if pool == QUARTERS:
        return F.adaptive_avg_pool2d(encoder.feature_map(images).float().movedim(-1, 1), 2).flatten(1)
    return (_last_blocks(encoder, images) if pool == BLOCKS else encoder.pooled(images, pool)).float()


def _last_blocks(encoder: Backbone, images: Float[Tensor, "B C h w"]) -> Float[Tensor, "B values"]:
    """Means of the patches' features after each of the last blocks, normalised by the final norm."""
    if not isinstance(encoder, VisionTransformer):
        raise InputError(f"pool={BLOCKS!r}: is for vit encoders, and this is a {encoder.family}")
    x, means = encoder.embed(images), []
    for number, block in enumerate(encoder.blocks):
        x = block(x)
        if number >= encoder.depth - _LAST_BLOCKS:
            means.append(encoder.norm(x)[:, 1:].mean(dim=1))
    return torch.cat(means, dim=1)


def untrained(encoder: Backbone, seed: int) -> Backbone:
    """An encoder of the same shape, with the weights that the seed draws."""
    with torch_seeded(seed):
        return encoder.resized()


def embed(
    encoder: Backbone,
    images: Shaped[Tensor, "B C h w"],
    statistics: ImageStatistics,
    *,
    precision: str,
    pool: str = "avg",
) -> Float[Tensor, "B values"] | Float[Tensor, "B H W D"]:
    """Features of images that lie where the encoder does."""
    pixels = normalize(images, statistics.mean, statistics.std)
    with autocast(precision, images.device):
        return extract_features(encoder, pixels, pool)


def image_batches(
    source: Source,
    transform: EvalTransform,
    *,
    min_size: int,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> Iterator[EvalBatch]:
    """The images of a source in order, on the device; smaller batches, down to none, where some can't be read.

    Args:
        min_size: an image with a side shorter than this, in pixels, counts as unreadable.
    """
    pinned = {"pin_memory": device.type == "cuda"}
    for batch in make_eval_loader(source, transform, batch_size, num_workers, min_size=min_size, **pinned):
        there = batch.to(device, non_blocking=True)
        there.indices = batch.indices
        yield there


def labelled_batches(
    source: Source,
    encoder: Backbone,
    reading: Reading,
    *,
    batch_size: int,
    num_workers: int,
    device: torch.device,
    damaged: dict[str, str],
) -> Iterator[tuple[Shaped[Tensor, "B C h w"], Int64[Tensor, " B"], Int64[Tensor, " B"]]]:
    """The readable images of a labelled source as the encoder takes them and their labels, on the device, and their
    numbers in the source, on the host.

    Args:
        damaged: the reason, by name, of each unreadable image that was told of; added to.

    Raises:
        InputError: none of the images can be read, or too many can't be.
        ValueError: an image has no label.
    """
    transform = EvalTransform(encoder.img_size, reading)
    how = {"batch_size": batch_size, "num_workers": num_workers, "device": device}
    found, left_out = False, LeftOut(source.name, len(source), damaged)
    for batch in image_batches(source, transform, min_size=encoder.patch_size, **how):
        left_out.add(batch.damaged)
        if not len(batch.images):
            continue
        if batch.labels is None or (batch.labels < 0).any():
            raise ValueError(f"{source.name}: unlabelled images reached a judgement; open_labelled refuses them")
        found = True
        yield batch.images, batch.labels, batch.indices
    if not found:
        raise InputError(f"{source.name}: none of its images can be read")
