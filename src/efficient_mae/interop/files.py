"""What this software writes: safetensors files with, in the header, how to build the model that they belong to."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from efficient_mae.backbones import BACKBONES, Backbone
from efficient_mae.engine.storage.checkpoint import (
    check_architecture,
    find_checkpoints,
    find_part,
    load_model,
    load_tensors,
    read_header,
)
from efficient_mae.engine.storage.checksums import refuse_damage
from efficient_mae.engine.storage.durable import replace_tensors
from efficient_mae.engine.storage.run_directory import SETTINGS, read_settings
from efficient_mae.engine.storage.sharded import read_shards
from efficient_mae.errors import InputError
from efficient_mae.interop.foreign_files import SUFFIXES
from efficient_mae.interop.headers import (
    HEAD,
    PROBED,
    Header,
    ImageStatistics,
    TaskHeads,
    file_metadata,
    foreign,
    read_own_header,
)
from efficient_mae.methods import METHODS, Method, MethodConfig, backbone_of
from efficient_mae.ranges import with_tuples

# What a run or an export keeps an encoder alone in, and a run what came of it: a classifier, or another task's model.
_ENCODER_FILE, CLASSIFIER_FILE, TASK_FILE = "encoder.safetensors", "classifier.safetensors", "trained.safetensors"


@dataclass(frozen=True)
class Trained:
    """What was read of somebody's weights.

    Attributes:
        model: whole, or the encoder alone if there is no more.
        statistics: of its images.
        left_out: what lay beside it and isn't of it, a head for one: number of parameters by name.
    """

    model: Method | Backbone
    statistics: ImageStatistics
    left_out: dict[str, int] = field(default_factory=dict)


def encoder_of(model: Method | Backbone) -> Backbone:
    """The encoder alone, of a whole model or of an encoder; its weights are copied."""
    return copy.deepcopy(backbone_of(model))


def find_weights(path: str | Path) -> Path:
    """The safetensors file of a run directory, a checkpoint or an export; of a run, its last checkpoint's, or that of
    what came of it.

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
    for candidate in (path / CLASSIFIER_FILE, path / TASK_FILE, *parts, path / _ENCODER_FILE):
        if candidate.exists():
            return candidate
    others = sorted(file for file in path.iterdir() if file.suffix in (".safetensors", *SUFFIXES))
    mend = f"give the file itself, {others[0]}" if others else "give a run directory, a checkpoint or an export"
    raise InputError(f"{path}: holds no checkpoint and no model.safetensors or {_ENCODER_FILE}; {mend}")


def read_heads(path: str | Path, task: str) -> tuple[Path, Header, TaskHeads]:
    """The file of what another task than classification trained, which is whole, its header, and its heads.

    Args:
        path: a run directory of that task, or what it wrote there.
        task: its name.

    Raises:
        InputError: nothing there, something that holds no such model, or a damaged file.
    """
    file = find_weights(path)
    header = read_own_header(file)
    if header.heads is None or header.heads.task != task:
        raise InputError(f"{path}: holds no model of emae {task}; give a run of it")
    refuse_damage(file.parent, file.name)
    return file, header, header.heads


def find_run_settings(path: str | Path) -> dict[str, Any]:
    """The settings of the run that lies at a path or that a checkpoint at the path belongs to; {} if none does."""
    path = Path(path)
    for folder in (path, *path.parents[:3]):
        if (folder / SETTINGS).is_file() and (folder / "checkpoints").is_dir():
            return read_settings(folder).settings
    return {}


def find_optimizer(path: str | Path) -> Path:
    """The optimiser's file of a pre-training run's last checkpoint, or of a checkpoint of one; sharded, the folder in
    its place.

    Raises:
        InputError: there is none, or its checksums say that it is damaged.
    """
    try:
        weights = find_weights(path)
        found = find_part(weights.parent, "optimizer") if read_own_header(weights).method else None
    except InputError:  # somebody else's
        found = None
    if found is None or not found.exists():
        raise InputError(
            f"resume_optimizer: {path} holds no optimiser's state of pre-training; give a run of emae pretrain or a "
            "checkpoint of one, or leave it out"
        )
    refuse_damage(found.parent, found.name)
    return found


def load_own(file: Path) -> Method | Backbone:
    """The model in a file or sharded checkpoint of this software: whole, or the encoder alone if it holds no more.

    Of a classifier, or another task's model, the encoder; a classifier's last norm is then the one that followed the
    mean, if one did.

    Raises:
        InputError: no such file, or weights of another architecture.
    """
    header, shapes = read_own_header(file), read_header(file)[1]
    if header.heads is not None and header.heads.arguments.get("relative_positions"):
        raise InputError(f"{file}: its encoder has relative positions, which none here has; emae predict takes it")
    with_heads = header.head is not None or header.heads is not None
    names = encoder_names(header, shapes)  # as they are in the file, by the encoder's
    shapes = {name: shapes[there] for name, there in names.items()}
    try:
        with torch.device("meta"):  # built first, what a header describes could fill the memory
            empty = _described(header, shapes, file)
            check_architecture(shapes, empty.state_dict(), file)
    except InputError as error:
        raise InputError(f"{file}: {str(error).removeprefix(f'{file}: ')}") from None
    except (KeyError, TypeError, ValueError, RuntimeError):  # the last of sizes that overflow
        raise foreign(file) from None
    whole = isinstance(empty, Method)
    model = type(empty)(empty.config) if whole else type(empty)(**empty.arguments)
    if not with_heads:
        load_model(file, model)
    elif file.is_dir():
        read_shards(file, {names[name]: tensor for name, tensor in model.state_dict().items()})
    else:
        tensors = load_file(file)
        load_tensors({name: tensors[there] for name, there in names.items()}, model, file)
    return model


def encoder_names(header: Header, names: Iterable[str]) -> dict[str, str]:
    """Of the names in a file those of its model without heads, a classifier's or another task's, by the encoder's."""
    if header.head is None and header.heads is None:
        return {name: name for name in names}
    if probed := {name.removeprefix(PROBED): name for name in names if name.startswith(PROBED)}:
        return probed
    return {name.replace("fc_norm.", "norm."): name for name in names if not name.startswith(HEAD)}


def _described(header: Header, shapes: dict[str, torch.Size], file: Path) -> Method | Backbone:
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


def _method(header: Header) -> type[Method]:
    if header.method not in METHODS:
        raise _unknown(header)
    return METHODS[header.method]


def _unknown(header: Header) -> InputError:
    return InputError(f"a model of method {header.method!r}, which isn't known here")


def read_metadata(file: Path) -> tuple[MethodConfig, ImageStatistics]:
    """What :func:`file_metadata` wrote for a whole model.

    Raises:
        InputError: no safetensors file, or not one of ours.
    """
    header = read_own_header(file)
    if header.method is None:
        raise InputError(
            f"{file}: describes an encoder alone, and a whole model is needed; give a run of emae pretrain"
        )
    try:
        return _method(header).Config.from_dict(header.model), header.statistics
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except (KeyError, TypeError):
        raise foreign(file) from None


def save_encoder(file: Path, model: Method | Backbone, statistics: ImageStatistics) -> None:
    """Write the encoder alone, under timm's parameter names.

    Raises:
        OSError: the disk is full or not writable.
    """
    config = model.config if isinstance(model, Method) else model
    replace_tensors(file, backbone_of(model).state_dict(), file_metadata(config, statistics))
