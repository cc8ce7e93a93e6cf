"""How a model's file says, in its safetensors header, how to build the model and how its images are read."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from efficient_mae.backbones import Backbone
from efficient_mae.channels import default_mean_std
from efficient_mae.data.images.reading import MAX_MEGAPIXELS, Reading
from efficient_mae.engine.storage.checkpoint import read_header
from efficient_mae.engine.storage.plain_files import parse_json
from efficient_mae.errors import InputError
from efficient_mae.methods import MethodConfig
from efficient_mae.ranges import Finite, Positive, PositiveInt, Settings, with_tuples

# The key of a safetensors header under which a model's config is kept.
_METADATA_KEY = "efficient_mae"

# That of classifiers of the first versions, with the classes' names and their images' mean and deviation alone.
_EARLY_CLASSIFIER = "efficient_mae_classifier"

# The family of an encoder whose header doesn't say it.
_FAMILY = "vit"

# What the names of a classifier's own tensors begin with, as timm has them.
HEAD = "head."

# What the names of its encoder's begin with in a checkpoint of a probe, which is no classifier of timm's yet, and in
# the files of other tasks.
PROBED = "encoder."

# How a classifier makes one feature of an image's tokens, as timm says.
POOLS = ("avg", "token")

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


@dataclass(frozen=True)
class TaskHeads:
    """What makes an encoder a model of another task than classification.

    Such a model's file holds timm's encoder under names that begin with `encoder.`, and beside it the task's heads.

    Attributes:
        task: its name.
        classes: their names, in the order of the outputs.
        arguments: what the heads are built by, as JSON knows it.
    """

    task: str
    classes: tuple[str, ...]
    arguments: dict[str, Any]


def file_metadata(
    config: MethodConfig | Backbone, statistics: ImageStatistics, head: Head | TaskHeads | None = None
) -> dict[str, str]:
    """A safetensors header that says how to build the model and how to normalise its images.

    Args:
        config: of the whole model, or an encoder.
        statistics: of its images.
        head: of a classifier, or what a model of another task has.
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
    if head is not None:
        content["classifier" if isinstance(head, Head) else "heads"] = asdict(head)
    # One key only: safetensors writes several in random order, and equal runs should write equal files.
    return {_METADATA_KEY: json.dumps(content)}


def is_own(file: Path) -> bool:
    """Whether the header of a safetensors file, or of a sharded checkpoint, describes a model of this software."""
    return _METADATA_KEY in read_header(file)[0]


def read_statistics(file: Path) -> ImageStatistics:
    """How the images of the model in one of our safetensors files are normalised.

    Raises:
        InputError: no safetensors file, or not one of ours.
    """
    return read_own_header(file).statistics


def early_statistics(file: Path) -> ImageStatistics | None:
    """How the images of a classifier of the first versions are normalised; None of any other file.

    Raises:
        InputError: its header is damaged.
    """
    described = read_header(file)[0].get(_EARLY_CLASSIFIER)
    if described is None:
        return None
    try:
        content = parse_json(described, str(file))
        return ImageStatistics(tuple(content["mean"]), tuple(content["std"]))
    except (KeyError, TypeError):
        raise InputError(f"{file}: its header describes no classifier of efficient-mae") from None


def stated_statistics(stated: Mapping[str, Any], mean: str, std: str, in_chans: int, where: str) -> ImageStatistics:
    """Mean and standard deviation as another library's config has them, under these names; else the usual ones.

    Raises:
        InputError: they aren't one number for each channel.
    """
    means, deviations = (stated.get(*pair) for pair in zip((mean, std), default_mean_std(in_chans), strict=True))
    try:
        found = ImageStatistics(tuple(one + 0.0 for one in means), tuple(one + 0.0 for one in deviations))
    except (TypeError, ValueError):
        found = None
    if found is None or not len(found.mean) == len(found.std) == in_chans:
        numbers = f"{mean}={means} and {std}={deviations}"
        raise InputError(f"{where}: {numbers} must be {in_chans} numbers each, one a channel")
    return found


@dataclass(frozen=True)
class Header:
    """What a file says of its model; the method is None where it is an encoder alone, or with heads of a task.

    The first versions wrote no method: what has a decoder is MAE's.

    Attributes:
        backbone: family of such an encoder.
    """

    method: str | None
    backbone: str
    model: dict[str, Any]
    statistics: ImageStatistics
    head: Head | None
    heads: TaskHeads | None


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
        head, heads = _read_head(content.get("classifier")), _read_heads(content.get("heads"))
        return Header(method, content.get("backbone", _FAMILY), model, statistics, head, heads)
    except (KeyError, TypeError, ValueError):
        raise foreign(file) from None


def _read_head(content: Any) -> Head | None:
    """Raises KeyError, TypeError or ValueError for what describes no head."""
    if content is None:
        return None
    head = Head(tuple(content["classes"]), content["pool"], content["fc_norm"])
    named = all(isinstance(name, str) for name in head.classes)
    if not (named and head.classes and head.pool in POOLS and isinstance(head.fc_norm, bool)):
        raise ValueError(content)
    return head


def _read_heads(content: Any) -> TaskHeads | None:
    """Raises KeyError, TypeError or ValueError for what describes none."""
    if content is None:
        return None
    heads = TaskHeads(content["task"], tuple(content["classes"]), dict(content["arguments"]))
    if not (isinstance(heads.task, str) and heads.classes and all(isinstance(name, str) for name in heads.classes)):
        raise ValueError(content)
    return heads


def foreign(file: Path) -> InputError:
    """That a file isn't one of ours."""
    return InputError(f"{file}: its header doesn't describe a model of efficient-mae")
