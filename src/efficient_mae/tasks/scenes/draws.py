"""Random whole numbers, and pictures of them: the same on every machine, since nothing here is a float.

H, W and h, w are the height and width of a picture.
"""

import numpy as np
from jaxtyping import Int64, Integer, UInt8


class Draws:
    """Whole numbers, all that a scene draws.

    They follow from a bit generator's raw output, which NumPy promises to keep; of its distributions it doesn't.

    Args:
        key: says which numbers these are, such as (seed, part, index).
    """

    def __init__(self, *key: int) -> None:
        self._bits = np.random.Philox(np.random.SeedSequence(key))

    def between(self, low: int, high: int) -> int:
        """One number, low to high, both among them."""
        return low + int(self._bits.random_raw()) % (high - low + 1)

    def levels(self, *shape: int) -> UInt8[np.ndarray, "*shape"]:
        """An array of numbers from 0 to 255."""
        return (self._bits.random_raw(int(np.prod(shape))) & 255).astype(np.uint8).reshape(shape)


def resize(picture: UInt8[np.ndarray, "h w"], height: int, width: int) -> UInt8[np.ndarray, "H W"]:
    """The picture at another size, bilinear: in whole numbers, where Pillow and torchvision have floats."""
    rows = _blend(picture.astype(np.int64), height)  # (H, w)
    both = _blend(rows.T, width).T  # (H, W)
    scale = 4 * height * width
    return ((both + scale // 2) // scale).astype(np.uint8)


def _blend(lines: Int64[np.ndarray, "h w"], count: int) -> Integer[np.ndarray, "H w"]:
    """`count` lines between these ones, times twice their number."""
    places = np.clip((2 * np.arange(count) + 1) * len(lines) - count, 0, 2 * count * (len(lines) - 1))
    before, share = np.divmod(places, 2 * count)
    after = np.minimum(before + 1, len(lines) - 1)
    return (2 * count - share)[:, None] * lines[before] + share[:, None] * lines[after]
