"""Intervals and tests: the cluster bootstrap of all rooms, and Wilson's and Holm's formulas from statsmodels::

difference = paired_difference(right_a - right_b, scenes)
print(difference.value, difference.low, difference.high, difference.p)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

RESAMPLES = 10_000
_CHUNK = 500  # resamples drawn at a time, which bounds memory


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
        items: number of examples that it was measured on.
    """

    value: float
    low: float
    high: float
    items: int


@dataclass(frozen=True)
class Difference:
    """A mean paired difference.

    Attributes:
        value: the estimate.
        low: lower end of the 95% bootstrap interval.
        high: upper end.
        p: two-sided bootstrap p-value.
    """

    value: float
    low: float
    high: float
    p: float


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of a share (Wilson 1927).

    Args:
        successes: need not be whole, as when two seeds are averaged.
        trials: at least 1.

    Returns:
        The lower and the upper end, in [0, 1].
    """
    low, high = proportion_confint(successes, trials, alpha=0.05, method="wilson")
    return max(0.0, float(low)), min(1.0, float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for a family of comparisons (Holm 1979), in their order."""
    return [] if not len(p_values) else multipletests(p_values, method="holm")[1].tolist()


@lru_cache(maxsize=4)
def resample_counts(clusters: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Return how often each bootstrap resample draws each cluster.

    The same arguments give the same numbers, so that every comparison over the same clusters uses the same resamples.

    Args:
        clusters: number of clusters.
        resamples: number of resamples.
        seed: of the random numbers.

    Returns:
        `(resamples, clusters)` float32, read-only.
    """
    rng = np.random.default_rng(seed)
    even = np.full(clusters, 1 / clusters)
    sizes = [min(_CHUNK, resamples - start) for start in range(0, resamples, _CHUNK)]
    counts = np.concatenate([rng.multinomial(clusters, even, size).astype(np.float32) for size in sizes])
    counts.flags.writeable = False
    return counts


def cluster_indices(clusters: Sequence[Any]) -> tuple[int, np.ndarray]:
    """Number the clusters in the order of their sorted names.

    Args:
        clusters: `(n,)` numbers or strings.

    Returns:
        How many distinct clusters there are, and `(n,)` the number of each entry's.
    """
    names, indices = np.unique(np.asarray(clusters), return_inverse=True)
    return len(names), indices


def paired_difference(values: np.ndarray, clusters: Sequence[Any]) -> Difference:
    """Return the mean of paired differences, with a percentile interval over resampled clusters.

    Args:
        values: `(n,)`, one difference an example.
        clusters: `(n,)`, the scene of each; examples of one scene are drawn together.
    """
    count, indices = cluster_indices(clusters)
    means = _resampled_ratios(count, np.bincount(indices, values), np.bincount(indices))
    low, high = np.quantile(means, (0.025, 0.975))
    # A mean that is 0 but for rounding counts on both sides, whatever the order of summation.
    beyond = min((means <= 1e-12).sum(), (means >= -1e-12).sum())
    p = min(1.0, 2 * (beyond + 1) / (len(means) + 1))
    return Difference(float(values.mean()), float(low), float(high), float(p))


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray, clusters: Sequence[Any]) -> tuple[float, float]:
    """Return the 95% percentile interval of sum(numerators) / sum(denominators) over resampled clusters.

    Args:
        numerators: `(n,)`, one value an example.
        denominators: `(n,)`.
        clusters: `(n,)`, as in `paired_difference`.
    """
    count, indices = cluster_indices(clusters)
    ratios = _resampled_ratios(count, np.bincount(indices, numerators), np.bincount(indices, denominators))
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(high)


def _resampled_ratios(count: int, numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Return `(resamples,)`, the ratio of two sums over clusters in each resample; both arrays are `(count,)`."""
    # One product for both: most of its time goes into a copy of the counts in double precision.
    sums = resample_counts(count) @ np.stack((numerators, denominators), axis=1).astype(np.float64)
    return sums[:, 0] / sums[:, 1]
