"""Model sizes by name: `{method}_vit_{size}_patch{P}`, `{method}_swin_{size}_window{W}`, `{method}_swinv2_...`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from efficient_mae.errors import InputError, nearest


@dataclass(frozen=True)
class Size:
    """Width, depth and heads of an encoder, of a Swin the last two by stage, and the width of its decoder."""

    embed_dim: int
    depth: int | tuple[int, ...]
    num_heads: int | tuple[int, ...]
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

# Liu et al. 2021, Sec. 3.3; huge: Swin V2's (Liu et al. 2022, Sec. 4).
SWIN_SIZES = {
    "tiny": Size(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": Size(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": Size(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": Size(192, (2, 2, 18, 2), (6, 12, 24, 48)),
    "huge": Size(352, (2, 2, 18, 2), (11, 22, 44, 88)),
}
# Pixels of a Swin's patch.
SWIN_PATCH_SIZE = 4

# Channels of a decoder head: MAE's decoder has 16 heads at width 512.
DECODER_HEAD_DIM = 32

# Of each family its sizes, and what the number at a name's end is.
_FAMILIES = {"vit": (SIZES, "patch"), "swin": (SWIN_SIZES, "window"), "swinv2": (SWIN_SIZES, "window")}


def parse_name(name: str, method: str, families: Sequence[str] = ("vit",)) -> tuple[Size, int]:
    """Size and patch size in the name of a method's model, of a Swin its window size.

    Args:
        name: of a model.
        method: with whose name it begins.
        families: of encoders, that the method takes.

    Raises:
        InputError: the name is not of the form; the nearest is suggested.
    """
    match = re.fullmatch(rf"{method}_([a-z0-9]+)_([a-z]+)_([a-z]+)([1-9][0-9]*)", name)
    if match and match[1] in families:
        sizes, word = _FAMILIES[match[1]]
        if match[2] in sizes and match[3] == word:
            return sizes[match[2]], int(match[4])
    if match and match[1] in _FAMILIES and match[1] not in families:
        hint = f"{method} takes no {match[1]} encoder. "
    else:
        number = (re.search(r"[0-9]+$", name) or ["16"])[0]
        names = [f"{method}_{family}_{{}}_{_FAMILIES[family][1]}{number}" for family in families]
        known = [form.format(size) for form, family in zip(names, families) for size in _FAMILIES[family][0]]
        near = nearest(name, known, cutoff=0.4)
        hint = f"did you mean {near}? " if near else ""
    forms = [_form(method, family) for family in families]
    raise InputError(f"unknown model {name!r}: {hint}Names are {' or '.join(forms)}")


def family_of(name: str) -> str:
    """The encoder's family in the name of a model."""
    return name.split("_")[1]


def _form(method: str, family: str) -> str:
    sizes, word = _FAMILIES[family]
    return f"{method}_{family}_{{{','.join(sizes)}}}_{word}{{{word[0].upper()}}}"
