"""What this software writes: safetensors files with, in the header, how to build the model that they belong to."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from efficient_mae.backbones import VisionTransformer
from efficient_mae.engine.storage.checkpoint import find_checkpoints, find_part, load_model, read_header
from efficient_mae.engine.storage.checksums import refuse_damage
from efficient_mae.engine.storage.durable import save_tensors
from efficient_mae.engine.storage.plain_files import parse_json
from efficient_mae.engine.storage.run_directory import SETTINGS, read_settings
from efficient_mae.errors import InputError
from efficient_mae.methods.mae import MAEConfig, MaskedAutoencoder
from efficient_mae.ranges import Finite, Positive, Settings

# The key of a safetensors header under which a model's config is kept.
_METADATA_KEY = "efficient_mae"

# What a run or an export keeps an encoder alone in.
_ENCODER = "encoder.safetensors"


@dataclass(frozen=True)
class ImageStatistics(Settings):
    """Mean and standard deviation of each channel by which images are normalised, for pixels in 0 to 1."""

    mean: tuple[Finite, ...]
    std: tuple[Positive, ...]


def file_metadata(config: MAEConfig | dict[str, Any], statistics: ImageStatistics) -> dict[str, str]:
    """A safetensors header that says how to build the model and how to normalise its images.

    Args:
        config: of the whole model, or what :func:`encoder_arguments` gives.
        statistics: of its images.
    """
    model = config.to_dict() if isinstance(config, MAEConfig) else config
    content = {"model": model, "mean": statistics.mean, "std": statistics.std}
    # One key only: safetensors writes several in random order, and equal runs should write equal files.
    return {_METADATA_KEY: json.dumps(content)}


def encoder_arguments(model: VisionTransformer | MAEConfig) -> dict[str, Any]:
    """The arguments that build an encoder like this one, as :class:`VisionTransformer` and timm name them."""
    depth = model.depth if isinstance(model, MAEConfig) else len(model.blocks)
    return {
        "img_size": model.img_size,
        "patch_size": model.patch_size,
        "in_chans": model.in_chans,
        "embed_dim": model.embed_dim,
        "depth": depth,
        "num_heads": model.num_heads,
    }


def encoder_of(model: VisionTransformer) -> VisionTransformer:
    """The encoder alone, of a whole autoencoder or of an encoder; its weights are copied."""
    encoder = VisionTransformer(**encoder_arguments(model)).to(model.cls_token)
    weights = model.state_dict()
    encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    return encoder.train(model.training)


def find_weights(path: str | Path) -> Path:
    """The safetensors file of a run directory, a checkpoint or an export; of a run, its last checkpoint's.

    Of a sharded checkpoint, the folder that takes the file's place.

    Raises:
        InputError: there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{path}: no such file or directory; give a run directory, a checkpoint or an export")
    checkpoints = find_checkpoints(path / "checkpoints")
    for candidate in (*(find_part(folder, "model") for folder in (*checkpoints[-1:], path)), path / _ENCODER):
        if candidate.exists():
            return candidate
    raise InputError(f"{path}: holds no checkpoint and no model.safetensors or {_ENCODER}")


def find_run_settings(path: str | Path) -> dict[str, Any]:
    """The settings of the run that lies at a path or that a checkpoint at the path belongs to; {} if none does."""
    path = Path(path)
    for folder in (path, *path.parents[:3]):
        if (folder / SETTINGS).is_file() and (folder / "checkpoints").is_dir():
            return read_settings(folder)
    return {}


def load_own(file: Path) -> MaskedAutoencoder | VisionTransformer:
    """The model in a file or sharded checkpoint of this software: whole, or the encoder alone if it holds no decoder.

    Raises:
        InputError: no such file, weights of another architecture, or a checkpoint whose checksums say it is damaged.
    """
    refuse_damage(file.parent, file.name)
    content, _ = _read_header(file)
    shapes = read_header(file)[1]
    whole = "mask_token" in shapes
    try:
        _check_sizes(content, shapes, whole)
        if whole:
            model = MaskedAutoencoder(MAEConfig.from_dict(content))
        else:
            names = ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads")
            arguments = {name: content[name] for name in names}
            model = VisionTransformer(**{**arguments, "img_size": tuple(arguments["img_size"])})
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except (KeyError, TypeError, ValueError):
        raise _foreign(file) from None
    load_model(file, model)
    return model


def _check_sizes(content: dict[str, Any], shapes: dict[str, torch.Size], whole: bool) -> None:
    """Refuse a header that describes a model of another size than its tensors: built first, it could fill the memory.

    Raises:
        InputError: with what differs.
        KeyError, TypeError, ValueError: a header that describes none.
    """
    height, width = content["img_size"]
    patch, channels, dim = content["patch_size"], content["in_chans"], content["embed_dim"]
    described: dict[str, Any] = {
        "cls_token": (1, 1, dim),
        "patch_embed.proj.weight": (dim, channels, patch, patch),
        "pos_embed": (1, 1 + height // max(1, patch) * (width // max(1, patch)), dim),
    }
    blocks = {"blocks": content["depth"]}
    if whole:
        described["mask_token"] = (1, 1, content["decoder_embed_dim"])
        blocks["decoder_blocks"] = content["decoder_depth"]
    for name, shape in described.items():
        if tuple(shapes.get(name, ())) != shape:
            found = tuple(shapes[name]) if name in shapes else "missing"
            raise InputError(f"weights of another architecture, {name} is {found} and not {shape}")
    for name, depth in blocks.items():
        found = len({key.split(".")[1] for key in shapes if key.startswith(f"{name}.")})
        if found != depth:
            raise InputError(f"weights of another architecture, {found} {name} and not {depth}")


def read_metadata(file: Path) -> tuple[MAEConfig, ImageStatistics]:
    """What :func:`file_metadata` wrote for a whole model.

    Raises:
        InputError: no safetensors file, or not one of ours.
    """
    content, statistics = _read_header(file)
    if "embed_dim" in content and "decoder_embed_dim" not in content:
        raise InputError(f"{file}: describes an encoder alone, and a whole model is needed; give the run directory")
    try:
        return MAEConfig.from_dict(content), statistics
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except (KeyError, TypeError):
        raise _foreign(file) from None


def read_statistics(file: Path) -> ImageStatistics:
    """How the images of the model in one of our safetensors files are normalised.

    Raises:
        InputError: no safetensors file, or not one of ours.
    """
    return _read_header(file)[1]


def _read_header(file: Path) -> tuple[dict[str, Any], ImageStatistics]:
    metadata, _ = read_header(file)
    try:
        content = parse_json(metadata[_METADATA_KEY], str(file))
        return dict(content["model"]), ImageStatistics(tuple(content["mean"]), tuple(content["std"]))
    except (KeyError, TypeError, ValueError):
        raise _foreign(file) from None


def _foreign(file: Path) -> InputError:
    return InputError(f"{file}: its header doesn't describe a model of efficient-mae")


def save_encoder(file: Path, model: VisionTransformer, statistics: ImageStatistics) -> None:
    """Write the encoder alone, under timm's parameter names.

    Raises:
        OSError: the disk is full or not writable.
    """
    with torch.device("meta"):
        names = VisionTransformer(**encoder_arguments(model)).state_dict().keys()
    weights = {name: tensor for name, tensor in model.state_dict().items() if name in names}
    config = model.config if isinstance(model, MaskedAutoencoder) else encoder_arguments(model)
    partial = file.with_name(f".partial-{file.name}")
    save_tensors(partial, weights, file_metadata(config, statistics))
    partial.replace(file)
