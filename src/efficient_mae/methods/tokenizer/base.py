"""What a tokenizer is to a method that learns its tokens.

B images, C channels, h x w pixels, H x W tokens of an image, K words of the vocabulary.
"""

import copy
import hashlib
from abc import ABC, abstractmethod
from contextlib import nullcontext

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from efficient_mae.errors import InputError


class Tokenizer(nn.Module, ABC):
    """Names every square of an image by a word of a vocabulary.

    Attributes:
        in_chans: channels of the images that it takes.
        vocab_size: words; a token is one of 0 to vocab_size - 1.
        stride: pixels along each side of a token's square.
    """

    in_chans: int
    vocab_size: int
    stride: int

    @abstractmethod
    def encode(self, pixels: Float[Tensor, "B C h w"]) -> Int64[Tensor, "B H W"]:
        """The tokens of images, one for each `stride` x `stride` pixels; computed in the weights' precision.

        Args:
            pixels: from 0 to 1, not normalised.

        Raises:
            InputError: other channels, or sides that are no multiples of the stride.
        """

    @abstractmethod
    def decode(self, ids: Int64[Tensor, "B H W"]) -> Float[Tensor, "B C h w"] | None:
        """The images that tokens stand for, pixels from 0 to 1; None if it can't draw."""

    def gmacs(self, grid_size: tuple[int, int]) -> float:
        """Multiply-accumulates, 1e9, of the H x W tokens of an image."""
        height, width = (side * self.stride for side in grid_size)
        counted = copy.deepcopy(self).to("meta")
        with FlopCounterMode(display=False) as counter:
            counted.encode(torch.empty(1, self.in_chans, height, width, device="meta"))
        return counter.get_total_flops() / 2e9

    @property
    @abstractmethod
    def digest(self) -> str:
        """Of all that its tokens follow from, in hexadecimal: those of the same digest give the same tokens."""


class LogitTokenizer(Tokenizer):
    """A tokenizer whose token is the word that its `encoder` prefers."""

    def __init__(self, in_chans: int, vocab_size: int, stride: int):
        super().__init__()
        self.in_chans, self.vocab_size, self.stride = in_chans, vocab_size, stride

    @abstractmethod
    def logits(self, pixels: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K H W"]:
        """How much each word is preferred; arguments and errors as of :meth:`encode`."""

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "B C h w"]) -> Int64[Tensor, "B H W"]:
        with full_precision(pixels):
            return self.logits(pixels.to(next(self.parameters()).dtype)).argmax(dim=1)

    def decode(self, ids: Int64[Tensor, "B H W"]) -> Float[Tensor, "B C h w"] | None:
        return None

    @property
    def digest(self) -> str:
        digest = hashlib.sha256(type(self).__name__.encode())
        for name, tensor in sorted(self.get_submodule("encoder").state_dict().items()):
            digest.update(f"{name} {list(tensor.shape)}".encode())
            digest.update(tensor.float().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def check(self, pixels: Float[Tensor, "B C h w"]) -> None:
        """Refuse images that it doesn't take.

        Raises:
            InputError: other channels, or sides that are no multiples of the stride.
        """
        _, channels, height, width = pixels.shape
        if channels != self.in_chans:
            raise InputError(f"images of {channels} channels: the tokenizer takes {self.in_chans}")
        if height % self.stride or width % self.stride:
            raise InputError(
                f"images of {height} x {width} pixels: a token is of {self.stride} x {self.stride}, so give multiples"
            )


def full_precision(tensor: Tensor) -> torch.autocast | nullcontext[None]:
    """Within, nothing is computed in fewer bits than the weights have, whatever surrounds it."""
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)
