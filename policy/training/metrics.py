"""How good an estimate of solvability is: ranking (AUC), Brier score, calibration, with intervals by scene.

    sample = Sample(right, tasks, cluster_weights(scenes, seed=0))     # right: (n, R), of R rollouts of n questions
    measures(p, sample)["auc_rollout"]                                 # {"value": .., "ci95": [low, high]}

Every measure is computed for many weightings of the questions at once: the first weighs all alike, the others are
bootstrap draws of whole scenes, since questions about one picture are not independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 1000
BINS = 10


@dataclass(frozen=True, eq=False)
class Sample:
    """Questions whose rollouts have been judged.

    right: `(n, R)` bool. tasks: `(n,)`. weights: `(1 + DRAWS, n)`, how often each question counts.
    """

    right: np.ndarray
    tasks: np.ndarray
    weights: np.ndarray

    @property
    def rate(self) -> np.ndarray:
        """The share of right rollouts, `(n,)`."""
        return self.right.mean(axis=1)

    def part(self, chosen: np.ndarray) -> "Sample":
        """The questions that `chosen` `(n,)` selects, with the same draws."""
        return Sample(self.right[chosen], self.tasks[chosen], self.weights[:, chosen])


def cluster_weights(scenes: Sequence[str], seed: int, draws: int = DRAWS) -> np.ndarray:
    """`(1 + draws, n)`: a row of ones, then how often each question's scene was drawn, with replacement."""
    names, cluster = np.unique(np.asarray(scenes), return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return np.concatenate([np.ones((1, len(cluster))), drawn[:, cluster]]).astype(float)


def mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted mean of values `(n,)` for every weighting `(B, n)`: `(B,)`, NaN where nothing counts."""
    total = weights.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(total > 0, weights @ values / total, np.nan)


def pairs(score: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a positive and a negative, and how many of them the score ranks rightly, a tie counting half.

    Args:
        score: `(n,)`. positive, negative: `(B, n)`, how many of each stand at a score, for B weightings.

    Returns:
        `(B,)` ranked rightly, `(B,)` of all.
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    up = np.add.reduceat(positive[:, order], starts, axis=1)
    down = np.add.reduceat(negative[:, order], starts, axis=1)
    below = down.cumsum(axis=1) - down
    return (up * (below + down / 2)).sum(axis=1), up.sum(axis=1) * down.sum(axis=1)


def auc(score: np.ndarray, sample: Sample, per_rollout: bool, within_task: bool = False) -> np.ndarray:
    """Area under the ROC curve for every weighting, `(1 + DRAWS,)`; NaN where one of the two classes is empty.

    Args:
        score: `(n,)`.
        per_rollout: a rollout's being right is what is ranked; else a question's having at least half of them right.
        within_task: of pairs of the same task only.
    """
    positive = sample.rate if per_rollout else (sample.rate >= 0.5).astype(float)
    groups = [sample.tasks == task for task in np.unique(sample.tasks)] if within_task else [slice(None)]
    ranked, of = np.zeros(len(sample.weights)), np.zeros(len(sample.weights))
    for group in groups:
        weights = sample.weights[:, group]
        found = pairs(score[group], weights * positive[group], weights * (1 - positive[group]))
        ranked, of = ranked + found[0], of + found[1]
    with np.errstate(invalid="ignore"):
        return np.where(of > 0, ranked / of, np.nan)


def brier(p: np.ndarray, sample: Sample) -> np.ndarray:
    """Mean squared error of p against single rollouts, for every weighting."""
    errors = (p - sample.rate) ** 2 + sample.rate * (1 - sample.rate)
    return mean(errors, sample.weights)


def ece(p: np.ndarray, sample: Sample) -> np.ndarray:
    """Expected calibration error over bins of equal width, for every weighting. Few questions bias it upwards."""
    return sum(np.abs(mean((p - sample.rate) * chosen, sample.weights)) for chosen in _bins(p))


def reliability(p: np.ndarray, sample: Sample) -> list[dict]:
    """What a reliability diagram shows: per bin of p its questions, mean p, and the share of right rollouts."""
    found = []
    for number, chosen in enumerate(_bins(p)):
        if chosen.any():
            part = sample.part(chosen)
            found.append(
                {
                    "from": number / BINS,
                    "to": (number + 1) / BINS,
                    "n": int(chosen.sum()),
                    "p": float(p[chosen].mean()),
                    "right": summary(mean(part.rate, part.weights)),
                }
            )
    return found


def summary(values: np.ndarray) -> dict | None:
    """The value and its 95% interval from `(1 + draws,)`; None where it is undefined."""
    if not np.isfinite(values[0]):
        return None
    drawn = values[1:][np.isfinite(values[1:])]
    ends = np.quantile(drawn, [0.025, 0.975]).tolist() if len(drawn) else [float(values[0])] * 2
    return {"value": float(values[0]), "ci95": ends}


def measures(p: np.ndarray, sample: Sample) -> dict:
    """All measures of p `(n,)`, each with its interval."""
    return {
        "auc_item": summary(auc(p, sample, per_rollout=False)),
        "auc_rollout": summary(auc(p, sample, per_rollout=True)),
        "auc_item_within_task": summary(auc(p, sample, per_rollout=False, within_task=True)),
        "auc_rollout_within_task": summary(auc(p, sample, per_rollout=True, within_task=True)),
        "brier": summary(brier(p, sample)),
        "ece": summary(ece(p, sample)),
    }


def ceiling(sample: Sample, scenes: Sequence[str], per_rollout: bool, within_task: bool = False) -> np.ndarray:
    """The AUC of a picture's mean success on disjoint rollouts: what the visual-only predictor is measured against.

    Half of a question's rollouts are what is ranked; the score is the mean over the picture's questions, of the other
    half of this one's and of all rollouts of the others. Both halves take their turn. So it knows something of the
    question; with one question a picture it knows all of it, and is the ceiling of any predictor, not of visual ones.

    Returns:
        As `auc`.
    """
    scenes = np.asarray(scenes)
    same = scenes[:, None] == scenes[None]
    sums, counts = same @ sample.rate - sample.rate, same.sum(axis=1)
    found = []
    for half in (0, 1):
        judged = Sample(sample.right[:, half::2], sample.tasks, sample.weights)
        score = (sums + sample.right[:, 1 - half :: 2].mean(axis=1)) / counts
        found.append(auc(score, judged, per_rollout, within_task))
    return np.mean(found, axis=0)


def others(sample: Sample, scenes: Sequence[str], per_rollout: bool, within_task: bool = False) -> np.ndarray:
    """The AUC of the mean success of the picture's other questions, each scene having at least two.

    What a picture tells whatever is asked of it, as far as so few questions show. Unlike `ceiling` it knows nothing of
    the question itself; it is no bound, since a picture can also tell what is likely to be asked.

    Returns:
        As `auc`.
    """
    scenes = np.asarray(scenes)
    same = scenes[:, None] == scenes[None]
    score = (same @ sample.rate - sample.rate) / (same.sum(axis=1) - 1)
    return auc(score, sample, per_rollout, within_task)


def _bins(p: np.ndarray) -> np.ndarray:
    number = np.minimum((p * BINS).astype(int), BINS - 1)
    return number[None] == np.arange(BINS)[:, None]
