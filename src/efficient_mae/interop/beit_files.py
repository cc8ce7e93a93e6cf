"""BEiT's own `.pth` files: timm's names, one table of relative positions. D width, K tokens, h x w patches."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from efficient_mae.backbones import Beit
from efficient_mae.engine.storage.checkpoint import load_tensors
from efficient_mae.errors import InputError
from efficient_mae.methods.beit import BEiT, BEiTConfig

_TABLE = "relative_position_bias_table"
_WHOLE = {"mask_token", "lm_head.weight", "lm_head.bias"}

# How the published models' images are normalised.
_MEAN = _STD = (0.5, 0.5, 0.5)


def is_beit(weights: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is one of BEiT's: no other file that is read here has relative positions."""
    return any(name.endswith(_TABLE) for name in weights)


def read_beit(file: Path, weights: Mapping[str, Tensor]) -> BEiT | Beit:
    """The model of a pre-training file, or the encoder alone where it has no head for tokens.

    Raises:
        InputError: another architecture, as that of fine-tuned files, whose blocks have a table each.
    """
    tensors = {name: value for name, value in weights.items() if not name.endswith("relative_position_index")}
    if f"rel_pos_bias.{_TABLE}" not in tensors:
        raise InputError(f"{file}: a fine-tuned Beit, with relative positions of each block; give a pre-trained one")
    try:
        width, in_chans, *patch = tensors["patch_embed.proj.weight"].shape
        rows, heads = tensors[f"rel_pos_bias.{_TABLE}"].shape
        side = (math.isqrt(rows - 3) + 1) // 2
        if len(patch) != 2 or patch[0] != patch[1] or (2 * side - 1) ** 2 + 3 != rows:
            raise InputError(f"{file}: weights of another architecture; BEiT's have square patches on a square grid")
        depth = len({match[1] for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))})
        vocabulary = len(tensors["lm_head.weight"]) if tensors.keys() >= _WHOLE else 1
        usual = BEiTConfig.usual((side, side), depth, in_chans)
        if in_chans == len(_MEAN):
            usual |= {"mean": _MEAN, "std": _STD}
        config = BEiTConfig(
            img_size=(side * patch[0], side * patch[0]),
            patch_size=patch[0],
            in_chans=in_chans,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            vocab_size=vocabulary,
            **usual,
        )
    except (KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: weights of another architecture ({error} isn't as in BEiT)") from None
    model = BEiT(config) if tensors.keys() >= _WHOLE else config.make_backbone()
    load_tensors(tensors, model, file)
    return model
