"""Reading what this software wrote, and handing encoders over to timm."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm.models.vision_transformer as timm_vit
import torch
from safetensors import SafetensorError, safe_open

from efficient_mae.engine.checkpoint import find_checkpoints, load_model, save_tensors
from efficient_mae.engine.run_directory import read_settings
from efficient_mae.errors import InputError
from efficient_mae.models import MAEConfig, MaskedAutoencoder, VisionTransformer

# The key of a safetensors header under which a model's config is kept.
_METADATA_KEY = "efficient_mae"


@dataclass(frozen=True)
class ImageStatistics:
    """Mean and standard deviation of each channel by which images are normalised, for pixels in 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def file_metadata(config: MAEConfig, statistics: ImageStatistics) -> dict[str, str]:
    """A safetensors header that says how to build the model and how to normalise its images."""
    content = {"model": config.to_dict(), "mean": statistics.mean, "std": statistics.std}
    # One key only: safetensors writes several in random order, and equal runs should write equal files.
    return {_METADATA_KEY: json.dumps(content)}


def find_weights(path: str | Path) -> Path:
    """The safetensors file of a run directory, a checkpoint or an export; of a run, its last checkpoint's.

    Raises:
        InputError: there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{path}: no such file or directory; give a run directory, a checkpoint or an export")
    checkpoints = find_checkpoints(path / "checkpoints")
    for candidate in (*(c / "model.safetensors" for c in checkpoints[-1:]), *map(path.joinpath, _FILES)):
        if candidate.is_file():
            return candidate
    raise InputError(f"{path}: holds no checkpoint and no {' or '.join(_FILES)}")


_FILES = ("model.safetensors", "encoder.safetensors")


def load(path: str | Path) -> MaskedAutoencoder | VisionTransformer:
    """A trained model, in evaluation mode.

    Args:
        path: a run directory (its last checkpoint), a checkpoint, or exported weights.

    Returns:
        The whole autoencoder, or the encoder alone if the file holds no decoder.

    Raises:
        InputError: nothing there, a file of another kind, or weights of another architecture.
    """
    file = find_weights(path)
    config, _ = read_metadata(file)
    with safe_open(file, "pt") as tensors:
        whole = "mask_token" in tensors.keys()  # noqa: SIM118 - not a dict
    model = MaskedAutoencoder(config) if whole else _encoder(config)
    load_model(file, model)
    return model.eval()


def load_autoencoder(path: str | Path) -> MaskedAutoencoder:
    """As :func:`load`, where a decoder is needed.

    Raises:
        InputError: also when the file holds an encoder alone.
    """
    model = load(path)
    if not isinstance(model, MaskedAutoencoder):
        raise InputError(f"{path}: holds an encoder alone, and a decoder is needed; give the run directory")
    return model


def find_run_settings(path: str | Path) -> dict[str, Any]:
    """The settings of the run that lies at a path or that a checkpoint at the path belongs to; {} if none does."""
    path = Path(path)
    for folder in (path, *path.parents[:3]):
        if (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir():
            return read_settings(folder)
    return {}


def load_statistics(path: str | Path) -> ImageStatistics:
    """How the images of a trained model are normalised."""
    return read_metadata(find_weights(path))[1]


def read_metadata(file: Path) -> tuple[MAEConfig, ImageStatistics]:
    """What :func:`file_metadata` wrote.

    Raises:
        InputError: no safetensors file, or not one of ours.
    """
    try:
        with safe_open(file, "pt") as tensors:
            metadata = tensors.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not a readable safetensors file ({error})") from None
    try:
        content = json.loads(metadata[_METADATA_KEY])
        statistics = ImageStatistics(tuple(content["mean"]), tuple(content["std"]))
        return MAEConfig.from_dict(content["model"]), statistics
    except (KeyError, TypeError, json.JSONDecodeError):
        raise InputError(f"{file}: its header doesn't describe a model of efficient-mae") from None


def save_encoder(file: Path, model: MaskedAutoencoder, statistics: ImageStatistics) -> None:
    """Write the encoder alone, under timm's parameter names.

    Raises:
        OSError: the disk is full or not writable.
    """
    names = _encoder(model.config, device="meta").state_dict().keys()
    weights = {name: tensor for name, tensor in model.state_dict().items() if name in names}
    partial = file.with_name(f".partial-{file.name}")
    save_tensors(partial, weights, file_metadata(model.config, statistics))
    partial.replace(file)


def to_timm(model: VisionTransformer) -> timm_vit.VisionTransformer:
    """timm's VisionTransformer with the encoder's weights; `forward_features` gives the same tokens.

    Args:
        model: an encoder or a whole autoencoder; its weights are copied.
    """
    vit = timm_vit.VisionTransformer(
        img_size=model.img_size,
        patch_size=model.patch_size,
        in_chans=model.in_chans,
        num_classes=0,
        embed_dim=model.embed_dim,
        depth=len(model.blocks),
        num_heads=model.num_heads,
    )
    weights = model.state_dict()
    vit.load_state_dict({name: weights[name] for name in vit.state_dict()})
    return vit.train(model.training)


def load_snippet(config: MAEConfig, file: Path) -> str:
    """Python that loads an exported encoder with timm and safetensors alone."""
    return f"""\
from safetensors.torch import load_file
from timm.models import VisionTransformer

vit = VisionTransformer(
    img_size={config.img_size}, patch_size={config.patch_size}, in_chans={config.in_chans},
    embed_dim={config.embed_dim}, depth={config.depth}, num_heads={config.num_heads}, num_classes=0,
)
vit.load_state_dict(load_file({str(file)!r}))
"""


def _encoder(config: MAEConfig, device: str = "cpu") -> VisionTransformer:
    with torch.device(device):
        return VisionTransformer(
            config.img_size, config.patch_size, config.in_chans, config.embed_dim, config.depth, config.num_heads
        )
