"""Tests of avis/statistics.py against SciPy, brute force, and the random streams of committed results."""

import math

import numpy as np
import pytest
from scipy import stats

from avis.statistics import (
    RESAMPLES,
    cluster_indices,
    holm,
    paired_difference,
    ratio_interval,
    resample_counts,
    wilson_interval,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("successes, trials", [(0, 1), (1, 1), (0, 30), (7, 30), (30, 30), (812, 2400)])
def test_wilson_equals_scipy(successes, trials):
    """Guards against: another interval (Wald's, or one with continuity correction), and ends outside [0, 1]."""
    low, high = wilson_interval(successes, trials)
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= successes / trials <= high <= 1


def test_wilson_of_a_mean_of_seeds():
    """Guards against: successes that are rounded. The formula of Wilson (1927), with z of a 95% interval."""
    z2, p, n = stats.norm.isf(0.025) ** 2, 12.3 / 40, 40
    half = math.sqrt(z2) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    expected = [(p + z2 / (2 * n) + sign * half) / (1 + z2 / n) for sign in (-1, 1)]
    assert wilson_interval(12.3, 40) == pytest.approx(expected, abs=1e-12)
    assert all(type(end) is float for end in wilson_interval(np.float32(3), 4))


def brute_holm(p_values: list[float]) -> list[float]:
    """Holm's adjusted p: the largest of (m - rank) p over all that are not larger, at most 1."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = {}
    for rank, index in enumerate(order):
        adjusted[index] = min(1.0, max((len(order) - r) * p_values[i] for r, i in enumerate(order[: rank + 1])))
    return [adjusted[index] for index in range(len(order))]


def test_holm_equals_its_definition():
    """Guards against: another correction, values out of order, ties, and a family of none."""
    dice = np.random.default_rng(0)
    for size in (1, 2, 9):
        for p_values in (dice.random(size) ** 3, np.full(size, 0.02), np.repeat(dice.random(size), 2)):
            assert holm(p_values.tolist()) == pytest.approx(brute_holm(p_values.tolist()), abs=1e-15)
    assert holm([]) == [] and holm([0.04]) == [0.04] and holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize("clusters", [1, 2, 7, 300])
def test_resamples_are_the_streams_of_committed_results(clusters):
    """Guards against: intervals of committed tables that cannot be made again. Tables drew 500 at a time from seed 0 as
    float32, the predictor's measures 1000 at once."""
    even = np.full(clusters, 1 / clusters)
    rng = np.random.default_rng(0)
    old = np.concatenate([rng.multinomial(clusters, even, 500) for _ in range(20)]).astype(np.float32)
    counts = resample_counts(clusters)
    assert counts.dtype == np.float32 and counts.shape == (RESAMPLES, clusters) and np.array_equal(counts, old)
    assert (counts.sum(axis=1) == clusters).all()
    for seed in (0, 3):
        at_once = np.random.default_rng(seed).multinomial(clusters, even, size=1000)
        assert np.array_equal(resample_counts(clusters, 1000, seed), at_once)
    assert np.array_equal(resample_counts(clusters, 1100), old[:1100])


def test_resamples_cannot_be_changed():
    """Guards against: one comparison that changes the resamples of the next, which get the same array."""
    with pytest.raises(ValueError, match="read-only"):
        resample_counts(5)[0, 0] = 9
    assert resample_counts(5) is resample_counts(5)


def test_clusters_are_numbered_by_name():
    count, indices = cluster_indices(["b", "a", "b", "c"])
    assert (count, indices.tolist()) == (3, [1, 0, 1, 2])
    count, indices = cluster_indices(np.array([30, 10, 30]))
    assert (count, indices.tolist()) == (2, [1, 0, 1])


def one_by_one(values: np.ndarray, weights: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Every resample's ratio of sums, by drawing its examples: no sums over clusters, no matrix."""
    names = np.unique(clusters)
    ratios = []
    for row in resample_counts(len(names)):
        drawn = np.concatenate([np.flatnonzero(clusters == name) for name in np.repeat(names, row.astype(int))])
        ratios.append(values[drawn].sum() / weights[drawn].sum())
    return np.array(ratios)


def test_intervals_equal_brute_force():
    """Guards against: examples of one scene resampled apart, clusters that all weigh alike, and quantiles of another
    interval."""
    dice = np.random.default_rng(1)
    clusters = dice.integers(0, 6, 20)
    values = dice.normal(0.3, 1, 20)
    means = one_by_one(values, np.ones(20), clusters)
    found = paired_difference(values, clusters)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    assert found.p == pytest.approx(2 * (beyond + 1) / (RESAMPLES + 1))
    base = dice.uniform(1, 2, 20)
    ratios = one_by_one(values, base, clusters)
    assert ratio_interval(values, base, clusters) == pytest.approx(tuple(np.percentile(ratios, [2.5, 97.5])))


def test_repeated_examples_of_a_scene_are_no_evidence():
    """Guards against: an interval that narrows when each example is counted ten times; names that change it."""
    dice = np.random.default_rng(2)
    values = dice.normal(0.1, 1, 30)
    once = paired_difference(values, range(30))
    many = paired_difference(np.repeat(values, 10), np.repeat(np.arange(30), 10))
    assert (many.low, many.high, many.p) == pytest.approx((once.low, once.high, once.p))
    named = paired_difference(values, [f"scene {index:02d}" for index in range(30)])
    assert named == once


def test_p_values_of_plain_cases():
    """Guards against: a p of zero, or above one, and one-sided ones."""
    assert paired_difference(np.zeros(20), range(20)).p == 1.0
    assert paired_difference(np.ones(20), range(20)).p == pytest.approx(2 / (RESAMPLES + 1))
    assert paired_difference(-np.ones(20), range(20)).p == paired_difference(np.ones(20), range(20)).p
    shift = np.random.default_rng(3).normal(0.35, 1, 60)
    bootstrap = paired_difference(shift, range(60))
    student = stats.ttest_1samp(shift, 0)
    assert bootstrap.p == pytest.approx(student.pvalue, rel=0.35)
    assert (bootstrap.low, bootstrap.high) == pytest.approx(tuple(student.confidence_interval()), abs=0.03)
