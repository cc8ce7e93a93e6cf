"""BEiT's own `.pth` files: timm's names, one table of relative positions. D width, K tokens, h x w patches."""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from efficient_mae.backbones import Beit
from efficient_mae.backbones.patches import grid_size
from efficient_mae.engine.storage.checkpoint import load_tensors
from efficient_mae.errors import InputError
from efficient_mae.methods.beit import BEiT, BEiTConfig

_TABLE = "relative_position_bias_table"
_WHOLE = {"mask_token", "lm_head.weight", "lm_head.bias"}

# How the published models' images are normalised.
_MEAN = _STD = (0.5, 0.5, 0.5)


def is_beit(weights: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has relative positions, as BEiT's has, and SimMIM's, which are told first."""
    return any(name.endswith(_TABLE) for name in weights)


def read_beit(file: Path, weights: Mapping[str, Tensor]) -> BEiT | Beit:
    """The model of a pre-training file, or the encoder alone where it has no head for tokens.

    Raises:
        InputError: another architecture, as that of fine-tuned files, whose blocks have a table each.
    """
    tensors = {name: value for name, value in weights.items() if not name.endswith("relative_position_index")}
    if f"rel_pos_bias.{_TABLE}" not in tensors:
        raise InputError(f"{file}: relative positions of each block, as of a fine-tuned Beit; give a pre-trained one")
    with architecture_named(file, "BEiT"):
        sizes = beit_sizes(tensors)
        usual = BEiTConfig.usual(grid_size(sizes["img_size"], sizes["patch_size"]), sizes["depth"], sizes["in_chans"])
        if sizes["in_chans"] == len(_MEAN):
            usual |= {"mean": _MEAN, "std": _STD}
        vocabulary = len(tensors["lm_head.weight"]) if tensors.keys() >= _WHOLE else 1
        config = BEiTConfig(vocab_size=vocabulary, **sizes, **usual)
    model = BEiT(config) if tensors.keys() >= _WHOLE else config.make_backbone()
    load_tensors(tensors, model, file)
    return model


def beit_sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings of a Beit that the shapes of its weights say, whatever it was trained by.

    Raises:
        InputError, KeyError, ValueError: another architecture.
    """
    width, in_chans, *patch = tensors["patch_embed.proj.weight"].shape
    rows, heads = tensors[f"rel_pos_bias.{_TABLE}"].shape
    side = (math.isqrt(rows - 3) + 1) // 2
    if len(patch) != 2 or patch[0] != patch[1] or (2 * side - 1) ** 2 + 3 != rows:
        raise InputError("a Beit's have square patches on a square grid")
    return {
        "img_size": (side * patch[0], side * patch[0]),
        "patch_size": patch[0],
        "in_chans": in_chans,
        "embed_dim": width,
        "depth": len({match[1] for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}),
        "num_heads": heads,
    }


@contextmanager
def architecture_named(file: Path, method: str) -> Iterator[None]:
    """Within, what shapes and names don't fit is InputError: weights of another architecture than the method's."""
    try:
        yield
    except (KeyError, ValueError, IndexError) as error:
        odd = error if isinstance(error, InputError) else f"{error} isn't as in {method}"
        raise InputError(f"{file}: weights of another architecture ({odd})") from None
