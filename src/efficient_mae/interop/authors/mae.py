"""Models of others' weights (:mod:`efficient_mae.interop.state_dicts`), the original MAE release's among them.

That has a dict whose `model` is a state dict under timm's names, the decoder's parameters beside the encoder's;
training checkpoints hold `optimizer`, `epoch`, `scaler` and `args` as well. The architecture is inferred from shapes.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efficient_mae.backbones import VisionTransformer
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine.storage.checkpoint import check_architecture, load_tensors
from efficient_mae.errors import InputError
from efficient_mae.interop.authors.readers import reader_of
from efficient_mae.interop.foreign_files import StateDict, read_tensors
from efficient_mae.interop.state_dicts import (
    encoder_arguments_of,
    num_blocks,
    plain_vit,
)
from efficient_mae.methods.mae import MAEConfig, MaskedAutoencoder

# MAE's decoder (He et al. 2022, appendix A.1): 16 heads, whatever the encoder; the release's is 512 wide.
_DECODER_WIDTH, _DECODER_HEADS = 512, 16


def from_mae_checkpoint(path: str | Path) -> MaskedAutoencoder:
    """The whole model in one of the original MAE's pre-training files, `full`, `visualize` or a training checkpoint.

    Mask ratio and norm_pix_loss are those in the file's `args`. The release's files have none: 0.75, and pixels
    normalised by patch unless the file's name says `visualize`. gamma is 0 and beta None, which is MAE.

    Raises:
        InputError: no such file, no checkpoint, one with code in it (which isn't run), another architecture, or an
            encoder alone, which :func:`efficient_mae.load` takes.
    """
    file = Path(path)
    read = read_tensors(file)
    if other := reader_of(read.tensors):
        raise InputError(f"{path}: holds a model of {other[0]}; efficient_mae.load takes it")
    model = build(plain_vit(read, file), file)
    if not isinstance(model, MaskedAutoencoder):
        raise InputError(
            f"{path}: holds an encoder alone; efficient_mae.load takes it, or give a file with the decoder"
        )
    return model


@torch_seeded(0)
def build(
    state: StateDict, file: Path, num_heads: int | None = None, img_size: tuple[int, int] | None = None
) -> MaskedAutoencoder | VisionTransformer:
    """The model of these weights; the encoder alone if there is no decoder.

    Args:
        file: to name in errors.
        num_heads, img_size: of the encoder; see :func:`~efficient_mae.interop.state_dicts.encoder_arguments_of`.

    Raises:
        InputError: another architecture; the first names that don't fit are named.
    """
    try:
        encoder = encoder_arguments_of(state, file, num_heads, img_size)
        decoder = _decoder_arguments(file, state.tensors, state.content) if state.has_decoder else None
        with torch.device("meta"):  # built first, what shapes and a config describe could fill the memory
            empty = _made(encoder, decoder)
        check_architecture({name: value.shape for name, value in state.tensors.items()}, empty.state_dict(), file)
    except InputError:
        raise
    except (KeyError, ValueError, IndexError, ArithmeticError, RuntimeError) as error:
        raise InputError(f"{file}: weights of another architecture ({error} isn't as in MAE)") from None
    model = _made(encoder, decoder)
    load_tensors(state.tensors, model, file)
    return model


def _made(encoder: dict[str, Any], decoder: dict[str, Any] | None) -> MaskedAutoencoder | VisionTransformer:
    return VisionTransformer(**encoder) if decoder is None else MaskedAutoencoder(MAEConfig(**encoder, **decoder))


def _decoder_arguments(file: Path, weights: dict[str, Tensor], content: dict[str, Any]) -> dict[str, Any]:
    width = weights["mask_token"].shape[-1]
    if width != _DECODER_WIDTH:
        raise InputError(f"{file}: a decoder {width} wide; its heads are known for {_DECODER_WIDTH} only")
    arguments = content.get("args")
    settings = vars(arguments) if isinstance(arguments, argparse.Namespace) else {}
    return {
        "decoder_embed_dim": width,
        "decoder_depth": num_blocks(weights, "decoder_blocks"),
        "decoder_num_heads": _DECODER_HEADS,
        "mask_ratio": settings.get("mask_ratio", 0.75),
        "norm_pix_loss": settings.get("norm_pix_loss", "visualize" not in file.name),
        "gamma": 0.0,
        "beta": None,
        "k": 8,
    }
