"""Intervals against simulations, tests against their formulas."""

import math

import numpy as np
import pytest
from scipy.stats import norm, ttest_rel

from efficient_mae.tasks.classify.probe.statistics import (
    Bootstrap,
    holm,
    mcnemar,
    replicates,
)


def crossed(rng: np.random.Generator, seeds: int, subsets: int, images: int, gain: float) -> np.ndarray:
    """Differences with a part of each seed, subset and image, and one of their own, about a true gain."""
    parts = (
        rng.normal(size=(seeds, 1, 1)) * 0.02,
        rng.normal(size=(1, subsets, 1)) * 0.01,
        rng.normal(size=(1, 1, images)) * 0.05,
        rng.normal(size=(seeds, subsets, images)) * 0.1,
    )
    return (gain + sum(parts)).astype(np.float32)  # pyright: ignore[reportAttributeAccessIssue]


def test_the_interval_covers_what_is_true():
    """95 of a hundred, over anew drawn seeds, subsets and images at once; of images alone it would be far fewer."""
    rng = np.random.default_rng(0)
    covered, alone = 0, 0
    for _ in range(150):
        values = crossed(rng, 12, 10, 150, 0.03)
        low, high = np.quantile(replicates(values, number=300), (0.025, 0.975))
        covered += low <= 0.03 <= high
        low, high = np.quantile(replicates(values.mean(axis=(0, 1), keepdims=True), number=300), (0.025, 0.975))
        alone += low <= 0.03 <= high
    assert 0.89 * 150 <= covered <= 150
    assert alone < 0.85 * 150, "images alone would do"


def test_its_spread_is_that_of_the_means():
    """Of 4 seeds and nothing else: the standard error of their mean, not one too small by 4 / 3."""
    values = np.float32([1, 4, 2, 9])[:, None, None] * np.ones((1, 5, 20), np.float32)
    expected = np.std([1, 4, 2, 9], ddof=1) / 2
    assert replicates(values, number=20_000).std() == pytest.approx(expected, rel=0.03)


def test_a_paired_difference():
    rng = np.random.default_rng(1)
    first = rng.random((1, 10, 400)) < 0.7
    better = first | (rng.random((1, 10, 400)) < 0.2)
    found = Bootstrap.of({"a": first, "b": better, "c": first})
    gain = found.difference("a", "b")
    assert gain.mean == pytest.approx(better.mean() - first.mean())
    assert 0 < gain.low < gain.mean < gain.high and gain.p < 0.001
    assert found.difference("b", "a").mean == -gain.mean
    same = found.difference("a", "c")
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert Bootstrap.of({"a": first, "b": better}).difference("a", "b") == gain
    tables = Bootstrap.of_each({"other": {"a": better}, "this": {"a": first, "b": better}})
    assert tables["this"].difference("a", "b") == gain and tables["other"].means == {"a": better.mean()}
    estimate = found.accuracy("a")
    assert estimate.low < first.mean() < estimate.high


def answered(rng: np.random.Generator, chances: np.ndarray, images: int) -> np.ndarray:
    """Answers of each seed with its chance, to two label subsets."""
    return rng.random((len(chances), 2, images)) < chances[:, None, None]


def test_where_seeds_alone_differ_it_is_the_t_test_of_pairs():
    rng = np.random.default_rng(3)
    first, second = (answered(rng, np.array(chances), 20_000) for chances in ([0.4, 0.42, 0.45], [0.5, 0.6, 0.72]))
    drawn = Bootstrap.of({"a": first, "b": second})
    found, of_draws = drawn.difference("a", "b"), drawn.quantiles("a", "b")
    known = ttest_rel(second.mean(axis=(1, 2)), first.mean(axis=(1, 2)))
    interval = known.confidence_interval(0.95)
    half, expected = (found.high - found.low) / 2, (interval.high - interval.low) / 2
    assert half == pytest.approx(expected, rel=0.06) and (found.high + found.low) / 2 == pytest.approx(found.mean)
    assert found.p == pytest.approx(known.pvalue, rel=0.2)
    assert of_draws.high - of_draws.low < half, "of three seeds they say half as much"


def test_where_images_alone_differ_it_is_the_normal_one():
    rng = np.random.default_rng(4)
    first, second = (np.broadcast_to(rng.random(500) < chance, (4, 3, 500)) for chance in (0.6, 0.64))
    found = Bootstrap.of({"a": first, "b": second}).difference("a", "b")
    gains = second[0, 0] * 1.0 - first[0, 0]
    error = gains.std(ddof=1) / np.sqrt(500)
    assert (found.high - found.low) / 2 == pytest.approx(norm.ppf(0.975) * error, rel=0.03)
    assert found.p == pytest.approx(2 * norm.sf(gains.mean() / error), rel=0.15)


def test_rows_have_the_same_draws():
    """Each by itself, and their differences by themselves, give the same to the last bit."""
    rows = np.random.default_rng(2).random((3, 4, 5, 60)) < 0.7
    together = replicates(rows.astype(np.float32), number=200)
    for row, found in zip(rows, together.T, strict=True):
        np.testing.assert_array_equal(replicates(row.astype(np.float32), number=200), found)
    gains = replicates(rows[1].astype(np.float32) - rows[0], number=200)
    np.testing.assert_allclose(gains, together[:, 1] - together[:, 0], rtol=0, atol=1e-15)


def test_mcnemar_is_the_exact_binomial():
    first = np.array([True] * 9 + [False] * 2 + [True] * 30)
    second = np.array([False] * 9 + [True] * 2 + [True] * 30)
    by_hand = 2 * sum(math.comb(11, count) for count in range(3)) / 2**11
    assert mcnemar(first, second) == pytest.approx(by_hand)
    assert mcnemar(first, first) == 1


def test_holm_by_hand():
    # 0.01 x 4, 0.02 x 3, 0.03 x 2 and, not below the one before, 0.04 x 1.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1] and holm([]) == []
