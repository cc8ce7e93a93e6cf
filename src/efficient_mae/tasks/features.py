"""Features of a frozen encoder over a labelled source."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from efficient_mae.backbones import VisionTransformer
from efficient_mae.data import EvalTransform, Source, make_eval_loader, normalize
from efficient_mae.engine.machine.distributed import autocast
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics

POOLS = ("avg", "token")


@torch.no_grad()
def extract_features(
    encoder: VisionTransformer,
    images: Float[Tensor, "B C h w"],
    pool: str = "avg",
) -> Float[Tensor, "B D"]:
    """One feature an image: the mean of its patches' tokens (`avg`) or its class token (`token`), as timm says.

    Raises:
        InputError: an unknown pool.
    """
    if pool not in POOLS:
        raise InputError(f"pool={pool!r}: must be one of {', '.join(POOLS)}")
    tokens = encoder.forward_features(images)
    return (tokens[:, 0] if pool == "token" else tokens[:, 1:].mean(dim=1)).float()


def load_labelled(
    source: Source, img_size: tuple[int, int], in_chans: int, batch_size: int, num_workers: int
) -> tuple[Tensor, Int64[Tensor, " B"]]:
    """All readable images of a labelled source, uint8 (B, C, h, w), and their labels.

    Raises:
        InputError: the source has no labels.
    """
    if source.classes is None:
        raise InputError(f"data={source.name}: has no labels; give a folder per class or another labelled source")
    loader = make_eval_loader(source, EvalTransform(img_size, in_chans), batch_size, num_workers)
    batches = [(batch.images, batch.labels) for batch in loader]
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def encode(
    encoder: VisionTransformer,
    images: Tensor,
    statistics: ImageStatistics,
    *,
    pool: str,
    batch_size: int,
    device: torch.device,
    precision: str,
) -> Float[Tensor, "B D"]:
    """Features of uint8 images (B, C, h, w), on the host."""
    encoder = encoder.to(device).eval()
    features = []
    for part in images.split(batch_size):
        pixels = normalize(part.to(device), statistics.mean, statistics.std)
        with autocast(precision, device):
            features.append(extract_features(encoder, pixels, pool).cpu())
    return torch.cat(features)


def source_features(
    encoder: VisionTransformer,
    source: Source,
    statistics: ImageStatistics,
    *,
    batch_size: int,
    device: torch.device,
    precision: str,
    num_workers: int,
) -> tuple[Float[Tensor, "N D"], Int64[Tensor, " N"]]:
    """Mean-pooled features and labels of all readable images of a labelled source, on the host.

    The images themselves are never held all at once. Leaves the encoder in evaluation mode.

    Raises:
        InputError: none of the images can be read.
    """
    encoder.eval()
    transform = EvalTransform(encoder.img_size, encoder.in_chans)
    features, labels = [], []
    for batch in make_eval_loader(source, transform, batch_size, num_workers, min_size=encoder.patch_size):
        if len(batch.images):
            pixels = normalize(batch.images.to(device), statistics.mean, statistics.std)
            with autocast(precision, device):
                features.append(extract_features(encoder, pixels).cpu())
            labels.append(batch.labels)
    if not features:
        raise InputError(f"{source.name}: none of its images can be read")
    return torch.cat(features), torch.cat(labels)
