"""Whole numbers that are drawn, and resizing in whole numbers beside PyTorch's in floats."""

import numpy as np
import pytest
import torch

from efficient_mae.tasks.scenes.draws import Draws, resize


@pytest.mark.parametrize("target", [(28, 28), (50, 41), (7, 90), (1, 1), (13, 5)])
def test_resizing_is_bilinear(target: tuple[int, int]):
    picture = np.random.default_rng(0).integers(0, 256, (28, 20)).astype(np.uint8)
    pixels = torch.from_numpy(picture)[None, None].double()
    expected = torch.nn.functional.interpolate(pixels, target, mode="bilinear")[0, 0].numpy()
    assert np.abs(resize(picture, *target) - expected).max() <= 0.5 + 1e-9


def test_numbers_are_within_their_bounds_and_reach_them():
    draws = Draws(0)
    assert {draws.between(-1, 2) for _ in range(200)} == {-1, 0, 1, 2}
    levels = draws.levels(100, 100)
    assert levels.shape == (100, 100) and {*range(256)} == {*levels.ravel().tolist()}
    assert abs(levels.mean() - 127.5) < 3


def test_numbers_are_those_of_the_key():
    first = [Draws(*key).between(0, 2**40) for key in [(5, 0, 1), (5, 0, 1), (5, 1, 0), (5, 0, 2), (6, 0, 1)]]
    assert first[0] == first[1] and len({*first}) == 4
