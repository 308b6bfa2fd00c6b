"""How good an estimate of solvability is: ranking (AUC), Brier score and calibration, with intervals by scene::

    judged = JudgedQuestions(right, tasks, bootstrap_weights(scenes, seed=0))     # right: (n, R), R rollouts each
    all_metrics(p, judged)["auc_rollout"]                                        # {"value": .., "ci95": [low, high]}

Every metric is computed for many weightings of the questions at once: the first weighs all alike, the others are
bootstrap resamples of whole scenes, since questions about one scene are not independent.

The metrics are our own and not scikit-learn's for three reasons. `roc_auc_score` takes one weighting a call, and the
reports need 1001 weightings for every predictor and group. Labels here are pass rates, and scikit-learn takes whole
classes only: every question would have to stand twice, as a positive and as a negative. The AUC within tasks has no
counterpart there. The tests compare AUC, Brier score and calibration bins with scikit-learn's where both apply.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from avis.statistics import cluster_indices, resample_counts

RESAMPLES = 1000
BINS = 10


@dataclass(frozen=True, eq=False)
class JudgedQuestions:
    """Questions whose rollouts have been judged.

    Attributes:
        right: `(n, R)` bool, whether each rollout is right.
        tasks: `(n,)`, the task of each question.
        weights: `(1 + RESAMPLES, n)`, how often each question counts in each weighting.
    """

    right: np.ndarray
    tasks: np.ndarray
    weights: np.ndarray

    @property
    def pass_rates(self) -> np.ndarray:
        """The share of right rollouts, `(n,)`."""
        return self.right.mean(axis=1)

    def select(self, chosen: np.ndarray) -> "JudgedQuestions":
        """Return the questions that the mask `chosen` `(n,)` selects, with the same resamples."""
        return JudgedQuestions(self.right[chosen], self.tasks[chosen], self.weights[:, chosen])


def bootstrap_weights(scenes: Sequence[Any], seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Return how often each question counts: ones first, then how often each resample drew the question's scene.

    Args:
        scenes: `(n,)`, the scene of each question.
        seed: of the resamples.
        resamples: how many.

    Returns:
        `(1 + resamples, n)` float64.
    """
    count, indices = cluster_indices(scenes)
    counts = resample_counts(count, resamples, seed)[:, indices]
    return np.concatenate([np.ones((1, len(indices))), counts]).astype(float)


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted mean of values `(n,)` for every weighting `(B, n)`: `(B,)`, NaN where nothing counts."""
    total = weights.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(total > 0, weights @ values / total, np.nan)


def count_ranked_pairs(score: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count pairs of a positive and a negative, and those that the score ranks rightly; a tie counts half.

    Args:
        score: `(n,)`.
        positive: `(B, n)`, how many positives have each score, for B weightings.
        negative: `(B, n)`, the same of negatives.

    Returns:
        `(B,)` pairs ranked rightly, and `(B,)` all pairs.
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    up = np.add.reduceat(positive[:, order], starts, axis=1)
    down = np.add.reduceat(negative[:, order], starts, axis=1)
    below = down.cumsum(axis=1) - down
    return (up * (below + down / 2)).sum(axis=1), up.sum(axis=1) * down.sum(axis=1)


def roc_auc(score: np.ndarray, judged: JudgedQuestions, per_rollout: bool, within_task: bool = False) -> np.ndarray:
    """Return the area under the ROC curve for every weighting.

    Args:
        score: `(n,)`.
        judged: the questions.
        per_rollout: whether the label is that of each rollout; else whether at least half of a question's are right.
        within_task: whether only pairs of the same task count.

    Returns:
        `(1 + RESAMPLES,)`; NaN where one of the two classes is empty.
    """
    positive = judged.pass_rates if per_rollout else (judged.pass_rates >= 0.5).astype(float)
    groups: list[Any] = [slice(None)]
    if within_task:
        groups = [judged.tasks == task for task in np.unique(judged.tasks)]
    ranked, pairs = np.zeros(len(judged.weights)), np.zeros(len(judged.weights))
    for group in groups:
        weights = judged.weights[:, group]
        more = count_ranked_pairs(score[group], weights * positive[group], weights * (1 - positive[group]))
        ranked, pairs = ranked + more[0], pairs + more[1]
    with np.errstate(invalid="ignore"):
        return np.where(pairs > 0, ranked / pairs, np.nan)


def brier_score(p: np.ndarray, judged: JudgedQuestions) -> np.ndarray:
    """Return the mean squared error of p against single rollouts, for every weighting."""
    errors = (p - judged.pass_rates) ** 2 + judged.pass_rates * (1 - judged.pass_rates)
    return weighted_mean(errors, judged.weights)


def calibration_error(p: np.ndarray, judged: JudgedQuestions) -> np.ndarray:
    """Return the expected calibration error over bins of equal width, for every weighting.

    Few questions bias it upwards.
    """
    error = np.zeros(len(judged.weights))
    for chosen in _bin_masks(p):
        error = error + np.abs(weighted_mean((p - judged.pass_rates) * chosen, judged.weights))
    return error


def reliability_bins(p: np.ndarray, judged: JudgedQuestions) -> list[dict[str, Any]]:
    """Return the bins of a reliability diagram: per bin of p its questions, mean p, and the share of right rollouts."""
    found: list[dict[str, Any]] = []
    for number, chosen in enumerate(_bin_masks(p)):
        if chosen.any():
            part = judged.select(chosen)
            found.append(
                {
                    "from": number / BINS,
                    "to": (number + 1) / BINS,
                    "n": int(chosen.sum()),
                    "p": float(p[chosen].mean()),
                    "right": summarize(weighted_mean(part.pass_rates, part.weights)),
                }
            )
    return found


def summarize(values: np.ndarray) -> dict[str, Any] | None:
    """Return the value and its 95% percentile interval; None where the value is undefined.

    Args:
        values: `(1 + resamples,)`, the value first.
    """
    if not np.isfinite(values[0]):
        return None
    resampled = values[1:][np.isfinite(values[1:])]
    ends = np.quantile(resampled, [0.025, 0.975]).tolist() if len(resampled) else [float(values[0])] * 2
    return {"value": float(values[0]), "ci95": ends}


def all_metrics(p: np.ndarray, judged: JudgedQuestions) -> dict[str, Any]:
    """Return all metrics of p `(n,)`, each with its interval."""
    return {
        "auc_item": summarize(roc_auc(p, judged, per_rollout=False)),
        "auc_rollout": summarize(roc_auc(p, judged, per_rollout=True)),
        "auc_item_within_task": summarize(roc_auc(p, judged, per_rollout=False, within_task=True)),
        "auc_rollout_within_task": summarize(roc_auc(p, judged, per_rollout=True, within_task=True)),
        "brier": summarize(brier_score(p, judged)),
        "ece": summarize(calibration_error(p, judged)),
    }


def scene_ceiling(
    judged: JudgedQuestions, scenes: Sequence[Any], per_rollout: bool, within_task: bool = False
) -> np.ndarray:
    """Return the AUC of a scene's pass rate on disjoint rollouts, which the visual-only predictor is compared with.

    Half of a question's rollouts are ranked; the score is the mean over the scene's questions, of the other half of
    this question's rollouts and of all rollouts of the others. Both halves take their turn. So the score has some
    knowledge of the question. With one question a scene it has all of it, and is the ceiling of any predictor.

    Args:
        judged: the questions.
        scenes: `(n,)`, the scene of each.
        per_rollout: as in `roc_auc`.
        within_task: as in `roc_auc`.

    Returns:
        As `roc_auc`.
    """
    names = np.asarray(scenes)
    same = names[:, None] == names[None]
    sums, counts = same @ judged.pass_rates - judged.pass_rates, same.sum(axis=1)
    found = []
    for half in (0, 1):
        ranked = JudgedQuestions(judged.right[:, half::2], judged.tasks, judged.weights)
        score = (sums + judged.right[:, 1 - half :: 2].mean(axis=1)) / counts
        found.append(roc_auc(score, ranked, per_rollout, within_task))
    return np.mean(found, axis=0)


def other_questions_auc(
    judged: JudgedQuestions, scenes: Sequence[Any], per_rollout: bool, within_task: bool = False
) -> np.ndarray:
    """Return the AUC of the pass rate of the scene's other questions, where each scene has at least two.

    It estimates what a scene says of any question about it. Unlike `scene_ceiling` it knows nothing of the question
    itself. It is no bound, since a scene can also say which questions are likely.

    Args:
        judged: the questions.
        scenes: `(n,)`, the scene of each.
        per_rollout: as in `roc_auc`.
        within_task: as in `roc_auc`.

    Returns:
        As `roc_auc`.
    """
    names = np.asarray(scenes)
    same = names[:, None] == names[None]
    score = (same @ judged.pass_rates - judged.pass_rates) / (same.sum(axis=1) - 1)
    return roc_auc(score, judged, per_rollout, within_task)


def _bin_masks(p: np.ndarray) -> np.ndarray:
    number = np.minimum((p * BINS).astype(int), BINS - 1)
    return number[None] == np.arange(BINS)[:, None]
