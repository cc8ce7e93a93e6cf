"""What scenes lie on: noise, stripes and checks in random colours.

S is the side of a scene in pixels.
"""

import numpy as np
from jaxtyping import Bool, Integer, UInt8

from efficient_mae.tasks.scenes.draws import Draws, resize

# Cells of the grids whose sum is noise, along a side; each counts twice as much as the next finer one.
_OCTAVES = (3, 6, 12, 24)


def canvas(draws: Draws, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """A background: regions of two or three textures, with grain.

    Their edges are edges that belong to no object.
    """
    picture = texture(draws, size)
    for _ in range(draws.between(1, 2)):
        region = noise(draws, size) > draws.between(120, 145)
        picture = np.where(region[..., None], texture(draws, size), picture)
    grain = draws.levels(size, size, 1) % 25
    return np.clip(picture + grain.astype(np.int64) - 12, 0, 255).astype(np.uint8)


def texture(draws: Draws, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """A pattern between two colours."""
    pattern = (noise, stripes, checks)[draws.between(0, 2)](draws, size)
    return between(colour(draws), colour(draws), pattern)


def colour(draws: Draws) -> UInt8[np.ndarray, " 3"]:
    """Any colour, red, green and blue alike."""
    return draws.levels(3)


def between(
    dark: UInt8[np.ndarray, " 3"], light: UInt8[np.ndarray, " 3"], share: UInt8[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Colours from `dark` at 0 to `light` at 255."""
    part = share[..., None].astype(np.int64)
    return (((255 - part) * dark + part * light + 127) // 255).astype(np.uint8)


def noise(draws: Draws, size: int) -> UInt8[np.ndarray, "S S"]:
    """Clouds: random levels on ever finer grids, summed."""
    weights = [2**finer for finer in reversed(range(len(_OCTAVES)))]
    octaves = [resize(draws.levels(cells, cells), size, size).astype(np.int64) for cells in _OCTAVES]
    mean = sum(weight * octave for weight, octave in zip(weights, octaves)) // sum(weights)
    # The mean of several lies near the middle: stretched, so that both colours are seen.
    return np.clip(2 * mean - 128, 0, 255).astype(np.uint8)


def stripes(draws: Draws, size: int) -> UInt8[np.ndarray, "S S"]:
    """A grating in any of some directions, bent by clouds."""
    down, right = np.indices((size, size))
    period = draws.between(size // 16, size // 4)
    along = draws.between(-3, 3) * down + draws.between(1, 3) * right
    phase = (along + noise(draws, size).astype(np.int64) * period * draws.between(0, 2) // 256) % period
    return (510 * np.minimum(phase, period - phase) // period).astype(np.uint8)


def checks(draws: Draws, size: int) -> UInt8[np.ndarray, "S S"]:
    """Two kinds of squares, cloudy ones and plain ones."""
    side = draws.between(size // 16, size // 5)
    down, right = np.indices((size, size)) + draws.between(0, side)
    even: Bool[np.ndarray, "S S"] = (down // side + right // side) % 2 == 0
    clouds: Integer[np.ndarray, "S S"] = noise(draws, size).astype(np.int64)
    return np.where(even, clouds // 3, 170 + clouds // 3).astype(np.uint8)
