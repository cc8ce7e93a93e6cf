"""Backbones: architecture only; what is done to them (compiling, wrapping, training) is done from outside."""

from efficient_mae.backbones.base import Backbone, SparseBackbone
from efficient_mae.backbones.beit import Beit
from efficient_mae.backbones.sizes import SIZES
from efficient_mae.backbones.vit import VisionTransformer

# By the word that stands for them in models' names and in files.
BACKBONES: dict[str, type[Backbone]] = {kind.family: kind for kind in (VisionTransformer, Beit)}

__all__ = ["BACKBONES", "SIZES", "Backbone", "Beit", "SparseBackbone", "VisionTransformer"]
