"""A small discrete variational autoencoder, to be trained on one's own images (Ramesh et al. 2021, Sec. 2.1).

An encoder prefers words, a decoder draws them. In training a word is chosen at random, by the Gumbel-softmax
relaxation (Jang et al. 2017; Maddison et al. 2017), so that the choice has a gradient. B images, C channels, h x w
pixels, H x W tokens of an image, K words of the vocabulary, D dimensions of its words.
"""

import math
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from jaxtyping import Float, Int64
from torch import Tensor, nn

from efficient_mae.errors import InputError
from efficient_mae.methods.tokenizer.base import LogitTokenizer, full_precision
from efficient_mae.ranges import PositiveInt, Settings

# Dimensions of the space in which words are directions, and the scale of preferences that training begins with.
CODE_SIZE, _SCALE = 32, 10.0

# Channels of the largest maps at least.
_NARROWEST = 16


@dataclass(frozen=True, kw_only=True)
class DiscreteVAESettings(Settings):
    """What can be chosen of such a tokenizer; each is a flag."""

    in_chans: PositiveInt = 3
    """channels that images are converted to: 1 grey, 3 RGB, 4 RGBA"""
    vocab_size: Annotated[int, Ge(2), Le(65536)] = 8192
    """words of the vocabulary"""
    stride: Annotated[int, Ge(2), Le(64)] = 8
    """pixels along each side of a token's square: 2, 4, 8, 16, 32 or 64"""
    width: Annotated[int, Ge(8)] = 128
    """channels where there is a pixel a token; half as many where there are twice as many along a side, and so on"""
    num_blocks: Annotated[int, Ge(0), Le(64)] = 2
    """residual blocks of the encoder, and of the decoder"""


@dataclass(frozen=True, kw_only=True)
class DiscreteVAEConfig(DiscreteVAESettings):
    """What such a tokenizer is made of; what its file records.

    Raises:
        InputError: a stride that is no power of two.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride & (self.stride - 1):
            raise InputError(f"stride={self.stride}: must be 2, 4, 8, 16, 32 or 64")

    @classmethod
    def of(cls, settings: DiscreteVAESettings) -> "DiscreteVAEConfig":
        """As chosen."""
        return cls(**{one.name: getattr(settings, one.name) for one in fields(cls)})

    @property
    def widths(self) -> list[int]:
        """Channels after each halving of the sides."""
        halvings = self.stride.bit_length() - 1
        return [
            max(self.width >> (halvings - number), min(self.width, _NARROWEST)) for number in range(1, halvings + 1)
        ]


@dataclass(frozen=True)
class Relaxed:
    """What a training pass gives.

    Attributes:
        pixels: drawn of words that are mixed, from about 0 to about 1.
        kl: how far the choice of each token is from an even one over the vocabulary, in nats.
    """

    pixels: Float[Tensor, "B C h w"]
    kl: Float[Tensor, "B H W"]


class DiscreteVAE(LogitTokenizer):
    """Words that an encoder prefers, and a decoder that draws them.

    Each word is a direction in a space of a few dimensions, and preferred the more the nearer the encoder's is to it
    (as in ViT-VQGAN, Yu et al. 2022): so no word is preferred for its own sake, and a vocabulary comes to use.
    """

    def __init__(self, config: DiscreteVAEConfig):
        super().__init__(config.in_chans, config.vocab_size, config.stride)
        self.config = config
        down, up = [config.in_chans, *config.widths], [*config.widths[::-1], *config.widths[:1]]
        layers = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(a, b, 4, 2, 1), nn.ReLU()) for a, b in pairwise(down)),
            *(_Block(config.width) for _ in range(config.num_blocks)),
            nn.GroupNorm(1, config.width),
            nn.Conv2d(config.width, CODE_SIZE, 1),
        )
        self.encoder = _Encoder(layers, _Words(config.vocab_size))
        self.decoder = nn.Sequential(
            nn.Conv2d(CODE_SIZE, config.width, 1),
            *(_Block(config.width) for _ in range(config.num_blocks)),
            *(nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(a, b, 4, 2, 1)) for a, b in pairwise(up)),
            nn.ReLU(),
            nn.Conv2d(up[-1], config.in_chans, 1),
        )

    def logits(self, pixels: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K H W"]:
        self.check(pixels)
        return self.encoder(2 * pixels - 1)

    @torch.no_grad()
    def decode(self, ids: Int64[Tensor, "B H W"]) -> Float[Tensor, "B C h w"]:
        with full_precision(ids):
            return self._draw(F.embedding(ids, self.encoder.words.directions)).clamp(0, 1)

    def _draw(self, codes: Float[Tensor, "B H W D"]) -> Float[Tensor, "B C h w"]:
        """Pixels of words or mixtures of them."""
        return (self.decoder(codes.permute(0, 3, 1, 2)) + 1) / 2

    def forward(
        self,
        pixels: Float[Tensor, "B C h w"],
        noise: Float[Tensor, "B K H W"],
        temperature: float,
    ) -> Relaxed:
        """Choose words at random, each as a mixture of all.

        Args:
            pixels: from 0 to 1.
            noise: numbers of the standard Gumbel distribution.
            temperature: near 0, a mixture is one word.

        Raises:
            InputError: other channels, or sides that are no multiples of the stride.
        """
        logits = self.logits(pixels).float()
        log_q = logits.log_softmax(dim=1)
        kl = (log_q.exp() * (log_q + math.log(self.vocab_size))).sum(dim=1)
        mixture = ((logits + noise) / temperature).softmax(dim=1)
        return Relaxed(self._draw(mixture.permute(0, 2, 3, 1) @ self.encoder.words.directions), kl)


class _Encoder(nn.Module):
    """From pixels to preferences: a direction for each square, and the words that it is compared with."""

    def __init__(self, layers: nn.Sequential, words: "_Words"):
        super().__init__()
        self.layers, self.words = layers, words

    def forward(self, pixels: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K H W"]:
        return self.words(self.layers(pixels))


class _Words(nn.Module):
    """A direction for each word, and how much one that is met exactly is preferred to one at a right angle to it."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(vocab_size, CODE_SIZE))
        self.log_scale = nn.Parameter(torch.tensor(math.log(_SCALE)))

    @property
    def directions(self) -> Float[Tensor, "K D"]:
        """Of length 1."""
        return F.normalize(self.weight, dim=1)

    def forward(self, codes: Float[Tensor, "B D H W"]) -> Float[Tensor, "B K H W"]:
        """How much each word is preferred."""
        return self.log_scale.exp() * F.conv2d(F.normalize(codes, dim=1), self.directions[:, :, None, None])


class _Block(nn.Module):
    """A residual branch of two convolutions."""

    def __init__(self, width: int):
        super().__init__()
        self.branch = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)
