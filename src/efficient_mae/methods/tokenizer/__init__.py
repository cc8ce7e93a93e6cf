"""Visual tokens: what turns an image into words of a vocabulary, a word for each square of pixels, and back."""

from efficient_mae.methods.tokenizer.base import Tokenizer
from efficient_mae.methods.tokenizer.dalle import DalleEncoder
from efficient_mae.methods.tokenizer.dvae import DiscreteVAE, DiscreteVAEConfig, DiscreteVAESettings, Relaxed
from efficient_mae.methods.tokenizer.files import TOKENIZER_FILE, load_tokenizer, tokenizer_metadata

__all__ = [
    "TOKENIZER_FILE",
    "DalleEncoder",
    "DiscreteVAE",
    "DiscreteVAEConfig",
    "DiscreteVAESettings",
    "Relaxed",
    "Tokenizer",
    "load_tokenizer",
    "tokenizer_metadata",
]
