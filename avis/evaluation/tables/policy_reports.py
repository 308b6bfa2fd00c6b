"""Tables of the policy, from the JSON reports of `python -m policy.training`."""

from typing import Any

from avis.evaluation.tables.cells import format_measure
from avis.evaluation.tables.store import Table

_MEASURES = ("auc_item", "auc_rollout", "auc_item_within_task", "auc_rollout_within_task", "brier", "ece")


def predictors(report: dict[str, Any]) -> Table:
    """Return each predictor's measures on the part that judges it, from the report of step `fit`."""
    judged = report["evaluation"][report["default_chosen_on"]]
    lines = [["predictor", *_MEASURES]]
    for predictor, found in judged["predictors"].items():
        lines.append([predictor, *(format_measure(found["all"].get(name)) for name in _MEASURES)])
    ceiling = [format_measure(judged["ceiling"].get(name)) for name in _MEASURES]
    lines.append(["ceiling: the question's own other rollouts", *ceiling])
    for part, found in report["evaluation"].items():
        if shared := found.get("pictures_with_other_questions"):
            label = f"the image's other questions ({part}, n = {shared['n']})"
            lines.append([label, *(format_measure(shared["other_questions"].get(name)) for name in _MEASURES)])
    return lines


def rules(report: dict[str, Any]) -> Table:
    """Return the shipped rule from p to K and the two it is compared with, from the report of step `calibrate`."""
    solutions = report["networks"][report["default"]]["solutions"]
    lines = [["shape", "K by bin", "edges of p", "accuracy", "#F LLM-only", "mean K", "minus K permuted, points"]]
    for shape in ("inverted U", "unconstrained", "constant"):
        solution = solutions[shape]
        judged = solution[report["chosen_on"]]
        gain = judged["minus_k_permuted"]
        low, high = gain["ci95"]
        lines.append(
            [
                shape,
                ", ".join(map(str, solution["num_rollouts"])),
                ", ".join(f"{edge:.3f}" for edge in solution["edges"]),
                format_measure(judged["accuracy"]),
                format_measure(judged["relative_llm"]),
                f"{judged['mean_k']['value']:.2f}",
                f"{100 * gain['value']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
            ]
        )
    return lines
