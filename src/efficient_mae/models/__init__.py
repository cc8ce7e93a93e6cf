"""The models: architecture only; what is done to them (compiling, wrapping, training) is done from outside."""

from efficient_mae.models.config import MAEConfig, MAESettings
from efficient_mae.models.mae import MAEOutput, MaskedAutoencoder, create_model
from efficient_mae.models.parts import part_size
from efficient_mae.models.sizes import SIZES
from efficient_mae.models.vit import VisionTransformer

__all__ = [
    "SIZES",
    "MAEConfig",
    "MAEOutput",
    "MAESettings",
    "MaskedAutoencoder",
    "VisionTransformer",
    "create_model",
    "part_size",
]
