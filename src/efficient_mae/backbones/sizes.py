"""Model sizes by name: `{method}_vit_{tiny,small,base,large,huge}_patch{P}`."""

import re
from dataclasses import dataclass

from efficient_mae.errors import InputError, nearest


@dataclass(frozen=True)
class Size:
    """Width, depth and heads of an encoder, and the width of its decoder."""

    embed_dim: int
    depth: int
    num_heads: int
    decoder_embed_dim: int = 512


# Base, large and huge with their 512-wide decoder: MAE, appendix A. Tiny and small are timm's; a decoder wider
# than the encoder would cost them most of their step.
SIZES = {
    "tiny": Size(192, 12, 3, decoder_embed_dim=192),
    "small": Size(384, 12, 6, decoder_embed_dim=256),
    "base": Size(768, 12, 12),
    "large": Size(1024, 24, 16),
    "huge": Size(1280, 32, 16),
}

# Channels of a decoder head: MAE's decoder has 16 heads at width 512.
DECODER_HEAD_DIM = 32


def parse_name(name: str, method: str) -> tuple[Size, int]:
    """Size and patch size in the name of a method's model.

    Raises:
        InputError: the name is not of the form; the nearest is suggested.
    """
    match = re.fullmatch(rf"{method}_vit_([a-z]+)_patch([1-9][0-9]*)", name)
    if match and match[1] in SIZES:
        return SIZES[match[1]], int(match[2])
    patch = (re.search(r"[0-9]+$", name) or ["16"])[0]
    names = [f"{method}_vit_{size}_patch{patch}" for size in SIZES]
    near = nearest(name, names, cutoff=0.4)
    hint = f"did you mean {near}? " if near else ""
    raise InputError(f"unknown model {name!r}: {hint}Names are {method}_vit_{{{','.join(SIZES)}}}_patch{{P}}")
