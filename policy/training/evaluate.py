"""Measure predictors of solvability on collected questions: every metric, over all and by group, with intervals."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np

from policy.training.collected import Line
from policy.training.metrics import (
    JudgedQuestions,
    all_metrics,
    bootstrap_weights,
    other_questions_auc,
    reliability_bins,
    roc_auc,
    scene_ceiling,
    summarize,
)

GROUPS = ("task", "level", "see", "think", "form", "medium", "answerable")


def evaluate_predictors(predictions: dict[str, np.ndarray], lines: Sequence[Line], seed: int) -> dict[str, Any]:
    """Return every predictor's metrics on these lines, differences between the networks, and the ceiling.

    Where scenes have several questions among the lines, the ceiling stands beside the AUC of the scenes' other
    questions.

    Args:
        predictions: by name, p of every line, `(n,)`; "visual" and "question" are among them.
        lines: the questions.
        seed: of the bootstrap.
    """
    scenes = [line["scene"] for line in lines]
    right = np.array([line["rollouts"]["right"] for line in lines])
    judged = JudgedQuestions(right, np.array([line["task"] for line in lines]), bootstrap_weights(scenes, seed))
    visual, question = predictions["visual"], predictions["question"]

    def ceiling(per_rollout: bool, within_task: bool) -> np.ndarray:
        return scene_ceiling(judged, scenes, per_rollout, within_task)

    def share_of_ceiling(per_rollout: bool, within_task: bool) -> np.ndarray:
        return (roc_auc(visual, judged, per_rollout, within_task) - 0.5) / (ceiling(per_rollout, within_task) - 0.5)

    def question_minus_visual(per_rollout: bool, within_task: bool) -> np.ndarray:
        return roc_auc(question, judged, per_rollout, within_task) - roc_auc(visual, judged, per_rollout, within_task)

    found: dict[str, Any] = {
        "n": len(lines),
        "scenes": len(set(scenes)),
        "mean_right": float(judged.pass_rates.mean()),
        "predictors": {name: _evaluate_predictor(p, lines, judged) for name, p in predictions.items()},
        "ceiling": _four_aucs(ceiling),
        "share_of_ceiling": _four_aucs(share_of_ceiling),
        "question_minus_visual": _four_aucs(question_minus_visual),
    }
    shared = _evaluate_shared_scenes(visual, judged, scenes)
    return found if shared is None else found | {"pictures_with_other_questions": shared}


def _evaluate_predictor(p: np.ndarray, lines: Sequence[Line], judged: JudgedQuestions) -> dict[str, Any]:
    found: dict[str, Any] = {"all": all_metrics(p, judged), "reliability": reliability_bins(p, judged)}
    for group in GROUPS:
        if all(line.get(group) is None for line in lines):  # data sets have no levels, or no axes of difficulty
            continue
        labels = np.array([str(line.get(group)) for line in lines])
        found[group] = {str(x): all_metrics(p[labels == x], judged.select(labels == x)) for x in np.unique(labels)}
    return found


def _evaluate_shared_scenes(
    visual: np.ndarray, judged: JudgedQuestions, scenes: Sequence[str]
) -> dict[str, Any] | None:
    """Return the AUCs on questions whose scenes have other questions; None when there are none."""
    counts = Counter(scenes)
    is_shared = np.array([counts[scene] > 1 for scene in scenes])
    if not is_shared.any():
        return None
    part, names = judged.select(is_shared), [scene for scene in scenes if counts[scene] > 1]

    def visual_auc(per_rollout: bool, within_task: bool) -> np.ndarray:
        return roc_auc(visual[is_shared], part, per_rollout, within_task)

    def ceiling(per_rollout: bool, within_task: bool) -> np.ndarray:
        return scene_ceiling(part, names, per_rollout, within_task)

    def other_questions(per_rollout: bool, within_task: bool) -> np.ndarray:
        return other_questions_auc(part, names, per_rollout, within_task)

    return {
        "n": len(names),
        "scenes": len(set(names)),
        "visual": _four_aucs(visual_auc),
        "ceiling": _four_aucs(ceiling),
        "other_questions": _four_aucs(other_questions),
    }


def _four_aucs(measure: Callable[[bool, bool], np.ndarray]) -> dict[str, Any]:
    """Return a value made of AUCs with its interval: per item and per rollout, over all and within tasks.

    Args:
        measure: takes `per_rollout` and `within_task`, and returns one value for every weighting.
    """
    found = {}
    for per_rollout, within_task in product((False, True), repeat=2):
        with np.errstate(invalid="ignore", divide="ignore"):
            value = summarize(measure(per_rollout, within_task))
        found[f"auc_{'rollout' if per_rollout else 'item'}{'_within_task' * within_task}"] = value
    return found
