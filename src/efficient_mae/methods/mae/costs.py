"""What MAE and Efficient MAE cost, as the paper counts it, and its figures."""

from jaxtyping import Float64
from torch import Tensor

from efficient_mae.methods.base import PublishedCost


def stack_macs(depth: int, width: int, tokens: Float64[Tensor, " images"]) -> float:
    """Multiply-accumulates of transformer blocks for sequences of these lengths, mean over the images."""
    return depth * float((12 * width**2 * tokens + 2 * width * tokens.square()).mean())


def cross_stack_macs(
    depth: int, width: int, feature_width: int, tokens: Float64[Tensor, " images"], encoded: int
) -> float:
    """The same of blocks in which these tokens attend to so many encoded ones alone, whose features are wider."""
    macs = 10 * width**2 * tokens + 2 * width * encoded * tokens + 2 * width * feature_width * encoded
    return depth * float(macs.mean())


_MAE, _EFFICIENT = {"beta": None, "gamma": 0.0}, {"beta": 26.0, "gamma": 0.6}

# (table, size and patch size, mask ratio, Efficient MAE or MAE, the paper's GFLOPs). Table 4's columns DF and DM are
# swapped in its third and fourth row (docs/readings.md); what counts here is which row has decoder masking.
_PAPER = (
    ("1", "large_patch16", 0.0, False, 61.6),
    ("1", "large_patch16", 0.01, False, 66.4),
    ("1", "large_patch16", 0.25, False, 51.4),
    ("1", "large_patch16", 0.50, False, 36.0),
    ("1", "large_patch16", 0.75, False, 20.8),
    ("3", "base_patch16", 0.75, False, 9.8),
    ("3", "base_patch16", 0.85, True, 7.6),
    ("3", "large_patch16", 0.75, False, 20.8),
    ("3", "large_patch16", 0.85, True, 14.1),
    ("3", "huge_patch14", 0.75, False, 48.6),
    ("3", "huge_patch14", 0.85, True, 31.3),
    ("4", "large_patch16", 0.75, False, 20.8),
    ("4", "large_patch16", 0.85, False, 14.6),
    ("4", "large_patch16", 0.85, True, 14.2),
    ("4", "large_patch16", 0.90, False, 11.6),
    ("4", "large_patch16", 0.90, True, 10.3),
    ("4", "large_patch16", 0.95, False, 8.5),
    ("4", "large_patch16", 0.95, True, 5.9),
)

PUBLISHED = tuple(
    PublishedCost(
        table=table,
        model=f"mae_vit_{name}",
        settings=None if ratio == 0 else {"mask_ratio": ratio, **(_EFFICIENT if efficient else _MAE)},
        name="encoder alone" if ratio == 0 else "Efficient MAE" if efficient else "MAE",
        mask_ratio=ratio,
        gmacs=gmacs,
    )
    for table, name, ratio, efficient, gmacs in _PAPER
)
