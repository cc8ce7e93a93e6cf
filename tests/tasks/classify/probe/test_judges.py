"""Each judge against scikit-learn, or its formula."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegressionCV, RidgeClassifier, RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from efficient_mae.tasks.classify.neighbours import TEMPERATURE
from efficient_mae.tasks.classify.probe.judges import (
    JUDGES,
    LOGISTIC_STRENGTHS,
    RIDGE_STRENGTHS,
    Lesson,
    centred_knn,
    logistic,
    ridge,
)


def lesson(width: int, train: int = 90, test: int = 200, **changed) -> Lesson:
    """Four noisy classes, far from the origin and of unlike scales."""
    rng = np.random.default_rng(width)
    labels = rng.permutation(np.arange(train + test) % 4)
    features = rng.normal(size=(4, width))[labels] + rng.normal(size=(train + test, width)) * width**0.5 * 0.45
    features = (features * rng.uniform(0.1, 9, width) + 5).astype(np.float32)
    held = {"train": features[:train], "labels": labels[:train], "test": features[train:], "classes": 4}
    return Lesson(**held | {"folds": 3, "seed": 1, "k": 7} | changed)


def standardised(one: Lesson) -> tuple[np.ndarray, np.ndarray]:
    scaler = StandardScaler().fit(one.train.astype(np.float64))
    return scaler.transform(one.train.astype(np.float64)), scaler.transform(one.test.astype(np.float64))


@pytest.mark.parametrize("width", [12, 130], ids=["more images", "more values"])
def test_ridge_is_scikit_learns(width: int):
    one = lesson(width)
    train, test = standardised(one)
    answers = ridge(one)
    reference = RidgeClassifierCV(RIDGE_STRENGTHS).fit(train, one.labels)
    assert answers.strength == reference.alpha_ and RIDGE_STRENGTHS[0] < answers.strength < RIDGE_STRENGTHS[-1]
    expected = RidgeClassifier(answers.strength).fit(train, one.labels).predict(test)
    assert np.array_equal(answers.classes, expected) and len(set(expected)) == 4


def test_logistic_regression_is_scikit_learns():
    one = lesson(12)
    train, test = standardised(one)
    folds = StratifiedKFold(one.folds, shuffle=True, random_state=one.seed)
    reference = LogisticRegressionCV(
        Cs=np.sort(1 / LOGISTIC_STRENGTHS), cv=folds, max_iter=1000, l1_ratios=(0.0,), use_legacy_attributes=False,
        scoring="accuracy",
    ).fit(train, one.labels)  # fmt: skip
    answers = logistic(one)
    assert answers.strength == pytest.approx(1 / float(np.ravel(reference.C_)[0]))
    assert (answers.classes == reference.predict(test)).mean() > 0.99


def test_neighbours_are_of_centred_features():
    one = lesson(12)
    mean = one.train.mean(axis=0)
    weights = {"weights": lambda distance: np.exp((1 - distance) / TEMPERATURE)}
    reference = KNeighborsClassifier(one.k, metric="cosine", **weights).fit(one.train - mean, one.labels)
    found = centred_knn(one).classes
    assert (found == reference.predict(one.test - mean)).mean() > 0.98
    assert (found != reference.fit(one.train, one.labels).predict(one.test)).mean() > 0.02, "it makes no difference"


@pytest.mark.parametrize("name", JUDGES)
def test_held_out_images_choose_nothing(name: str):
    """Other held-out images, in any order: the same strength, and each its own answer."""
    one = lesson(12)
    whole = JUDGES[name](one)
    order = np.random.default_rng(0).permutation(len(one.test))[:50]
    part = JUDGES[name](replace(one, test=one.test[order]))
    assert part.strength == whole.strength and np.array_equal(part.classes, whole.classes[order])


@pytest.mark.parametrize("name", JUDGES)
def test_a_value_that_never_changes_is_no_trouble(name: str):
    one = lesson(12)
    train, test = (np.hstack([part, np.full((len(part), 1), 3, np.float32)]) for part in (one.train, one.test))
    assert np.array_equal(JUDGES[name](lesson(12, train=90, test=200)).classes, JUDGES[name](one).classes)
    widened = JUDGES[name](Lesson(train, one.labels, test, 4, one.folds, one.seed, one.k))
    assert (widened.classes == JUDGES[name](one).classes).mean() > 0.99
