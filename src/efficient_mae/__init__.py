"""Efficient MAE: masked autoencoders that work, and cost less, at mask ratio 0.85 and above."""

from efficient_mae.interop import adapt_encoder, from_hf, from_mae_checkpoint, load, to_hf, to_timm
from efficient_mae.masking import (
    difficulty,
    difficulty_flatten_loss,
    flatten_weights,
    p2dist,
    p2dist_exact,
    random_masking,
    select_targets,
)
from efficient_mae.models import create_model

__version__ = "0.1.0"

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
