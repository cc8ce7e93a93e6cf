"""Weights that others wrote and named in their way, as those of our encoder.

How they are named and how large they are says what they are of; what can't be told, or isn't a plain ViT's, is
refused by name. D width, P patch size, N patches.
"""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efficient_mae.backbones import SIZES
from efficient_mae.errors import InputError
from efficient_mae.interop.foreign_files import (
    PATCHES,
    THEIR_PATCHES,
    StateDict,
    first,
    read_tensors,
    tell_of_choice,
)

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


def _encoder_prefix(names: Iterable[str], file: Path) -> str:
    """What the encoder's names begin with, whoever wrapped it.

    Raises:
        InputError: there is no encoder, or several of which none is a teacher.
    """
    marks = (PATCHES, THEIR_PATCHES)
    prefixes = sorted(
        {name.removesuffix(mark) for name in names for mark in marks if name == mark or name.endswith(f".{mark}")}
    )
    if not prefixes:
        raise InputError(
            f"{file}: of an architecture that can't be told: no {PATCHES} as in a plain ViT among {first(names)}"
        )
    chosen = [prefix for prefix in prefixes if "teacher" in prefix] or prefixes
    if len(chosen) > 1:
        raise InputError(f"{file}: holds several encoders ({', '.join(chosen)}); give a file with one of them")
    if others := [prefix for prefix in prefixes if prefix != chosen[0]]:
        tell_of_choice(file, chosen[0], others)
    return chosen[0]


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names as timm's, with queries, keys and values in one; timm's as they are."""
    if THEIR_PATCHES not in tensors:
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
        patches = _patches(folded[PATCHES], img_size, positions.shape[1])
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
    width, in_chans, *patch = weights[PATCHES].shape
    patches = weights["pos_embed"].shape[1] - 1
    rows, columns = _patches(weights[PATCHES], img_size, patches)
    if len(patch) != 2 or patch[0] != patch[1] or rows * columns != patches:
        raise InputError(
            f"{file}: weights of another architecture, {PATCHES} is {(width, in_chans, *patch)} and pos_embed "
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
