"""MAE and Efficient MAE."""

from efficient_mae.methods.mae.config import MAEConfig, MAESettings
from efficient_mae.methods.mae.layout import DecoderLayout, MaskLayout, build_layout
from efficient_mae.methods.mae.model import MAEOutput, MaskedAutoencoder, create_model
from efficient_mae.methods.mae.parts import part_size
from efficient_mae.methods.mae.planner import MaskPlanner
from efficient_mae.methods.mae.settings import MaskSettings

__all__ = [
    "DecoderLayout",
    "MAEConfig",
    "MAEOutput",
    "MAESettings",
    "MaskLayout",
    "MaskPlanner",
    "MaskSettings",
    "MaskedAutoencoder",
    "build_layout",
    "create_model",
    "part_size",
]
