"""What this software writes: safetensors files with, in the header, how to build the model that they belong to."""

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from efficient_mae.backbones import BACKBONES, Backbone
from efficient_mae.data.images.reading import MAX_MEGAPIXELS, Reading
from efficient_mae.engine.storage.checkpoint import (
    check_architecture,
    find_checkpoints,
    find_part,
    load_model,
    read_header,
)
from efficient_mae.engine.storage.checksums import refuse_damage
from efficient_mae.engine.storage.durable import save_tensors
from efficient_mae.engine.storage.plain_files import parse_json
from efficient_mae.engine.storage.run_directory import SETTINGS, read_settings
from efficient_mae.errors import InputError
from efficient_mae.methods import METHODS, Method, MethodConfig, backbone_of
from efficient_mae.ranges import Finite, Positive, PositiveInt, Settings, with_tuples

# The key of a safetensors header under which a model's config is kept.
_METADATA_KEY = "efficient_mae"

# What a run or an export keeps an encoder alone in.
_ENCODER_FILE = "encoder.safetensors"


# The family of an encoder whose header doesn't say it.
_FAMILY = "vit"

# Statistics that a header has where they aren't the usual ones, and its keys.
_OPTIONAL = {"size": "images", "value_range": "value_range", "bands": "bands", "max_megapixels": "max_megapixels"}


@dataclass(frozen=True)
class ImageStatistics(Settings):
    """How a model's images are read, and each channel's mean and standard deviation, of pixels in 0 to 1.

    Attributes:
        size: (height, width) in pixels that the images had; None where they differed or no file says it.
        value_range, bands, max_megapixels: see :class:`Reading`.
    """

    mean: tuple[Finite, ...]
    std: tuple[Positive, ...]
    size: tuple[PositiveInt, PositiveInt] | None = None
    value_range: tuple[Finite, ...] | None = None
    bands: tuple[PositiveInt, ...] | None = None
    max_megapixels: Positive = MAX_MEGAPIXELS

    @property
    def reading(self) -> Reading:
        """How the images are read."""
        return Reading(len(self.mean), self.value_range, self.bands, self.max_megapixels)

    def read_by(self, reading: Reading) -> "ImageStatistics":
        """The same, of images that are read otherwise."""
        return replace(
            self, value_range=reading.value_range, bands=reading.bands, max_megapixels=reading.max_megapixels
        )


def file_metadata(config: MethodConfig | Backbone, statistics: ImageStatistics) -> dict[str, str]:
    """A safetensors header that says how to build the model and how to normalise its images.

    Args:
        config: of the whole model, or an encoder.
        statistics: of its images.
    """
    if isinstance(config, MethodConfig):
        described = {"method": config.method, "model": config.to_dict()}
    else:  # of a ViT, as of the first versions, the family goes without saying
        family = {} if config.family == _FAMILY else {"backbone": config.family}
        described = {**family, "model": config.arguments}
    content = {**described, "mean": statistics.mean, "std": statistics.std}
    for name, key in _OPTIONAL.items():
        if getattr(statistics, name) != getattr(ImageStatistics, name):
            content[key] = getattr(statistics, name)
    # One key only: safetensors writes several in random order, and equal runs should write equal files.
    return {_METADATA_KEY: json.dumps(content)}


def encoder_of(model: Method | Backbone) -> Backbone:
    """The encoder alone, of a whole model or of an encoder; its weights are copied."""
    return copy.deepcopy(backbone_of(model))


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
    for candidate in (*(find_part(folder, "model") for folder in (*checkpoints[-1:], path)), path / _ENCODER_FILE):
        if candidate.exists():
            return candidate
    raise InputError(f"{path}: holds no checkpoint and no model.safetensors or {_ENCODER_FILE}")


def find_run_settings(path: str | Path) -> dict[str, Any]:
    """The settings of the run that lies at a path or that a checkpoint at the path belongs to; {} if none does."""
    path = Path(path)
    for folder in (path, *path.parents[:3]):
        if (folder / SETTINGS).is_file() and (folder / "checkpoints").is_dir():
            return read_settings(folder).settings
    return {}


def load_own(file: Path) -> Method | Backbone:
    """The model in a file or sharded checkpoint of this software: whole, or the encoder alone if it holds no more.

    Raises:
        InputError: no such file, weights of another architecture, or a checkpoint whose checksums say it is damaged.
    """
    refuse_damage(file.parent, file.name)
    header, shapes = _read_header(file), read_header(file)[1]
    try:
        with torch.device("meta"):  # built first, what a header describes could fill the memory
            empty = _described(header, shapes, file)
            check_architecture(shapes, empty.state_dict(), file)
    except InputError as error:
        raise InputError(f"{file}: {str(error).removeprefix(f'{file}: ')}") from None
    except (KeyError, TypeError, ValueError, RuntimeError):  # the last of sizes that overflow
        raise _foreign(file) from None
    whole = isinstance(empty, Method)
    model = type(empty)(empty.config) if whole else type(empty)(**empty.arguments)
    load_model(file, model)
    return model


def _described(header: "_Header", shapes: dict[str, torch.Size], file: Path) -> Method | Backbone:
    """The model that a header describes, or its encoder if that is all that there are tensors for.

    Raises:
        InputError, KeyError, TypeError, ValueError: a header that describes none, or another than its tensors are of.
    """
    values = with_tuples(header.model)
    # A block has tensors: more of them than there are tensors would be built for nothing.
    depths = [value for name, value in values.items() if name.endswith("depth")]
    if any(sum(depth if isinstance(depth, tuple) else (depth,)) > len(shapes) for depth in depths):
        raise InputError("weights of another architecture, of fewer blocks than are described")
    config = METHODS[header.method].Config.from_dict(values) if header.method in METHODS else None
    if config is None:
        family = BACKBONES[header.backbone]
        names = (*family.ARGUMENTS, *(name for name in family.OPTIONAL if name in values))
        encoder = family(**{name: values[name] for name in names})
    else:
        encoder = config.make_backbone()
    own = encoder.state_dict()
    check_architecture({name: shape for name, shape in shapes.items() if name in own}, own, file)
    if shapes.keys() <= own.keys():
        return encoder
    if config is None:
        raise _unknown(header)
    return METHODS[config.method](config)


def _method(header: "_Header") -> type[Method]:
    if header.method not in METHODS:
        raise _unknown(header)
    return METHODS[header.method]


def _unknown(header: "_Header") -> InputError:
    return InputError(f"a model of method {header.method!r}, which isn't known here")


def read_metadata(file: Path) -> tuple[MethodConfig, ImageStatistics]:
    """What :func:`file_metadata` wrote for a whole model.

    Raises:
        InputError: no safetensors file, or not one of ours.
    """
    header = _read_header(file)
    if header.method is None:
        raise InputError(f"{file}: describes an encoder alone, and a whole model is needed; give the run directory")
    try:
        return _method(header).Config.from_dict(header.model), header.statistics
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except (KeyError, TypeError):
        raise _foreign(file) from None


def read_statistics(file: Path) -> ImageStatistics:
    """How the images of the model in one of our safetensors files are normalised.

    Raises:
        InputError: no safetensors file, or not one of ours.
    """
    return _read_header(file).statistics


@dataclass(frozen=True)
class _Header:
    """What a file says of its model; its method is None where it is an encoder alone, of the family `backbone`.

    The first versions wrote no method: what has a decoder is MAE's.
    """

    method: str | None
    backbone: str
    model: dict[str, Any]
    statistics: ImageStatistics


def _read_header(file: Path) -> _Header:
    metadata, _ = read_header(file)
    try:
        content = parse_json(metadata[_METADATA_KEY], str(file))
        optional = {name: content[key] for name, key in _OPTIONAL.items() if key in content}
        statistics = ImageStatistics(**with_tuples({"mean": content["mean"], "std": content["std"], **optional}))
        model = dict(content["model"])
        method = content.get("method", "mae" if "decoder_embed_dim" in model else None)
        return _Header(method, content.get("backbone", _FAMILY), model, statistics)
    except (KeyError, TypeError, ValueError):
        raise _foreign(file) from None


def _foreign(file: Path) -> InputError:
    return InputError(f"{file}: its header doesn't describe a model of efficient-mae")


def save_encoder(file: Path, model: Method | Backbone, statistics: ImageStatistics) -> None:
    """Write the encoder alone, under timm's parameter names.

    Raises:
        OSError: the disk is full or not writable.
    """
    config = model.config if isinstance(model, Method) else model
    partial = file.with_name(f".partial-{file.name}")
    save_tensors(partial, backbone_of(model).state_dict(), file_metadata(config, statistics))
    partial.replace(file)
