"""A discrete variational autoencoder in the architecture of DALL-E's (Ramesh et al. 2021), of any size.

Its published encoder is `DiscreteVAEConfig()`: 256 wide, 8,192 words, a token for 8 x 8 pixels. B images, C channels,
h x w pixels, H x W tokens of an image, K words of the vocabulary.
"""

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from jaxtyping import Float, Int64
from torch import Tensor, nn

from efficient_mae.errors import InputError
from efficient_mae.methods.tokenizer.base import Tokenizer
from efficient_mae.ranges import PositiveInt, Settings

# Pixels are seen in this span of the numbers from 0 to 1.
_LOWEST, _SPAN = 0.1, 0.8


@dataclass(frozen=True, kw_only=True)
class DiscreteVAEConfig(Settings):
    """What such a tokenizer is made of; what its file records.

    Attributes:
        width: channels of the first group of blocks; each group has twice as many as the one before.
        num_groups: between two of which the sides are halved.
        num_blocks: of a group.
        code_size: of the vector that the decoder keeps of each word; None where there is no decoder.
    """

    in_chans: PositiveInt = 3
    vocab_size: Annotated[int, Ge(2)] = 8192
    width: Annotated[int, Ge(4)] = 256
    num_groups: Annotated[int, Ge(1), Le(8)] = 4
    num_blocks: Annotated[int, Ge(1), Le(16)] = 2
    code_size: PositiveInt | None = None

    @property
    def widths(self) -> list[int]:
        """Of each group."""
        return [self.width * 2**group for group in range(self.num_groups)]


@dataclass(frozen=True)
class Relaxed:
    """What a training pass gives.

    Attributes:
        pixels: drawn of words that are mixed, from about 0 to about 1.
        kl: how far the choice of each token is from an even one over the vocabulary, in nats.
    """

    pixels: Float[Tensor, "B C h w"]
    kl: Float[Tensor, "B H W"]


class DiscreteVAE(Tokenizer):
    """Words that an encoder chooses and, where there is a decoder, draws."""

    def __init__(self, config: DiscreteVAEConfig):
        super().__init__()
        self.config = config
        self.in_chans, self.vocab_size, self.stride = config.in_chans, config.vocab_size, 2 ** (config.num_groups - 1)
        self.encoder = _encoder(config)
        self.decoder = None if config.code_size is None else _Decoder(config, config.code_size)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                nn.init.zeros_(module.bias)

    def logits(self, pixels: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K H W"]:
        """How much each word is to be preferred; arguments and errors as of :meth:`encode`."""
        _, channels, height, width = pixels.shape
        if channels != self.in_chans:
            raise InputError(f"images of {channels} channels: the tokenizer takes {self.in_chans}")
        if height % self.stride or width % self.stride:
            raise InputError(
                f"images of {height} x {width} pixels: a token is of {self.stride} x {self.stride}, so give multiples"
            )
        return self.encoder(pixels * _SPAN + _LOWEST)

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "B C h w"]) -> Int64[Tensor, "B H W"]:
        with nullcontext() if pixels.is_meta else torch.autocast(pixels.device.type, enabled=False):
            return self.logits(pixels.to(next(self.encoder.parameters()).dtype)).argmax(dim=1)

    @torch.no_grad()
    def decode(self, ids: Int64[Tensor, "B H W"]) -> Float[Tensor, "B C h w"] | None:
        if self.decoder is None:
            return None
        with nullcontext() if ids.is_meta else torch.autocast(ids.device.type, enabled=False):
            return self.decoder(F.embedding(ids, self.decoder.codes).permute(0, 3, 1, 2)).clamp(0, 1)

    def forward(
        self,
        pixels: Float[Tensor, "B C h w"],
        noise: Callable[[torch.Size], Float[Tensor, "B K H W"]],
        temperature: Float[Tensor, ""],
    ) -> Relaxed:
        """Choose words at random, each by a mixture of all that a choice can be differentiated through.

        Args:
            noise: makes Gumbel-distributed numbers of a shape.
            temperature: of the mixture: near 0 it is one word (Jang et al. 2017, Eq. 2).

        Raises:
            ValueError: there is no decoder.
        """
        if self.decoder is None:
            raise ValueError("a tokenizer without a decoder has nothing to be trained by")
        logits = self.logits(pixels).float()
        log_q = logits.log_softmax(dim=1)
        kl = (log_q.exp() * (log_q + math.log(self.vocab_size))).sum(dim=1)
        mixture = ((logits + noise(logits.shape)) / temperature).softmax(dim=1)
        return Relaxed(self.decoder(torch.einsum("bkhw,kd->bdhw", mixture, self.decoder.codes)), kl)

    @property
    def digest(self) -> str:
        held = {**asdict(self.config), "code_size": None}
        digest = hashlib.sha256(json.dumps(held, sort_keys=True).encode())
        for name, tensor in sorted(self.encoder.state_dict().items()):
            digest.update(name.encode() + tensor.float().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()


class _Block(nn.Module):
    """A residual branch in a bottleneck, with a small weight that is the same for all blocks."""

    def __init__(self, before: int, width: int, gain: float):
        super().__init__()
        inner = width // 4
        self.gain = gain
        self.id_path = nn.Identity() if before == width else nn.Conv2d(before, width, 1)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (a, b, kernel) in enumerate(
            [(before, inner, 3), (inner, inner, 3), (inner, inner, 3), (inner, width, 1)], start=1
        ):
            layers[f"relu_{number}"] = nn.ReLU()
            layers[f"conv_{number}"] = nn.Conv2d(a, b, kernel, padding=kernel // 2)
        self.res_path = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.gain * self.res_path(x)


def _groups(before: int, widths: list[int], num_blocks: int, between: nn.Module) -> OrderedDict[str, nn.Module]:
    """Groups of blocks, with something between two of them."""
    gain = 1 / (len(widths) * num_blocks) ** 2
    groups: OrderedDict[str, nn.Module] = OrderedDict()
    for number, width in enumerate(widths, start=1):
        blocks = OrderedDict[str, nn.Module](
            (f"block_{place + 1}", _Block(width if place else before, width, gain)) for place in range(num_blocks)
        )
        groups[f"group_{number}"] = nn.Sequential(blocks)
        if number < len(widths):
            groups[f"between_{number}"] = between
        before = width
    return groups


def _encoder(config: DiscreteVAEConfig) -> nn.Sequential:
    """From pixels to logits."""
    widths = config.widths
    return nn.Sequential(
        OrderedDict(
            input=nn.Conv2d(config.in_chans, widths[0], 7, padding=3),
            **_groups(widths[0], widths, config.num_blocks, nn.MaxPool2d(2)),
            relu=nn.ReLU(),
            output=nn.Conv2d(widths[-1], config.vocab_size, 1),
        )
    )


class _Decoder(nn.Module):
    """From words' vectors to pixels: the encoder's groups the other way round."""

    def __init__(self, config: DiscreteVAEConfig, code_size: int):
        super().__init__()
        self.codes = nn.Parameter(torch.randn(config.vocab_size, code_size))
        widths = config.widths[::-1]
        self.draw = nn.Sequential(
            OrderedDict(
                **_groups(code_size, widths, config.num_blocks, nn.Upsample(scale_factor=2)),
                relu=nn.ReLU(),
                output=nn.Conv2d(widths[-1], config.in_chans, 1),
            )
        )

    def forward(self, codes: Float[Tensor, "B D H W"]) -> Float[Tensor, "B C h w"]:
        return 0.5 + self.draw(codes)
