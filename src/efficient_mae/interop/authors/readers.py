"""Which method's own pre-training file a state dict is of, by the names in it; MAE's are plain."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from efficient_mae.backbones import Backbone
from efficient_mae.interop.authors import beit, cae, maskfeat, simmim
from efficient_mae.methods import Method

Reader = Callable[[Path, Mapping[str, Tensor]], Method | Backbone]

# By method: whether a state dict is of its files, and what reads it. A SimMIM's has relative positions too, so it is
# asked for before BEiT's.
_READERS: dict[str, tuple[Callable[[Mapping[str, Tensor]], bool], Reader]] = {
    "simmim": (simmim.is_simmim, simmim.read_simmim),
    "beit": (beit.is_beit, beit.read_beit),
    "cae": (cae.is_cae, cae.read_cae),
    "maskfeat": (maskfeat.is_maskfeat, maskfeat.read_maskfeat),
}


def reader_of(weights: Mapping[str, Tensor]) -> tuple[str, Reader] | None:
    """Method and reader of a state dict; None if it is none of these methods' files."""
    return next(((method, reader) for method, (is_one, reader) in _READERS.items() if is_one(weights)), None)
