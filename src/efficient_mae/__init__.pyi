from .interop import adapt_encoder, from_hf, from_mae_checkpoint, load, to_hf, to_timm
from .masking import (
    difficulty,
    difficulty_flatten_loss,
    flatten_weights,
    p2dist,
    p2dist_exact,
    random_masking,
    select_targets,
)
from .methods import create_model

__version__: str

__all__ = [
    "adapt_encoder",
    "create_model",
    "difficulty",
    "difficulty_flatten_loss",
    "flatten_weights",
    "from_hf",
    "from_mae_checkpoint",
    "load",
    "p2dist",
    "p2dist_exact",
    "random_masking",
    "select_targets",
    "to_hf",
    "to_timm",
]
