"""A scene's picture and its masks fit, each garment is seen, and neither colour nor place tells the class."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from efficient_mae.data import open_source
from efficient_mae.tasks.scenes.compose import Scene, Wardrobe, compose
from efficient_mae.tasks.scenes.draws import Draws
from efficient_mae.tasks.scenes.textures import canvas

SIZE = 64


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    wardrobe = Wardrobe(open_source("fashion-mnist-sample"))
    return [compose(wardrobe, Draws(0, 0, index), SIZE, (2, 5)) for index in range(80)]


def test_what_is_no_garment_is_canvas(scenes: list[Scene]):
    for index, scene in enumerate(scenes):
        behind = scene.labels == 0
        changed = (scene.picture != canvas(Draws(0, 0, index), SIZE)).any(-1)
        assert not changed[behind].any() and changed[~behind].mean() > 0.98


def test_there_are_as_many_as_were_asked_for_and_each_is_seen(scenes: list[Scene]):
    counts = {len(scene.things) for scene in scenes}
    assert counts == {2, 3, 4, 5}
    things = [thing for scene in scenes for thing in scene.things]
    assert {thing.label for thing in things} == {*range(10)} and {thing.crowd for thing in things} == {True, False}
    assert min(thing.visible.sum() for thing in things) >= 8


def test_colour_and_place_do_not_tell_the_class(scenes: list[Scene]):
    """One in ten is chance."""
    drawn = [(scene.picture[thing.visible], thing) for scene in scenes for thing in scene.things]
    places = [np.argwhere(thing.visible).mean(0) / SIZE for _, thing in drawn]
    features = np.stack([np.concatenate([pixels.mean(0) / 255, place]) for (pixels, _), place in zip(drawn, places)])
    labels = np.array([thing.label for _, thing in drawn])
    half = len(labels) // 2
    judge = LogisticRegression(C=10, max_iter=1000).fit(features[:half], labels[:half])
    assert judge.score(features[half:], labels[half:]) < 0.25
