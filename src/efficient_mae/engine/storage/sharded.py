"""Sharded tensors in a folder: a safetensors file a process, read back by any number of processes, or by one alone.

PyTorch's distributed checkpoints do the planning, with the storage that is plain safetensors: their default one
pickles. Every function here that writes is called by all processes, and every process reads for itself alone.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from efficient_mae.engine.storage.durable import system_error
from efficient_mae.errors import InputError


class SavedTensor(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: torch.Size
    dtype: torch.dtype


def save_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this process' parts of sharded tensors, and a fair share of those that all processes hold.

    Raises:
        OSError: on every process, if the disk is full or not writable for any.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer)
    except CheckpointException as failure:
        error, _ = next(iter(failure.failures.values()))
        code = getattr(error, "errno", None) or system_error(str(error))
        raise OSError(code, str(error), str(folder)) from failure


def own_shards(checkpoint: Path, rank: int) -> list[Path]:
    """The files that :func:`save_shards` wrote for a process, into whichever folders of a checkpoint."""
    return sorted(checkpoint.glob(f"*/shard-{rank + 1:05d}-*.safetensors"))


def saved_tensors(folder: Path) -> dict[str, SavedTensor]:
    """What :func:`save_shards` wrote to a folder.

    Raises:
        InputError: a file is missing or not whole.
    """
    try:
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(f"{folder}: not whole sharded weights ({error})") from None
    tensors = {name: tensor for name, tensor in found.items() if isinstance(tensor, TensorStorageMetadata)}
    for name, tensor in tensors.items():
        # A part that no file holds would be left as it happens to be.
        if sum(chunk.sizes.numel() for chunk in tensor.chunks) != tensor.size.numel():
            raise InputError(f"{folder}: not whole sharded weights (a file is missing, with a part of {name})")
    return {name: SavedTensor(tensor.size, tensor.properties.dtype) for name, tensor in tensors.items()}


def read_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, whole or sharded over however many processes, from what :func:`save_shards` wrote.

    Args:
        folder: with :func:`saved_tensors` of these names and shapes.
        tensors: filled in place.

    Raises:
        InputError: a file isn't whole.
    """
    try:
        with warnings.catch_warnings():
            # "... assuming the intent is to load in a single process": each reads its own parts, whoever else does.
            warnings.simplefilter("ignore", UserWarning)
            load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    except CheckpointException as failure:
        error, _ = next(iter(failure.failures.values()))
        raise InputError(f"{folder}: not whole sharded weights ({error})") from None
