"""Weights that others wrote, wrapped and named in their way, as those of our encoder. Nothing in a file is ever run.

Where they lie, how they are named and how large they are says what they are of; what can't be told, or isn't a plain
ViT's, is refused by name. D width, P patch size, N patches.
"""

import argparse
import math
import pickle
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from efficient_mae.backbones import SIZES
from efficient_mae.errors import InputError

# Suffixes of files that torch.save writes.
SUFFIXES = (".pth", ".pyth", ".pt", ".bin", ".ckpt")

# Where a checkpoint keeps its weights; of a teacher and its student the teacher, which is what such training is for.
_WRAPPERS = ("teacher", "state_dict", "model", "model_state_dict", "model_state", "backbone", "encoder", "module")

# Wrappers within wrappers; more are a file that holds itself.
_DEEPEST = 8

# What compiling and sharding put between the names of modules.
_WRAPPED = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# The tensor that every plain ViT has, in timm's names and in transformers'.
_PATCHES = "patch_embed.proj.weight"
_THEIR_PATCHES = "embeddings.patch_embeddings.projection.weight"

# transformers' names (of files, and of models in memory since version 5) and timm's.
_THEIRS = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.mask_token", "mask_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"layernorm\.", "norm."),
    (r"(?:encoder\.layer|layers)\.", "blocks."),
    (r"(blocks\.\d+)\.(?:layernorm_before|norm1)\.", r"\1.norm1."),
    (r"(blocks\.\d+)\.(?:layernorm_after|norm2)\.", r"\1.norm2."),
    (r"(blocks\.\d+)\.attention\.(?:attention\.)?(query|key|value|q_proj|k_proj|v_proj)\.", r"\1.attn.\2."),
    (r"(blocks\.\d+)\.attention\.(?:output\.dense|o_proj)\.", r"\1.attn.proj."),
    (r"(blocks\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"(blocks\.\d+)\.layer_scale([12])\.lambda1", r"\1.ls\2.gamma"),
)

# What lies beside an encoder in its files and isn't part of it.
_BESIDE = re.compile(r"(head|head_dist|fc_norm|pre_logits|pooler|classifier)\..*|mask_token")


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


def read_state_dict(file: Path, img_size: tuple[int, int] | None = None) -> StateDict:
    """The weights of a plain ViT in a file of somebody else's; see :func:`plain_vit`.

    Raises:
        InputError: as :func:`read_tensors` and :func:`plain_vit`.
    """
    return plain_vit(read_tensors(file), file, img_size)


def plain_vit(read: StateDict, file: Path, img_size: tuple[int, int] | None = None) -> StateDict:
    """The weights of a plain ViT among those of a file, under timm's names.

    Args:
        file: to name in errors.
        img_size: in pixels, where something says it; else images are taken for squares.

    Raises:
        InputError: there are none.
    """
    named, prefix = read.tensors, _encoder_prefix(read.tensors, file)
    left_out = read.left_out | {name: value.numel() for name, value in named.items() if not name.startswith(prefix)}
    own = {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
    try:
        state = StateDict(_folded(_renamed(own), img_size), left_out, read.content)
    except (KeyError, RuntimeError, IndexError) as error:
        raise InputError(f"{file}: weights of another architecture ({error} isn't as in a plain ViT)") from None
    return state if state.has_decoder else _encoder_alone(state)


def _encoder_alone(state: StateDict) -> StateDict:
    """Without what lies beside it; where a fine-tuned one has `fc_norm` in place of `norm`, that is its last norm."""
    weights = state.tensors
    if "norm.weight" not in weights:
        weights = {re.sub(r"^fc_norm\.", "norm.", name): value for name, value in weights.items()}
    beside = {name: value.numel() for name, value in weights.items() if _BESIDE.fullmatch(name)}
    kept = {name: value for name, value in weights.items() if name not in beside}
    return StateDict(kept, state.left_out | beside, state.content)


def _unwrapped(content: dict[str, Any], file: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The state dict within, whatever else its dict holds (an epoch, for one), and what other weights there are."""
    left_out: dict[str, int] = {}
    for _ in range(_DEEPEST):
        found = [name for name in _WRAPPERS if isinstance(content.get(name), dict)]
        if not found or any(name.endswith((_PATCHES, _THEIR_PATCHES)) for name in _tensors(content)):
            break
        for other in found[1:]:
            left_out |= {f"{other}.{name}": value.numel() for name, value in _tensors(content[other]).items()}
        content = content[found[0]]
    if not (tensors := _tensors(content)):
        raise InputError(f"{file}: holds no state dict, neither itself nor under {', '.join(_WRAPPERS)}")
    return tensors, left_out


def _tensors(content: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _encoder_prefix(names: Iterable[str], file: Path) -> str:
    """What the encoder's names begin with, whoever wrapped it.

    Raises:
        InputError: there is no encoder, or several of which none is a teacher.
    """
    marks = (_PATCHES, _THEIR_PATCHES)
    prefixes = sorted(
        {name.removesuffix(mark) for name in names for mark in marks if name == mark or name.endswith(f".{mark}")}
    )
    if not prefixes:
        raise InputError(
            f"{file}: of an architecture that can't be told: no {_PATCHES} as in a plain ViT among {first(names)}"
        )
    chosen = [prefix for prefix in prefixes if "teacher" in prefix] or prefixes
    if len(chosen) > 1:
        raise InputError(f"{file}: holds several encoders ({', '.join(chosen)}); give a file with one of them")
    return chosen[0]


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names as timm's, with queries, keys and values in one; timm's as they are."""
    if _THEIR_PATCHES not in tensors:
        return tensors
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        for theirs, ours in _THEIRS:
            name = re.sub(f"^{theirs}", ours, name)
        renamed[name] = value
    for name in [name for name in renamed if re.search(r"\.attn\.(query|q_proj)\.", name)]:
        block, which, kind = re.split(r"\.(query|q_proj)\.", name)
        parts = (which, "key", "value") if which == "query" else (which, "k_proj", "v_proj")
        renamed[f"{block}.qkv.{kind}"] = torch.cat([renamed.pop(f"{block}.{part}.{kind}") for part in parts])
    return renamed


def _folded(tensors: dict[str, Tensor], img_size: tuple[int, int] | None) -> dict[str, Tensor]:
    """Layer scale (of DINOv2) multiplied into the linear maps before it, and a class token given a position of 0
    where it has none: the same features."""
    folded = dict(tensors)
    for name in tensors:
        if match := re.fullmatch(r"(blocks\.\d+)\.ls([12])\.gamma", name):
            linear = f"{match[1]}.{'attn.proj' if match[2] == '1' else 'mlp.fc2'}"
            scale = folded.pop(name)
            folded[f"{linear}.weight"] = scale[:, None] * folded[f"{linear}.weight"]
            folded[f"{linear}.bias"] = scale * folded[f"{linear}.bias"]
    if "cls_token" in folded and "pos_embed" in folded:
        positions = folded["pos_embed"]
        patches = _patches(folded[_PATCHES], img_size, positions.shape[1])
        if positions.ndim == 3 and positions.shape[1] == patches[0] * patches[1]:
            folded["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    return folded


def _patches(kernel: Tensor, img_size: tuple[int, int] | None, most: int) -> tuple[int, int]:
    """Rows and columns of patches: of images of that size, or on the largest square of at most so many."""
    if img_size is None:
        return math.isqrt(most), math.isqrt(most)
    return img_size[0] // kernel.shape[2], img_size[1] // kernel.shape[3]


def encoder_arguments_of(
    state: StateDict, file: Path, num_heads: int | None = None, img_size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """What :class:`~efficient_mae.backbones.VisionTransformer` takes to hold these weights.

    Args:
        file: to name in errors.
        num_heads: which leave no trace in the shapes; None for the usual ones of the width.
        img_size: in pixels; None for a square.

    Raises:
        InputError: heads or image that can't be told.
        KeyError, ValueError, IndexError: another architecture.
    """
    weights = state.tensors
    width, in_chans, *patch = weights[_PATCHES].shape
    patches = weights["pos_embed"].shape[1] - 1
    rows, columns = _patches(weights[_PATCHES], img_size, patches)
    if len(patch) != 2 or patch[0] != patch[1] or rows * columns != patches:
        raise InputError(
            f"{file}: weights of another architecture, {_PATCHES} is {(width, in_chans, *patch)} and pos_embed "
            f"{tuple(weights['pos_embed'].shape)}; a plain ViT's have square patches on a square grid"
        )
    heads = {size.embed_dim: size.num_heads for size in SIZES.values()}
    if num_heads is None and width not in heads:
        raise InputError(
            f"{file}: an encoder {width} wide; its heads are known for {', '.join(map(str, heads))} only"
        )
    return {
        "img_size": (rows * patch[0], columns * patch[0]),
        "patch_size": patch[0],
        "in_chans": in_chans,
        "embed_dim": width,
        "depth": num_blocks(weights, "blocks"),
        "num_heads": num_heads or heads[width],
    }


def num_blocks(weights: dict[str, Tensor], blocks: str) -> int:
    """Number of blocks.

    Raises:
        KeyError: there are none, or some are missing.
    """
    found = {int(match[1]) for name in weights if (match := re.match(rf"{blocks}\.(\d+)\.", name))}
    if not found or found != set(range(len(found))):
        raise KeyError(blocks)
    return len(found)


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
