"""The original MAE release's `.pth` files, read without running code that is in them.

Their layout: a dict whose `model` is a state dict under timm's names, the decoder's parameters beside the
encoder's; training checkpoints hold `optimizer`, `epoch`, `scaler` and `args` as well. The architecture is
inferred from shapes. D width, P patch size, N patches.
"""

import argparse
import math
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efficient_mae.backbones import SIZES, Backbone, VisionTransformer
from efficient_mae.data.batches.generators import torch_seeded
from efficient_mae.engine.storage.checkpoint import load_tensors
from efficient_mae.errors import InputError
from efficient_mae.interop import simmim_files
from efficient_mae.methods import Method
from efficient_mae.methods.mae import MAEConfig, MaskedAutoencoder

# Suffixes of files that torch.save writes.
SUFFIXES = (".pth", ".pt", ".bin")

# MAE's decoder (He et al. 2022, appendix A.1): 16 heads, whatever the encoder; the release's is 512 wide.
_DECODER_WIDTH, _DECODER_HEADS = 512, 16

# Parameters of fine-tuned and linearly probed files that aren't the encoder's.
_HEAD = re.compile(r"(head|fc_norm)\..*")


def from_mae_checkpoint(path: str | Path) -> MaskedAutoencoder:
    """The whole model in one of the original MAE's pre-training files, `full`, `visualize` or a training checkpoint.

    Mask ratio and norm_pix_loss are those in the file's `args`. The release's files have none: 0.75, and pixels
    normalised by patch unless the file's name says `visualize`. gamma is 0 and beta None, which is MAE.

    Raises:
        InputError: no such file, no checkpoint, one with code in it (which isn't run), another architecture, or an
            encoder alone, which :func:`efficient_mae.load` takes.
    """
    model = read_mae_checkpoint(Path(path))
    if isinstance(model, Method) and not isinstance(model, MaskedAutoencoder):
        raise InputError(f"{path}: holds a model of {model.config.method}; efficient_mae.load takes it")
    if not isinstance(model, MaskedAutoencoder):
        raise InputError(
            f"{path}: holds an encoder alone; efficient_mae.load takes it, or give a file with the decoder"
        )
    return model


@torch_seeded(0)
def read_mae_checkpoint(file: Path) -> Method | Backbone:
    """As :func:`from_mae_checkpoint`; the encoder alone if the file holds no decoder; and SimMIM's files.

    Of a fine-tuned file the head is left out; where it has `fc_norm` in place of `norm`, that is the encoder's
    last norm.

    Raises:
        InputError: as :func:`from_mae_checkpoint`.
    """
    content = _read(file)
    weights = content.get("model", content)
    is_state_dict = isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    )
    if not is_state_dict:
        raise InputError(f"{file}: holds no state dict, so it isn't a checkpoint of MAE")
    # A view of one number can claim any shape, and a model of that shape would fill the memory.
    if any(value.untyped_storage().nbytes() < value.nbytes for value in weights.values()):
        raise InputError(f"{file}: its tensors are larger than the file, so it isn't a checkpoint of MAE")
    if simmim_files.is_simmim(weights):
        return simmim_files.read_simmim(file, weights)
    whole = "mask_token" in weights
    if not whole:
        if "norm.weight" not in weights:
            weights = {re.sub(r"^fc_norm\.", "norm.", name): value for name, value in weights.items()}
        weights = {name: value for name, value in weights.items() if not _HEAD.fullmatch(name)}
    try:
        encoder = _encoder_arguments(file, weights)
        decoder = _decoder_arguments(file, weights, content) if whole else {}
    except (KeyError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: weights of another architecture ({error} isn't as in MAE)") from None
    model = MaskedAutoencoder(MAEConfig(**encoder, **decoder)) if whole else VisionTransformer(**encoder)
    load_tensors(weights, model, file)
    return model


def _read(file: Path) -> dict[str, Any]:
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
        raise InputError(f"{file}: holds a {type(content).__name__}, so it isn't a checkpoint of MAE")
    return content


def _encoder_arguments(file: Path, weights: dict[str, Tensor]) -> dict[str, Any]:
    width, in_chans, *patch = weights["patch_embed.proj.weight"].shape
    patches = weights["pos_embed"].shape[1] - 1
    side = math.isqrt(patches)
    if len(patch) != 2 or patch[0] != patch[1] or side**2 != patches:
        raise InputError(f"{file}: weights of another architecture; MAE's have square patches on a square grid")
    # Heads leave no trace in the shapes.
    heads = {size.embed_dim: size.num_heads for size in SIZES.values()}
    if width not in heads:
        raise InputError(
            f"{file}: an encoder {width} wide; its heads are known for {', '.join(map(str, heads))} only"
        )
    return {
        "img_size": (side * patch[0],) * 2,
        "patch_size": patch[0],
        "in_chans": in_chans,
        "embed_dim": width,
        "depth": _depth(weights, "blocks"),
        "num_heads": heads[width],
    }


def _decoder_arguments(file: Path, weights: dict[str, Tensor], content: dict[str, Any]) -> dict[str, Any]:
    width = weights["mask_token"].shape[-1]
    if width != _DECODER_WIDTH:
        raise InputError(f"{file}: a decoder {width} wide; its heads are known for {_DECODER_WIDTH} only")
    arguments = content.get("args")
    settings = vars(arguments) if isinstance(arguments, argparse.Namespace) else {}
    return {
        "decoder_embed_dim": width,
        "decoder_depth": _depth(weights, "decoder_blocks"),
        "decoder_num_heads": _DECODER_HEADS,
        "mask_ratio": settings.get("mask_ratio", 0.75),
        "norm_pix_loss": settings.get("norm_pix_loss", "visualize" not in file.name),
        "gamma": 0.0,
        "beta": None,
        "k": 8,
    }


def _depth(weights: dict[str, Tensor], blocks: str) -> int:
    """Number of blocks.

    Raises:
        KeyError: there are none, or some are missing.
    """
    found = {int(match[1]) for name in weights if (match := re.match(rf"{blocks}\.(\d+)\.", name))}
    if not found or found != set(range(len(found))):
        raise KeyError(blocks)
    return len(found)
