"""Backbones: architecture only; what is done to them (compiling, wrapping, training) is done from outside."""

from efficient_mae.backbones.sizes import SIZES
from efficient_mae.backbones.vit import VisionTransformer

__all__ = ["SIZES", "VisionTransformer"]
