"""CAE's own `.pth` files: the encoder's names after `encoder.`, regressor and decoder after `pretext_neck.`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efficient_mae.data import default_mean_std
from efficient_mae.engine.storage.checkpoint import load_tensors
from efficient_mae.errors import InputError
from efficient_mae.interop.foreign_files import StateDict
from efficient_mae.interop.state_dicts import encoder_arguments_of, num_blocks
from efficient_mae.methods.cae import CAE, CAEConfig

# A second encoder, a copy of the first a step before, from which theirs takes the latents to be predicted.
_TEACHER = "teacher."

# Parts of their names and of ours, in the order in which they are replaced.
_PARTS = (
    ("encoder.", ""),
    ("pretext_neck.norm2.", "decoder_norm."),
    ("pretext_neck.norm.", "regressor_norm."),
    ("pretext_neck.head.", "lm_head."),
    ("pretext_neck.", ""),
    ("gamma_1_cross", "ls1.gamma"),
    ("gamma_2_cross", "ls2.gamma"),
    ("gamma_1", "ls1.gamma"),
    ("gamma_2", "ls2.gamma"),
    ("_cross.", "."),
    ("cross_attn.q_bias", "cross_attn.q.bias"),
    ("cross_attn.v_bias", "cross_attn.v.bias"),
)


def is_cae(weights: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is one of CAE's pre-training files."""
    return "pretext_neck.head.weight" in weights


def read_cae(file: Path, weights: Mapping[str, Tensor]) -> CAE:
    """The model of a pre-training file; its second encoder is not read.

    Raises:
        InputError: another architecture, as that of a decoder of another width than the encoder's.
    """
    tensors = {_our_name(name): value for name, value in weights.items() if not name.startswith(_TEACHER)}
    try:
        for name in [name for name in tensors if name.endswith(".attn.q_bias")]:
            stem = name.removesuffix("q_bias")
            q, v = tensors.pop(name), tensors.pop(f"{stem}v_bias")
            tensors[f"{stem}qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])  # keys have none
        given = encoder_arguments_of(StateDict(tensors), file)
        patch, in_chans = given["patch_size"], given["in_chans"]
        mean, std = default_mean_std(in_chans)
        grid = tuple(side // patch for side in given["img_size"])
        settings: dict[str, Any] = CAEConfig.usual((grid[0], grid[1]), given["depth"], in_chans) | given
        settings |= {f"{part}_depth": num_blocks(tensors, f"{part}_blocks") for part in ("regressor", "decoder")}
        settings |= {"mean": mean, "std": std, "vocab_size": len(tensors["lm_head.weight"])}
        model = CAE(CAEConfig(**settings))
    except (KeyError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: weights of another architecture ({error} isn't as in CAE)") from None
    load_tensors(tensors, model, file)
    return model


def _our_name(name: str) -> str:
    for theirs, ours in _PARTS:
        name = name.replace(theirs, ours)
    return name
