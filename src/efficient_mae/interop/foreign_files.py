"""Files of weights that others wrote, and the wrappers around the weights in them. Nothing in a file is ever run."""

import argparse
import pickle
import re
import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from efficient_mae.errors import InputError

# Suffixes of files that torch.save writes.
SUFFIXES = (".pth", ".pyth", ".pt", ".bin", ".ckpt")

# Where a checkpoint keeps its weights; of several the first, which is said. Of a teacher and its student that is the
# teacher, which is what such training is for.
_WRAPPERS = ("teacher", "state_dict", "model", "model_state_dict", "model_state", "backbone", "encoder", "module")

# Wrappers within wrappers; more are a file that holds itself.
_DEEPEST = 8

# What compiling and sharding put between the names of modules.
_WRAPPED = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# The tensor that every plain ViT has, in timm's names and in transformers'.
PATCHES = "patch_embed.proj.weight"
THEIR_PATCHES = "embeddings.patch_embeddings.projection.weight"


@dataclass(frozen=True)
class StateDict:
    """An encoder's weights under timm's names, perhaps with a decoder's under MAE's.

    Attributes:
        tensors: by name.
        left_out: what else the file holds, by name there: number of parameters.
        content: the whole file, of which this is a part.
    """

    tensors: dict[str, Tensor]
    left_out: dict[str, int] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)

    @property
    def has_decoder(self) -> bool:
        """Whether it is all of MAE's model."""
        return "mask_token" in self.tensors and any(name.startswith("decoder_blocks.") for name in self.tensors)


def read_tensors(file: Path) -> StateDict:
    """What is in a file of somebody else's, `.safetensors` or what torch.save wrote, under the names there, without
    what compiling and sharding put between them.

    Raises:
        InputError: no such file, no weights, or ones with code in them (which isn't run).
    """
    content = _unpickled(file) if file.suffix in SUFFIXES else _read_safetensors(file)
    tensors, left_out = _unwrapped(content, file)
    # A view of one number can claim any shape, and a model of that shape would fill the memory.
    if any(value.untyped_storage().nbytes() < value.nbytes for value in tensors.values()):
        raise InputError(f"{file}: its tensors are larger than the file, so they aren't a model's")
    return StateDict({_WRAPPED.sub("", name): value for name, value in tensors.items()}, left_out, content)


def _unwrapped(content: dict[str, Any], file: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The state dict within, whatever else its dict holds (an epoch, for one), and what other weights there are."""
    left_out: dict[str, int] = {}
    for _ in range(_DEEPEST):
        found = [name for name in _WRAPPERS if isinstance(content.get(name), dict)]
        here = not found or _has_encoder(content)
        others = _dicts(content, () if here else found[:1])
        for other, held in others.items():
            if other in found or _has_encoder(held):
                left_out |= {f"{other}.{name}": value.numel() for name, value in _tensors(held).items()}
        if rivals := [str(other) for other, held in others.items() if _has_encoder(held)]:
            tell_of_choice(file, "what lies in the dict itself" if here else found[0], rivals)
        if here:
            break
        content = content[found[0]]
    if not (tensors := _tensors(content)):
        there = f"; it has {first(map(str, content))}" if content else ""
        raise InputError(f"{file}: holds no state dict, neither itself nor under {', '.join(_WRAPPERS)}{there}")
    return tensors, left_out


def _dicts(content: dict[str, Any], but: Collection[str]) -> dict[str, dict[str, Any]]:
    """Those in a dict under other names; one that is there several times, by the first of its names."""
    distinct: dict[int, str] = {}
    for name, value in content.items():
        if isinstance(value, dict) and name not in but:
            distinct.setdefault(id(value), name)
    return {name: content[name] for name in distinct.values() if all(content[name] is not content[b] for b in but)}


def _has_encoder(content: dict[str, Any]) -> bool:
    return any(name.endswith((PATCHES, THEIR_PATCHES)) for name in _tensors(content))


def tell_of_choice(file: Path, taken: str, others: list[str]) -> None:
    """Which of the encoders in a file is taken."""
    what = f"{file}: holds several encoders: {taken} is taken, and {', '.join(others)} left out"
    warnings.warn(f"{what}; to take another, give a file with it alone", stacklevel=2)


def _tensors(content: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def first(names: Iterable[str], most: int = 3) -> str:
    """The first of some names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _read_safetensors(file: Path) -> dict[str, Any]:
    try:
        return dict(load_file(file))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not a readable safetensors file ({error})") from None


def _unpickled(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        # MAE's training checkpoints hold a Namespace, a plain record: unpickling one sets attributes, no more.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"(?:GLOBAL|Unsupported class) (\S+)", str(error)):
            raise InputError(
                f"{file}: holds more than tensors and plain values ({found[1].strip('.,')}), which could run code; "
                "nothing in it was run. Give a file with the weights alone"
            ) from None
        raise InputError(f"{file}: not a checkpoint that PyTorch wrote") from None
    # Bytes that are no checkpoint fail wherever the reader happens to stumble.
    except Exception:
        raise InputError(f"{file}: not a whole checkpoint that PyTorch wrote") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds a {type(content).__name__}, so it isn't a checkpoint of a model")
    return content
