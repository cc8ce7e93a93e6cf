"""Outlines and run lengths hold the mask's pixels and no others, by brute force and by COCO's own code."""

from itertools import groupby

import numpy as np
import pytest

from efficient_mae.tasks.scenes.outlines import box, polygons, run_lengths


def masks(count: int) -> list[np.ndarray]:
    """Of all densities: specks, pieces that touch by corners, holes, holes that open by a corner."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 13, (count, 2))
    drawn = [rng.random(size) < rng.choice([0.2, 0.5, 0.7, 0.95]) for size in sizes]
    ring = np.ones((5, 6), bool)
    ring[1:4, 2:4] = False
    return [*drawn, ring, ~ring, np.zeros((3, 4), bool), np.ones((3, 4), bool)]


def inside(polygon: list[int], shape: tuple[int, ...]) -> np.ndarray:
    """Pixels whose centre has an odd number of the polygon's sides to its right."""
    corners = np.array(polygon).reshape(-1, 2)
    found = np.zeros(shape, bool)
    for (x, y), (end, below) in zip(corners, np.roll(corners, -1, axis=0)):
        assert (x == end) != (y == below), "each side is as long as it goes, down or across"
        if x == end:
            found[min(y, below) : max(y, below), :x] ^= True
    return found


def test_polygons_by_brute_force():
    for mask in masks(300):
        times = np.zeros(mask.shape, int)
        for polygon in polygons(mask):
            times += inside(polygon, mask.shape)
        assert (times == mask).all()


def test_run_lengths_by_brute_force():
    for mask in masks(100):
        pixels = [(pixel, len(list(run))) for pixel, run in groupby(mask.ravel(order="F").tolist())]
        counts = [0] * bool(pixels[0][0]) + [length for _, length in pixels]
        assert run_lengths(mask) == {"size": list(mask.shape), "counts": counts}


def test_coco_reads_both():
    coco = pytest.importorskip("faster_coco_eval.core.mask")
    for mask in masks(100):
        height, width = mask.shape
        assert (coco.decode(coco.frPyObjects(run_lengths(mask), height, width)) == mask).all()
        if mask.any():
            encoded = coco.merge(coco.frPyObjects(polygons(mask), height, width))
            assert (coco.decode(encoded) == mask).all()
            assert box(mask) == list(coco.toBbox(encoded))
