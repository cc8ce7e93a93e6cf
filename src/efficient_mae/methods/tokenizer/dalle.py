"""DALL-E's encoder (Ramesh et al. 2021): a token for 8 x 8 pixels. There is no decoder.

Its published size is `DalleEncoder()`. B images, C channels, h x w pixels, H x W tokens of an image, K words.
"""

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor, nn

from efficient_mae.methods.tokenizer.base import LogitTokenizer

# Groups of blocks, each twice as wide as the one before and, between two of them, with half the sides.
GROUPS = 4

# Pixels are seen in this span of the numbers from 0 to 1.
_LOWEST, _SPAN = 0.1, 0.8


class DalleEncoder(LogitTokenizer):
    """A plain convolutional network.

    Args:
        width: channels of the first group.
        num_blocks: of a group.
    """

    def __init__(self, in_chans: int = 3, vocab_size: int = 8192, width: int = 256, num_blocks: int = 2):
        super().__init__(in_chans, vocab_size, stride=2 ** (GROUPS - 1))
        gain, before = 1 / (GROUPS * num_blocks) ** 2, width
        layers: OrderedDict[str, nn.Module] = OrderedDict(input=nn.Conv2d(in_chans, width, 7, padding=3))
        for group in range(GROUPS):
            after = width * 2**group
            blocks = (_Block(after if place else before, after, gain) for place in range(num_blocks))
            parts = OrderedDict[str, nn.Module]((f"block_{place}", block) for place, block in enumerate(blocks, 1))
            if group < GROUPS - 1:
                parts["pool"] = nn.MaxPool2d(2)
            layers[f"group_{group + 1}"], before = nn.Sequential(parts), after
        layers |= {"relu": nn.ReLU(), "output": nn.Conv2d(before, vocab_size, 1)}
        self.encoder = nn.Sequential(layers)

    def logits(self, pixels: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K H W"]:
        self.check(pixels)
        return self.encoder(pixels * _SPAN + _LOWEST)


class _Block(nn.Module):
    """A residual branch in a bottleneck, with a small weight that is the same for all blocks."""

    def __init__(self, before: int, width: int, gain: float):
        super().__init__()
        inner = width // 4
        sizes = [(before, inner, 3), (inner, inner, 3), (inner, inner, 3), (inner, width, 1)]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (one, other, kernel) in enumerate(sizes, start=1):
            layers[f"relu_{number}"] = nn.ReLU()
            layers[f"conv_{number}"] = nn.Conv2d(one, other, kernel, padding=kernel // 2)
        self.gain = gain
        self.id_path = nn.Identity() if before == width else nn.Conv2d(before, width, 1)
        self.res_path = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.gain * self.res_path(x)
