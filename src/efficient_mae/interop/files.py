"""What this software writes: safetensors files with, in the header, how to build the model that they belong to."""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file

from efficient_mae.backbones import VisionTransformer
from efficient_mae.backbones.vit import ARGUMENTS
from efficient_mae.data.images.reading import MAX_MEGAPIXELS, Reading
from efficient_mae.engine.storage.checkpoint import (
    check_architecture,
    find_checkpoints,
    find_part,
    load_model,
    load_tensors,
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

# What a run or an export keeps an encoder alone in, and a run the classifier that came of it.
_ENCODER_FILE, CLASSIFIER_FILE = "encoder.safetensors", "classifier.safetensors"

# How a classifier makes one feature of an image's tokens, as timm says.
POOLS = ("avg", "token")

T = TypeVar("T")


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


@dataclass(frozen=True)
class Head:
    """What makes an encoder a classifier.

    Attributes:
        classes: their names, in the order of the outputs.
        pool: one of :data:`POOLS`.
        fc_norm: whether the last norm follows the pool, as in fine-tuning, rather than goes before it.
    """

    classes: tuple[str, ...]
    pool: str
    fc_norm: bool


def file_metadata(
    config: MethodConfig | dict[str, Any], statistics: ImageStatistics, head: Head | None = None
) -> dict[str, str]:
    """A safetensors header that says how to build the model and how to normalise its images.

    Args:
        config: of the whole model, or what :func:`encoder_arguments` gives.
        statistics: of its images.
        head: of a classifier.
    """
    whole = isinstance(config, MethodConfig)
    described = {"method": config.method, "model": config.to_dict()} if whole else {"model": config}
    content = {**described, "mean": statistics.mean, "std": statistics.std}
    for name, key in _OPTIONAL.items():
        if getattr(statistics, name) != getattr(ImageStatistics, name):
            content[key] = getattr(statistics, name)
    if head is not None:
        content["classifier"] = asdict(head)
    # One key only: safetensors writes several in random order, and equal runs should write equal files.
    return {_METADATA_KEY: json.dumps(content)}


def encoder_arguments(model: Method | MethodConfig | VisionTransformer) -> dict[str, Any]:
    """The arguments that build an encoder like this one, as :class:`VisionTransformer` and timm name them."""
    if isinstance(model, MethodConfig):
        return model.backbone
    encoder = backbone_of(model)
    return {name: getattr(encoder, name) for name in ARGUMENTS}


def encoder_of(model: Method | VisionTransformer) -> VisionTransformer:
    """The encoder alone, of a whole model or of an encoder; its weights are copied."""
    return copy.deepcopy(backbone_of(model))


def find_weights(path: str | Path) -> Path:
    """The safetensors file of a run directory, a checkpoint or an export; of a run, its last checkpoint's, or the
    classifier that came of it.

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
    parts = (find_part(folder, "model") for folder in (*checkpoints[-1:], path))
    for candidate in (path / CLASSIFIER_FILE, *parts, path / _ENCODER_FILE):
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


def load_own(file: Path) -> Method | VisionTransformer:
    """The model in a file or sharded checkpoint of this software: whole, or the encoder alone if it holds no more.

    Of a classifier the encoder, whose last norm is then the one that followed the mean, if one did.

    Raises:
        InputError: no such file, weights of another architecture, or a checkpoint whose checksums say it is damaged.
    """
    refuse_damage(file.parent, file.name)
    header, shapes = read_own_header(file), read_header(file)[1]
    classifies = header.head is not None
    shapes = _without_head(shapes) if classifies else shapes
    try:
        with torch.device("meta"):  # built first, what a header describes could fill the memory
            empty = _described(header, shapes, file)
            check_architecture(shapes, empty.state_dict(), file)
    except InputError as error:
        raise InputError(f"{file}: {str(error).removeprefix(f'{file}: ')}") from None
    except (KeyError, TypeError, ValueError, RuntimeError):  # the last of sizes that overflow
        raise _foreign(file) from None
    whole = isinstance(empty, Method)
    model = type(empty)(empty.config) if whole else VisionTransformer(**encoder_arguments(empty))
    if classifies and file.is_file():
        load_tensors(_without_head(load_file(file)), model, file)
    else:
        load_model(file, model)
    return model


def _without_head(tensors: Mapping[str, T]) -> dict[str, T]:
    """A classifier's tensors that are its encoder's, under the encoder's names."""
    return {name.replace("fc_norm.", "norm."): one for name, one in tensors.items() if not name.startswith("head.")}


def _described(header: "Header", shapes: dict[str, torch.Size], file: Path) -> Method | VisionTransformer:
    """The model that a header describes, or its encoder if that is all that there are tensors for.

    Raises:
        InputError, KeyError, TypeError, ValueError: a header that describes none, or another than its tensors are of.
    """
    # A block has tensors: more of them than there are tensors would be built for nothing.
    if any(value > len(shapes) for name, value in header.model.items() if name.endswith("depth")):
        raise InputError("weights of another architecture, of fewer blocks than are described")
    arguments = {name: header.model[name] for name in ARGUMENTS}
    encoder = VisionTransformer(**{**arguments, "img_size": tuple(arguments["img_size"])})
    own = encoder.state_dict()
    check_architecture({name: shape for name, shape in shapes.items() if name in own}, own, file)
    if shapes.keys() <= own.keys():
        return encoder
    method = _method(header)
    return method(method.Config.from_dict(header.model))


def _method(header: "Header") -> type[Method]:
    if header.method not in METHODS:
        raise InputError(f"a model of method {header.method!r}, which isn't known here")
    return METHODS[header.method]


def read_metadata(file: Path) -> tuple[MethodConfig, ImageStatistics]:
    """What :func:`file_metadata` wrote for a whole model.

    Raises:
        InputError: no safetensors file, or not one of ours.
    """
    header = read_own_header(file)
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
    return read_own_header(file).statistics


@dataclass(frozen=True)
class Header:
    """What a file says of its model; its method is None where it is an encoder alone, or with a classifier's head.

    The first versions wrote no method: what has a decoder is MAE's.
    """

    method: str | None
    model: dict[str, Any]
    statistics: ImageStatistics
    head: Head | None


def read_own_header(file: Path) -> Header:
    """What :func:`file_metadata` wrote.

    Raises:
        InputError: no safetensors file, or not one of ours.
    """
    metadata, _ = read_header(file)
    try:
        content = parse_json(metadata[_METADATA_KEY], str(file))
        optional = {name: content[key] for name, key in _OPTIONAL.items() if key in content}
        statistics = ImageStatistics(**with_tuples({"mean": content["mean"], "std": content["std"], **optional}))
        model = dict(content["model"])
        method = content.get("method", "mae" if "decoder_embed_dim" in model else None)
        return Header(method, model, statistics, _read_head(content.get("classifier")))
    except (KeyError, TypeError, ValueError):
        raise _foreign(file) from None


def _read_head(content: Any) -> Head | None:
    """Raises KeyError, TypeError or ValueError for what describes no head."""
    if content is None:
        return None
    head = Head(tuple(content["classes"]), content["pool"], content["fc_norm"])
    named = all(isinstance(name, str) for name in head.classes)
    if not (named and head.classes and head.pool in POOLS and isinstance(head.fc_norm, bool)):
        raise ValueError(content)
    return head


def _foreign(file: Path) -> InputError:
    return InputError(f"{file}: its header doesn't describe a model of efficient-mae")


def save_encoder(file: Path, model: Method | VisionTransformer, statistics: ImageStatistics) -> None:
    """Write the encoder alone, under timm's parameter names.

    Raises:
        OSError: the disk is full or not writable.
    """
    config = model.config if isinstance(model, Method) else encoder_arguments(model)
    partial = file.with_name(f".partial-{file.name}")
    save_tensors(partial, backbone_of(model).state_dict(), file_metadata(config, statistics))
    partial.replace(file)
