"""Visual tokens: what turns an image into words of a vocabulary, a word for each square of pixels, and back."""

from efficient_mae.methods.tokenizer.base import Tokenizer
from efficient_mae.methods.tokenizer.dalle import DalleEncoder
from efficient_mae.methods.tokenizer.dvae import DiscreteVAE, DiscreteVAEConfig, Relaxed
from efficient_mae.methods.tokenizer.files import load_tokenizer, tokenizer_metadata

__all__ = [
    "DalleEncoder",
    "DiscreteVAE",
    "DiscreteVAEConfig",
    "Relaxed",
    "Tokenizer",
    "load_tokenizer",
    "tokenizer_metadata",
]
