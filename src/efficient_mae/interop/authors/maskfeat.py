"""MaskFeat's own `.pyth` files, of SlowFast: timm's names, the last norm and the layer after it in a head."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from efficient_mae.engine.storage.checkpoint import load_tensors
from efficient_mae.errors import InputError
from efficient_mae.interop.foreign_files import StateDict
from efficient_mae.interop.state_dicts import encoder_arguments_of
from efficient_mae.methods.hog import BINS
from efficient_mae.methods.maskfeat import MaskFeat, MaskFeatConfig

# Their names' beginnings, and ours. `hogs` computes targets, and is made anew.
_HEAD = {"pred_head.transforms.0.0.": "norm.", "pred_head.projections.0.": "hog_pred."}
_TARGETS = "hogs."


def is_maskfeat(weights: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is one of MaskFeat's pre-training files."""
    return "pred_head.projections.0.weight" in weights and "mask_token" in weights


def read_maskfeat(file: Path, weights: Mapping[str, Tensor]) -> MaskFeat:
    """The model of a pre-training file of a plain ViT.

    Raises:
        InputError: another architecture, as that of a model of several scales or of pixels.
    """
    tensors = {_our_name(name): value for name, value in weights.items() if not name.startswith(_TARGETS)}
    try:
        given = encoder_arguments_of(StateDict(tensors), file)
        numbers, patch = len(tensors["hog_pred.bias"]), given["patch_size"]
        cells, left = divmod(numbers, given["in_chans"] * BINS)
        side = next((side for side in range(1, patch + 1) if side**2 == cells and patch % side == 0), None)
        if left or side is None:
            raise InputError(f"{file}: predicts {numbers} numbers of a patch, which are no histograms of its cells")
        model = MaskFeat(MaskFeatConfig(**given, cell_size=patch // side))
    except (KeyError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: weights of another architecture ({error} isn't as in MaskFeat)") from None
    load_tensors(tensors, model, file)
    return model


def _our_name(name: str) -> str:
    return re.sub(f"^({'|'.join(map(re.escape, _HEAD))})", lambda found: _HEAD[found[1]], name)
