"""MAE and Efficient MAE."""

from efficient_mae.masking.settings import MaskSettings
from efficient_mae.methods.mae.config import MAEConfig, MAESettings
from efficient_mae.methods.mae.layout import CrossLayout, DecoderLayout, MaskLayout, build_layout
from efficient_mae.methods.mae.model import MAEOutput, MaskedAutoencoder
from efficient_mae.methods.mae.planner import MaskPlanner

__all__ = [
    "CrossLayout",
    "DecoderLayout",
    "MAEConfig",
    "MAEOutput",
    "MAESettings",
    "MaskLayout",
    "MaskPlanner",
    "MaskSettings",
    "MaskedAutoencoder",
    "build_layout",
]
