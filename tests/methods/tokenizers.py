"""A tokenizer that takes no training: any will do to learn the tokens of."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from efficient_mae.methods.tokenizer import DiscreteVAE, DiscreteVAEConfig, tokenizer_metadata


def write_tokenizer(folder: Path, seed: int = 0, stride: int = 2) -> Path:
    """Its file: grey images, 16 words, of 2 x 2 pixels or what is said."""
    config = DiscreteVAEConfig(in_chans=1, vocab_size=16, stride=stride, width=8, num_blocks=1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = DiscreteVAE(config)
    file = folder / f"tokenizer-{seed}.safetensors"
    save_file(tokenizer.state_dict(), file, tokenizer_metadata(config))
    return file
