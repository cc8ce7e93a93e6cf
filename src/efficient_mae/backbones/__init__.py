"""Backbones: architecture only; what is done to them (compiling, wrapping, training) is done from outside."""

from efficient_mae.backbones.base import Backbone, SparseBackbone
from efficient_mae.backbones.sizes import SIZES
from efficient_mae.backbones.swin import Swin, SwinV2
from efficient_mae.backbones.vit import VisionTransformer

# By the word that stands for them in models' names and in files.
BACKBONES: dict[str, type[Backbone]] = {kind.family: kind for kind in (VisionTransformer, Swin, SwinV2)}

__all__ = ["BACKBONES", "SIZES", "Backbone", "SparseBackbone", "Swin", "SwinV2", "VisionTransformer"]
