"""k-nearest-neighbour classification on frozen features: what an encoder knows before anything is tuned."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from rich.console import Console
from rich.table import Table
from torch import Tensor

from efficient_mae.backbones import VisionTransformer
from efficient_mae.console import say
from efficient_mae.data import describe_images, open_source
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine.machine.distributed import find_device, resolve_precision
from efficient_mae.errors import InputError
from efficient_mae.interop import find_run_settings, load, load_statistics
from efficient_mae.interop.files import encoder_arguments
from efficient_mae.methods import backbone_of
from efficient_mae.ranges import NonNegativeInt, PositiveInt, Seed, Settings
from efficient_mae.tasks.features import encode, load_labelled

# Scale of the similarities in a neighbour's vote (Wu et al. 2018, as DINO uses it).
TEMPERATURE = 0.07

# Test images whose similarities to all training images are held at a time.
_CHUNK = 512


@dataclass(frozen=True, kw_only=True)
class KnnConfig(Settings):
    """Settings of `emae knn`."""

    weights: str
    """run directory, checkpoint or exported weights"""
    data: str | None = None
    """labelled images with a held-out part (null: the run's own data)"""
    k: PositiveInt = 20
    """neighbours that vote"""
    pool: str = "avg"
    """feature of an image: avg, the mean of its patches' tokens, or token, its class token"""
    batch_size: PositiveInt = 256
    """images encoded at a time"""
    seed: Seed = 0
    """of the untrained encoder's weights"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    precision: str = "auto"
    """bf16, fp32, or auto: bf16 where the hardware computes in it"""
    num_workers: NonNegativeInt = 1
    """processes that read images"""


def knn(config: KnnConfig) -> dict[str, Any]:
    """k-NN top-1 accuracy of raw pixels, of an untrained encoder and of the trained one, on held-out images.

    Returns:
        `accuracy` (0 to 1) of `raw_pixels`, `untrained` and `trained`, and what they were measured on.

    Raises:
        InputError: no such weights or data, or data without labels or without a held-out part.
    """
    encoder = backbone_of(load(config.weights))
    statistics = load_statistics(config.weights)
    device = find_device(config.device)
    data = config.data or find_run_settings(config.weights).get("data")
    if data is None:
        raise InputError(f"{config.weights}: isn't a run directory, so its data is unknown; give --data")
    parts = {}
    for split in ("train", "test"):
        source = open_source(data, split)
        if split == "train":
            say(describe_images(source, (encoder.in_chans, *encoder.img_size)).text)
        parts[split] = load_labelled(
            source, encoder.img_size, encoder.in_chans, config.batch_size, config.num_workers
        )
    (train_images, train_labels), (test_images, test_labels) = parts["train"], parts["test"]
    if config.k > len(train_images):
        raise InputError(f"k={config.k}: must lie between 1 and the {len(train_images)} training images")
    with torch_seeded(config.seed):
        untrained = VisionTransformer(**encoder_arguments(encoder))

    def features(images: Tensor, model: VisionTransformer) -> Tensor:
        return encode(
            model,
            images,
            statistics,
            pool=config.pool,
            batch_size=config.batch_size,
            device=device,
            precision=resolve_precision(config.precision, device),
        )

    pixels = [images.flatten(1).float() / 255 for images in (train_images, test_images)]
    pairs = {
        "raw_pixels": pixels,
        "untrained": [features(images, untrained) for images in (train_images, test_images)],
        "trained": [features(images, encoder) for images in (train_images, test_images)],
    }
    accuracy = {}
    for name, (train, test) in pairs.items():
        predicted = knn_classify(train, train_labels, test, config.k)
        accuracy[name] = (predicted == test_labels).double().mean().item()
    return {
        "weights": config.weights,
        "data": data,
        "k": config.k,
        "pool": config.pool,
        "train_images": len(train_images),
        "test_images": len(test_images),
        "accuracy": accuracy,
    }


def show_knn(result: dict[str, Any], console: Console) -> None:
    """Print what :func:`knn` found."""
    table = Table("features", "k-NN top-1", title=f"{result['data']}: {result['test_images']:,} held-out images")
    for name, accuracy in result["accuracy"].items():
        table.add_row(name.replace("_", " "), f"{accuracy:.2%}")
    console.print(table)


def knn_classify(
    train: Float[Tensor, "M D"], labels: Int64[Tensor, " M"], test: Float[Tensor, "N D"], k: int
) -> Int64[Tensor, " N"]:
    """Class of each test feature by the votes of its k nearest training features.

    Near is by cosine; a neighbour's vote weighs exp(cosine / 0.07).
    """
    train = F.normalize(train, dim=1)
    classes = int(labels.max()) + 1
    predicted = []
    for chunk in F.normalize(test, dim=1).split(_CHUNK):
        cosine, index = (chunk @ train.T).topk(k, dim=1)
        votes = torch.zeros(len(chunk), classes).scatter_add_(1, labels[index], (cosine / TEMPERATURE).exp())
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted)
