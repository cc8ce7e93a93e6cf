"""Which method's own pre-training file a state dict is of, by the names in it; MAE's are plain."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from efficient_mae.backbones import Backbone
from efficient_mae.interop import beit_files, cae_files, maskfeat_files, simmim_files
from efficient_mae.methods import Method

Reader = Callable[[Path, Mapping[str, Tensor]], Method | Backbone]

# By method: whether a state dict is of its files, and what reads it. A SimMIM's has relative positions too, so it is
# asked for before BEiT's.
_READERS: dict[str, tuple[Callable[[Mapping[str, Tensor]], bool], Reader]] = {
    "simmim": (simmim_files.is_simmim, simmim_files.read_simmim),
    "beit": (beit_files.is_beit, beit_files.read_beit),
    "cae": (cae_files.is_cae, cae_files.read_cae),
    "maskfeat": (maskfeat_files.is_maskfeat, maskfeat_files.read_maskfeat),
}


def reader_of(weights: Mapping[str, Tensor]) -> tuple[str, Reader] | None:
    """Method and reader of a state dict; None if it is none of these methods' files."""
    return next(((method, reader) for method, (is_one, reader) in _READERS.items() if is_one(weights)), None)
