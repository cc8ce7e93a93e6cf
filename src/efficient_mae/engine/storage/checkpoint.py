"""Checkpoints: folders of plain tensors and JSON, complete or not there at all.

`checkpoints/step-00001200/` holds `model.safetensors`, `optimizer.safetensors`, `state.json` and, of all these, the
checksums. Where the model is sharded over processes, folders `model/` and `optimizer/` take the files' place, with a
safetensors file a process. A checkpoint of either kind is loaded by any number of processes. It is written under a
temporary name, flushed to the disk and then renamed, so a run that is killed at any moment leaves complete
checkpoints only. Nothing is ever unpickled.
"""

import json
import re
import shutil
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from efficient_mae.engine.machine.distributed import ALONE, Processes
from efficient_mae.engine.machine.parallel import is_sharded, place_like
from efficient_mae.engine.storage.checksums import CHECKSUMS, checksums
from efficient_mae.engine.storage.durable import PARTIAL, save_tensors, sync_folder, write_synced
from efficient_mae.engine.storage.plain_files import parse_json
from efficient_mae.engine.storage.sharded import own_shards, read_shards, save_shards, saved_tensors
from efficient_mae.errors import InputError

_FOLDER = re.compile(r"step-(\d{8,})")

# Tensors that don't fit that are named before the rest is counted.
_MOST_NAMES = 3

# Beside shards, what a safetensors file has in its header.
_HEADER = "metadata.json"


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    metadata: dict[str, str],
    keep: int,
    companions: Mapping[str, nn.Module] = MappingProxyType({}),
    processes: Processes = ALONE,
    spared: Container[int] = (),
) -> Path:
    """Write the checkpoint of a step, then remove all but the last `keep`; every process calls this.

    Args:
        folder: the run's `checkpoints` folder.
        step: number of steps done.
        model: whose state dict is saved.
        optimizer: whose per-parameter tensors are saved, by parameter name.
        state: anything else, as JSON.
        metadata: written into the model file's header, so that the file alone can be loaded.
        keep: number of checkpoints that stay.
        companions: further modules by name (an average of the weights), each saved in a file of its own.
        processes: that hold the model; of a model that is not sharded, the main one writes all.
        spared: steps of further checkpoints that stay.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    final = folder / f"step-{step:08d}"
    partial = folder / f"{PARTIAL}{final.name}"
    sharded = is_sharded(model)
    if not (sharded or processes.is_main):
        return final
    try:
        if processes.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        if sharded:
            processes.barrier()  # nobody writes before there is a folder
        parts = {name: module.state_dict() for name, module in {"model": model, **companions}.items()}
        for name, tensors in {**parts, "optimizer": _optimizer_tensors(model, optimizer)}.items():
            if sharded:
                save_shards(partial / name, tensors)
            else:
                save_tensors(partial / f"{name}.safetensors", tensors, metadata if name in parts else None)
        sums: dict[str, str] = {}
        if sharded:
            for part in processes.gather(checksums(partial, own_shards(partial, processes.rank))):
                sums |= part
        if not processes.is_main:
            return final
        if sharded:
            for name in (*parts, "optimizer"):
                write_synced(partial / name / _HEADER, json.dumps(metadata if name in parts else {}).encode())
                sync_folder(partial / name)
        write_synced(partial / "state.json", json.dumps({"step": step, **state}).encode())
        others = (file for file in partial.rglob("*") if file.is_file())
        sums |= checksums(partial, (file for file in others if file.relative_to(partial).as_posix() not in sums))
        write_synced(partial / CHECKSUMS, json.dumps(sums, indent=1, sort_keys=True).encode())
        sync_folder(partial)
        remove_checkpoint(final)
        partial.rename(final)
        sync_folder(folder)
    except OSError:
        if processes.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in find_checkpoints(folder)[:-keep]:
        if step_of(old) not in spared:
            remove_checkpoint(old)
    return final


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint if it is there; a kill leaves all of it or what the next start clears away."""
    if checkpoint.exists():
        shutil.rmtree(checkpoint.rename(checkpoint.with_name(f"{PARTIAL}old-{checkpoint.name}")))


def find_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in folder.glob("step-*") if _FOLDER.fullmatch(path.name)]
    return sorted(found, key=step_of)


def set_aside(checkpoint: Path) -> Path:
    """Rename a checkpoint that is damaged, so that it no longer counts as one; return where it is now."""
    aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return checkpoint.rename(aside)


def step_of(checkpoint: Path) -> int:
    """The number of steps done when this checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


def find_part(checkpoint: Path, name: str) -> Path:
    """The file of a checkpoint's model, optimiser or companion, or its folder if it is sharded."""
    folder = checkpoint / name
    return folder if (folder / _HEADER).is_file() else checkpoint / f"{name}.safetensors"


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    companions: Mapping[str, nn.Module] = MappingProxyType({}),
) -> dict[str, Any]:
    """Load a checkpoint into a model, its optimiser and its companions; return the rest of what was saved.

    Checkpoint and model may each be sharded or not, over however many processes.

    Raises:
        InputError: the checkpoint is of another architecture.
    """
    for name, module in {"model": model, **companions}.items():
        load_model(find_part(path, name), module)
    load_optimizer(find_part(path, "optimizer"), model, optimizer)
    return read_state(path / "state.json")


def read_state(file: Path) -> dict[str, Any]:
    """What a checkpoint holds besides tensors.

    Raises:
        InputError: no record of a number of steps and of a number of images.
    """
    state = parse_json(file.read_bytes(), str(file))
    counts = [state.get(name) for name in ("step", "num_samples")] if isinstance(state, dict) else [None]
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise InputError(f"{file}: doesn't say how many steps are done, on how many images")
    return state


def load_optimizer(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, wanted: Container[str] | None = None
) -> None:
    """Load what an optimiser keeps of each parameter.

    Args:
        path: a checkpoint's file, or its folder if it is sharded.
        model: whose parameters they are, by name.
        wanted: names among which are those of the parameters whose state is taken; None for all, of the model each.

    Raises:
        InputError: not whole.
    """
    parameters = parameters_by_name(model)
    own: dict[str, Tensor] = {}

    def named(saved: Mapping[str, Any]) -> Iterator[tuple[str, nn.Parameter, Any]]:
        for key, value in saved.items():
            name = key.rpartition("/")[0]
            if wanted is None or (name in wanted and name in parameters):
                yield key, parameters[name], value

    if path.is_dir():
        for key, parameter, saved in named(saved_tensors(path)):
            # What is kept for each of a parameter's numbers is laid out as they are.
            like = parameter.detach() if saved.shape == parameter.shape else torch.empty(saved.shape)
            own[key] = torch.zeros_like(like, dtype=saved.dtype)
        read_shards(path, own)
    else:
        for key, parameter, tensor in named(_load_tensors(path)):
            own[key] = place_like(tensor, parameter) if tensor.shape == parameter.shape else tensor
    for key, tensor in own.items():
        name, _, kind = key.rpartition("/")
        # The count of steps stays on the host unless the kernel is fused, as PyTorch itself keeps it.
        on_host = tensor.ndim == 0 and not optimizer.defaults.get("fused")
        optimizer.state[parameters[name]][kind] = tensor if on_host else tensor.to(parameters[name].device)


def read_header(path: Path) -> tuple[dict[str, str], dict[str, torch.Size]]:
    """The metadata and the tensors' shapes of a safetensors file or of a checkpoint's sharded part.

    Raises:
        InputError: neither of the two.
    """
    if path.is_dir():
        try:
            shapes = {name: saved.shape for name, saved in saved_tensors(path).items()}
            return parse_json((path / _HEADER).read_bytes(), _HEADER), shapes
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not whole sharded weights ({error})") from None
    try:
        with safe_open(path, "pt") as tensors:
            shapes = {name: torch.Size(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
            return tensors.metadata() or {}, shapes
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None


def load_model(path: Path, model: nn.Module) -> None:
    """Load a safetensors file, or a checkpoint's sharded part, into a model.

    Raises:
        InputError: not whole, or names or shapes differ; the first that do are named.
    """
    if path.is_dir():
        own = model.state_dict()
        check_architecture({name: saved.shape for name, saved in saved_tensors(path).items()}, own, path)
        read_shards(path, own)
    else:
        load_tensors(_load_tensors(path), model, path)


def load_tensors(tensors: dict[str, Tensor], model: nn.Module, file: Path) -> None:
    """Load tensors that were read from a file into a model.

    Raises:
        InputError: names or shapes differ; the first that do are named.
    """
    own = model.state_dict()
    check_architecture({name: tensor.shape for name, tensor in tensors.items()}, own, file)
    model.load_state_dict({name: place_like(tensor, own[name]) for name, tensor in tensors.items()})


def check_architecture(saved: Mapping[str, torch.Size], own: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that were saved of another model.

    Raises:
        InputError: names or shapes differ; the first that do are named.
    """
    odd = []
    for name in sorted(own.keys() | saved.keys()):
        if name not in saved:
            odd.append(f"without {name}")
        elif name not in own:
            odd.append(f"with {name}")
        elif own[name].shape != saved[name]:
            odd.append(f"{name} is {tuple(saved[name])} and not {tuple(own[name].shape)}")
    if odd:
        more = f"; and {len(odd) - _MOST_NAMES} more" if len(odd) > _MOST_NAMES else ""
        raise InputError(f"{path}: weights of another architecture, {'; '.join(odd[:_MOST_NAMES])}{more}")


def _load_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, FileNotFoundError) as error:
        raise InputError(f"{file}: not a whole safetensors file ({error})") from None


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """A model's parameters under the names that they have in its state dict, and so in files."""
    tensors = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in parameters_by_name(model).items()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, tensors in optimizer.state.items()
        for key, value in tensors.items()
    }
