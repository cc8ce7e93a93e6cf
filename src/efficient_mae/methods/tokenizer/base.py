"""What a tokenizer is to a method that learns its tokens.

B images, C channels, h x w pixels, H x W tokens of an image.
"""

from abc import ABC, abstractmethod

from jaxtyping import Float, Int64
from torch import Tensor, nn


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

    @property
    @abstractmethod
    def digest(self) -> str:
        """Of all that its tokens follow from, in hexadecimal: those of the same digest give the same tokens."""
