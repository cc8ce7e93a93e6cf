"""Masks as COCO writes them: outlines of what is one object, run lengths of a crowd.

H, W are the height and width of a picture.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy.ndimage import binary_fill_holes, find_objects, label

# Ways along the edges of pixels, each turned right from the one before it: the step, (down, right), and which of the
# four pixels around a corner are to the right and to the left of the edge that leads from there this way.
_WAYS = (
    ((0, 1), (1, 1), (0, 1)),
    ((1, 0), (1, 0), (1, 1)),
    ((0, -1), (0, 0), (1, 0)),
    ((-1, 0), (0, 1), (0, 0)),
)
_ALL_AROUND = np.ones((3, 3), bool)


def polygons(mask: Bool[np.ndarray, "H W"]) -> list[list[int]]:
    """Outlines x, y, x, y, ... along the edges of pixels, which hold the mask's pixels and no others.

    No polygon of COCO's has a hole: what has one is cut in two across it.
    """
    outlines = []
    regions = np.zeros(mask.shape, np.int32)
    label(mask, output=regions)
    for number, (rows, columns) in enumerate(find_objects(regions), start=1):
        region = regions[rows, columns] == number
        # Background that reaches the outside by a corner alone is no hole: the outline goes through that corner.
        holes = np.argwhere(np.asarray(binary_fill_holes(region, _ALL_AROUND)) & ~region)
        if len(holes):
            cut = columns.start + int(holes[0][1]) + 1
            sides = (np.arange(mask.shape[1]) < cut, np.arange(mask.shape[1]) >= cut)
            outlines += [outline for side in sides for outline in polygons((regions == number) & side)]
        else:
            outlines.append(_outline(region, rows.start, columns.start))
    return outlines


def run_lengths(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """COCO's uncompressed RLE: how many pixels are outside, inside, outside, ..., one column after another."""
    flat = mask.T.reshape(-1)
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def box(mask: Bool[np.ndarray, "H W"]) -> list[int]:
    """The smallest box around the mask, which isn't empty: x, y, width, height."""
    ((rows, columns),) = find_objects(mask.astype(np.uint8))
    return [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]


def _outline(region: Bool[np.ndarray, "H W"], top: int, left: int) -> list[int]:
    """Clockwise around a region without holes whose pixels share edges, from its highest pixel.

    Args:
        top: row of the region's first row.
        left: column of its first one.
    """
    padded = np.pad(region, 1)

    def leads_on(way: int) -> bool:
        _, inside, outside = _WAYS[way]
        return padded[row + inside[0], column + inside[1]] and not padded[row + outside[0], column + outside[1]]

    row, column, way = 0, int(np.flatnonzero(region[0])[0]), 0
    start, corners = (row, column, way), list[int]()
    while not corners or (row, column, way) != start:
        corners += [left + column, top + row]
        before = way
        while way == before:
            (down, right), *_ = _WAYS[way]
            row, column = row + down, column + right
            # Where two ways lead on, the right one stays with the same pixel.
            way = next(turned for turn in (1, 0, 3) if leads_on(turned := (way + turn) % 4))
    return corners
