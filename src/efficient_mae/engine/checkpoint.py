"""Checkpoints: folders of plain tensors and JSON, complete or not there at all.

`checkpoints/step-00001200/` holds `model.safetensors`, `optimizer.safetensors` and `state.json`. It is written
under a temporary name, flushed to the disk and then renamed, so a run that is killed at any moment leaves
complete checkpoints only. Nothing is ever unpickled.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from efficient_mae.errors import InputError

_FOLDER = re.compile(r"step-(\d{8,})")


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    metadata: dict[str, str],
    keep: int,
    companions: Mapping[str, nn.Module] = MappingProxyType({}),
) -> Path:
    """Write the checkpoint of a step, then remove all but the last `keep`.

    Args:
        folder: the run's `checkpoints` folder.
        step: number of steps done.
        model: whose state dict is saved.
        optimizer: whose per-parameter tensors are saved, by parameter name.
        state: anything else, as JSON.
        metadata: written into the model file's header, so that the file alone can be loaded.
        keep: number of checkpoints that stay.
        companions: further modules by name (an average of the weights), each saved in a file of its own.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    final = folder / f"step-{step:08d}"
    partial = folder / f".partial-{final.name}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_tensors(partial / "model.safetensors", model.state_dict(), metadata)
        save_tensors(partial / "optimizer.safetensors", _optimizer_tensors(model, optimizer))
        for name, companion in companions.items():
            save_tensors(partial / f"{name}.safetensors", companion.state_dict(), metadata)
        write_synced(partial / "state.json", json.dumps({"step": step, **state}).encode())
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync_folder(folder)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in find_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def find_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in folder.glob("step-*") if _FOLDER.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The number of steps done when this checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    companions: Mapping[str, nn.Module] = MappingProxyType({}),
) -> dict[str, Any]:
    """Load a checkpoint into a model, its optimiser and its companions; return the rest of what was saved.

    Raises:
        InputError: the checkpoint is of another architecture.
    """
    load_model(path / "model.safetensors", model)
    for name, companion in companions.items():
        load_model(path / f"{name}.safetensors", companion)
    saved = _load_tensors(path / "optimizer.safetensors")
    names = {parameter: name for name, parameter in model.named_parameters()}
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        prefix = f"{names[parameter]}/"
        tensors = {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
        # The count of steps stays on the host unless the kernel is fused, as PyTorch itself keeps it.
        optimizer.state[parameter] = {
            key: value if value.ndim == 0 and not optimizer.defaults.get("fused") else value.to(parameter.device)
            for key, value in tensors.items()
        }
    return json.loads((path / "state.json").read_bytes())


def load_model(file: Path, model: nn.Module) -> None:
    """Load a safetensors file into a model.

    Raises:
        InputError: not a whole file, or names or shapes differ; the first that does is named.
    """
    load_tensors(_load_tensors(file), model, file)


def load_tensors(tensors: dict[str, Tensor], model: nn.Module, file: Path) -> None:
    """Load tensors that were read from a file into a model.

    Raises:
        InputError: names or shapes differ; the first that does is named.
    """
    own = model.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        if name not in tensors:
            raise InputError(f"{file}: weights of another architecture, without {name}")
        if name not in own:
            raise InputError(f"{file}: weights of another architecture, with {name}")
        if own[name].shape != tensors[name].shape:
            raise InputError(
                f"{file}: weights of another architecture, {name} is {tuple(tensors[name].shape)} "
                f"and not {tuple(own[name].shape)}"
            )
    model.load_state_dict(tensors)


def _load_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, FileNotFoundError) as error:
        raise InputError(f"{file}: not a whole safetensors file ({error})") from None


def save_tensors(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file and flush it to the disk.

    Raises:
        OSError: the disk is full or not writable.
    """
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata)
    except SafetensorError as error:
        # safetensors hides the system's error in its message.
        code = re.search(r"os error (\d+)", str(error))
        raise OSError(int(code[1]) if code else errno.EIO, str(error), str(file)) from error
    share(file)
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def share(file: Path) -> None:
    """Let others read a file that safetensors wrote, for its owner's eyes only, as they may read any other file."""
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


def write_synced(file: Path, content: bytes) -> None:
    """Write a file and flush it to the disk."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def replace_file(file: Path, content: bytes) -> None:
    """Write a file so that it is either the old one or the new one, whenever the run is killed."""
    partial = file.with_name(f".partial-{file.name}")
    write_synced(partial, content)
    partial.replace(file)


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, tensors in optimizer.state.items()
        for key, value in tensors.items()
    }


def _sync_folder(folder: Path) -> None:
    """Flush a rename to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
