"""Classifiers of frozen features, learnt from few labels; whatever they choose, they choose by the labelled images.

Letters: n labelled images, N held-out images, D values of a feature, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64

from efficient_mae.tasks.classify.neighbours import Neighbours

# Penalties of the squared norm of the coefficients. A fit of ridge regression costs next to nothing once the features
# are decomposed; one of logistic regression is a search of its own.
RIDGE_STRENGTHS = np.logspace(-2, 6, 17)
LOGISTIC_STRENGTHS = np.logspace(0, 4, 5)

# Of the largest eigenvalue: what is smaller is rounding.
_RANK = 1e-12


@dataclass(frozen=True)
class Lesson:
    """What a judge learns from, and is asked.

    Attributes:
        train: features of labelled images.
        labels: theirs, 0 to K - 1.
        test: features of held-out images.
        classes: K.
        folds: of the cross-validation of logistic regression.
        seed: by which the folds are drawn.
        k: neighbours that vote.
    """

    train: Float[np.ndarray, "n D"]
    labels: Int64[np.ndarray, " n"]
    test: Float[np.ndarray, "N D"]
    classes: int
    folds: int
    seed: int
    k: int


@dataclass(frozen=True)
class Answers:
    """What a judge takes the held-out images for.

    Attributes:
        classes: of each image.
        strength: of the penalty that cross-validation chose; None where there is none.
    """

    classes: Int64[np.ndarray, " N"]
    strength: float | None


def ridge(lesson: Lesson) -> Answers:
    """Ridge regression of +1 and -1 for each class, on standardised features.

    One decomposition serves every strength; the chosen one has the least squared error where each image in turn is
    left out, which follows from the leverages.
    """
    train, test = _standardised(lesson)
    target = 2.0 * np.eye(lesson.classes)[lesson.labels] - 1.0
    mean = target.mean(axis=0)
    rotated, asked, eigenvalues = _rotated(train, test)
    along = rotated.T @ (target - mean)  # (rank, K)
    errors = []
    for strength in RIDGE_STRENGTHS:
        shrunk = 1.0 / (eigenvalues + strength)
        leverage = 1.0 / len(train) + rotated**2 @ shrunk  # the mean's part is 1 / n
        residual = target - mean - rotated @ (shrunk[:, None] * along)
        errors.append(np.square(residual / (1.0 - leverage)[:, None]).mean())
    chosen = float(RIDGE_STRENGTHS[int(np.argmin(errors))])
    scores = mean + asked @ (along / (eigenvalues + chosen)[:, None])
    return Answers(scores.argmax(axis=1), chosen)


def logistic(lesson: Lesson) -> Answers:
    """Multinomial logistic regression on standardised features; the strength with most right answers over the folds,
    the greatest of several."""
    from sklearn.model_selection import StratifiedKFold  # which starts a thread

    train, test = _standardised(lesson)
    folds = StratifiedKFold(lesson.folds, shuffle=True, random_state=lesson.seed)
    right = np.zeros(len(LOGISTIC_STRENGTHS))
    for learnt, asked in folds.split(train, lesson.labels):
        model = _LogisticPath()
        for place in reversed(range(len(right))):
            found = model.fit(train[learnt], lesson.labels[learnt], LOGISTIC_STRENGTHS[place]).predict(train[asked])
            right[place] += np.count_nonzero(found == lesson.labels[asked])
    chosen = float(LOGISTIC_STRENGTHS[int(np.flatnonzero(right == right.max())[-1])])
    return Answers(np.asarray(_LogisticPath().fit(train, lesson.labels, chosen).predict(test)), chosen)


def centred_knn(lesson: Lesson) -> Answers:
    """The vote of the nearest labelled images, by the cosine of features less the labelled images' mean."""
    mean = lesson.train.mean(axis=0)
    found = Neighbours(torch.from_numpy(lesson.test - mean), lesson.k)
    found.show(torch.from_numpy(lesson.train - mean), torch.from_numpy(lesson.labels))
    return Answers(found.votes(lesson.classes).argmax(dim=1).numpy(), None)


JUDGES: dict[str, Callable[[Lesson], Answers]] = {"ridge": ridge, "logistic": logistic, "knn": centred_knn}


class _LogisticPath:
    """Fits that begin where the one before ended: from strong to weak penalties each is near the next."""

    def __init__(self) -> None:
        from sklearn.linear_model import LogisticRegression

        self._model = LogisticRegression(warm_start=True, max_iter=1000, tol=1e-4)

    def fit(self, train: np.ndarray, labels: np.ndarray, strength: float) -> Any:
        return self._model.set_params(C=1.0 / strength).fit(train, labels)


def _standardised(lesson: Lesson) -> tuple[Float64[np.ndarray, "n D"], Float64[np.ndarray, "N D"]]:
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(lesson.train.astype(np.float64))
    train, test = (scaler.transform(part.astype(np.float64)) for part in (lesson.train, lesson.test))
    return train, test  # pyright: ignore[reportReturnType] - it may give sparse matrices of such


def _rotated(
    train: Float64[np.ndarray, "n D"], test: Float64[np.ndarray, "N D"]
) -> tuple[Float64[np.ndarray, "n rank"], Float64[np.ndarray, "N rank"], Float64[np.ndarray, " rank"]]:
    """Both along the principal axes of the labelled features, and their squared lengths there; by the smaller of the
    two products of the features with themselves."""
    if len(train) >= train.shape[1]:
        eigenvalues, axes = np.linalg.eigh(train.T @ train)
        kept = eigenvalues > _RANK * eigenvalues[-1]
        return train @ axes[:, kept], test @ axes[:, kept], eigenvalues[kept]
    eigenvalues, vectors = np.linalg.eigh(train @ train.T)
    kept = eigenvalues > _RANK * eigenvalues[-1]
    lengths = np.sqrt(eigenvalues[kept])
    return vectors[:, kept] * lengths, test @ (train.T @ (vectors[:, kept] / lengths)), eigenvalues[kept]
