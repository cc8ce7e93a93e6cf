"""A scene: garments on a textured canvas, and what is seen of each.

S is the side of a scene in pixels; h, w are a garment's.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from scipy.ndimage import binary_fill_holes, maximum_filter

from efficient_mae.data import Source
from efficient_mae.tasks.scenes.draws import Draws, resize
from efficient_mae.tasks.scenes.textures import between, canvas, colour, stripes

# A garment is what is lighter than this, and whatever that encloses.
_THRESHOLD = 12
# Pixels across which a rim takes its lightness from what is beside it.
_RIM = 3
# Places that are tried for a thing that would hide others.
_TRIES = 12
# One thing in so many is a crowd: several garments of one class, heaped.
_CROWD_IN = 12
# One garment in so many is printed with stripes.
_PRINT_IN = 3


@dataclass(frozen=True)
class Thing:
    """What is annotated as one.

    Attributes:
        label: its class.
        crowd: whether it is several garments, which nobody could tell apart.
        visible: its pixels that nothing covers, none perhaps.
    """

    label: int
    crowd: bool
    visible: Bool[np.ndarray, "S S"]


@dataclass(frozen=True)
class Scene:
    """A picture and what is on it, from the back to the front."""

    picture: UInt8[np.ndarray, "S S 3"]
    things: tuple[Thing, ...]

    @property
    def labels(self) -> UInt8[np.ndarray, "S S"]:
        """The class of each pixel, from 1; 0 is the canvas."""
        found = np.zeros(self.picture.shape[:2], np.uint8)
        for thing in self.things:
            found[thing.visible] = thing.label + 1
        return found


class Wardrobe:
    """Garments by class, each drawn as often as another, and the classes too.

    Args:
        source: labelled grey images, light on black.

    Attributes:
        classes: their names.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.classes = source.classes or ()
        labels = np.array([source.label(index) for index in range(len(source))])
        self._indices = [np.flatnonzero(labels == label) for label in range(len(self.classes))]

    def draw_class(self, draws: Draws) -> int:
        """A class."""
        return draws.between(0, len(self._indices) - 1)

    def draw(self, draws: Draws, label: int, side: int) -> UInt8[np.ndarray, "h w"]:
        """A garment of this class, turned over or not, `side` pixels high or wide, whichever is longer."""
        indices = self._indices[label]
        grey = np.asarray(self._source.image(int(indices[draws.between(0, len(indices) - 1)])))
        rows, columns = (np.flatnonzero((grey >= _THRESHOLD).any(axis)) for axis in (1, 0))
        grey = grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        if draws.between(0, 1):
            grey = grey[:, ::-1]
        height, width = grey.shape
        longest = max(height, width)
        return resize(grey, max(1, height * side // longest), max(1, width * side // longest))


def compose(wardrobe: Wardrobe, draws: Draws, size: int, objects: tuple[int, int]) -> Scene:
    """A scene.

    Args:
        wardrobe: garments.
        draws: the scene follows from these.
        size: S.
        objects: how many things there are, at least and at most.
    """
    picture, things, areas = canvas(draws, size), list[Thing](), list[int]()
    for _ in range(draws.between(*objects)):
        label, crowd = wardrobe.draw_class(draws), draws.between(1, _CROWD_IN) == 1
        tries = 0
        while True:
            garments = _lay(wardrobe, draws, size, label, crowd)
            covered = np.any([silhouette(grey) for grey in garments], axis=0)
            left = [Thing(one.label, one.crowd, one.visible & ~covered) for one in things]
            tries += 1
            if tries == _TRIES or all(2 * one.visible.sum() >= area for one, area in zip(left, areas)):
                break
        for grey in garments:
            picture = np.where(silhouette(grey)[..., None], _dye(draws, grey), picture)
        things = [*left, Thing(label, crowd, covered)]
        areas.append(int(covered.sum()))
    return Scene(picture, tuple(things))


def silhouette(grey: UInt8[np.ndarray, "S S"]) -> Bool[np.ndarray, "S S"]:
    """The garment's pixels: dark ones that it encloses are its own."""
    return np.asarray(binary_fill_holes(grey >= _THRESHOLD))


def _lay(wardrobe: Wardrobe, draws: Draws, size: int, label: int, crowd: bool) -> list[UInt8[np.ndarray, "S S"]]:
    """One garment somewhere, or a heap of some, each on black."""
    side = draws.between(size // 5, size // 3 if crowd else size // 2)
    heap = side * 3 // 2 if crowd else side
    top, left = draws.between(0, size - heap), draws.between(0, size - heap)
    laid = []
    for _ in range(draws.between(3, 5) if crowd else 1):
        grey = wardrobe.draw(draws, label, side)
        above, before = (at + draws.between(0, heap - extent) for at, extent in zip((top, left), grey.shape))
        rest = [(start, size - start - extent) for start, extent in zip((above, before), grey.shape)]
        laid.append(np.pad(grey, rest))
    return laid


def _dye(draws: Draws, grey: UInt8[np.ndarray, "S S"]) -> UInt8[np.ndarray, "S S 3"]:
    """The garment in any colour, printed perhaps, its folds darker, its rim as light as what is beside it.

    Grey fades towards the rim: a dark outline would tell where the garment ends.
    """
    grey = maximum_filter(grey, _RIM)
    dye, size = colour(draws), len(grey)
    cloth = between(dye, dye, grey)
    if draws.between(1, _PRINT_IN) == 1:
        cloth = between(dye, colour(draws), stripes(draws, size))
    shade = 70 + grey[..., None].astype(np.int64) * 185 // 255
    return (cloth * shade // 255).astype(np.uint8)
