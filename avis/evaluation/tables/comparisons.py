"""Tables of paired differences, with p-values corrected over each table's comparisons (Holm)."""

from collections.abc import Callable

from avis.evaluation.recipe import Row
from avis.evaluation.score import Outcome, Record, Results, difference
from avis.evaluation.tables.cells import (
    distinct_values,
    flops_cells,
    format_p_value,
    format_percent,
    format_points,
    has_value,
)
from avis.evaluation.tables.store import Table
from avis.statistics import holm
from policy.policy_model import CHOICES

_FORMS = (
    "vanilla",
    "VRS K=3",
    "VRS K=5",
    "VRS K=7",
    "KDV rho=0.75",
    "KDV rho=0.75, K=5",
    "AVIS",
    "AVIS, K permuted",
)


def _groups_by_form(results: Results) -> list[tuple[str, Callable[[Record], bool]]]:
    """Return all examples, then those of each form of answer when there are both."""
    names = {"choice": "multiple choice", "free": "free"}
    found = distinct_values(results, "form")
    groups: list[tuple[str, Callable[[Record], bool]]] = [("all", lambda record: True)]
    if all(form in found for form in names):
        groups += [(name, has_value("form", form)) for form, name in names.items()]
    return groups


def forms(results: Results) -> Table:
    """Return a line for each form of answer and setting: accuracy, its difference from vanilla, cost."""
    head = ["form", "setting", "accuracy", "minus vanilla, points", "p (Holm)", "#F LLM-only", "#F total"]
    lines = [[*head, "mean K", "mean rho", "tokens saved by early stop, %"]]
    outcomes = {name: one for name in _FORMS if (one := results.outcome(name))}
    for form, is_wanted in _groups_by_form(results):
        parts = {name: one.where(is_wanted) for name, one in outcomes.items()}
        vanilla = parts["vanilla"]
        gains = {name: difference(one, vanilla) for name, one in parts.items() if name != "vanilla"}
        adjusted = dict(zip(gains, holm([gain.p for gain in gains.values()]), strict=True))
        for name, one in parts.items():
            line = [form, name, format_percent(one.accuracy())]
            line += [format_points(gains[name]), format_p_value(adjusted[name])] if name in gains else ["", ""]
            line += [*flops_cells(one, vanilla), f"{one.rollouts.mean():.2f}", f"{one.rho.mean():.2f}"]
            lines.append([*line, f"{100 * one.saved_tokens():.1f}"])
    return lines


def votes(results: Results) -> Table:
    """Return the vote that weighs rollouts by confidence against plain majority, on the same rollouts."""
    groups = _groups_by_form(results)
    head = ["pruning", "K", "majority", "by confidence"]
    head += [f"by confidence minus majority, {form}, points" for form, _ in groups]
    lines = [[*head, "p (Holm)", "tokens saved by early stop, %: majority", "by confidence"]]
    sampled: dict[str, Row] = {}
    for row in results.rows.values():
        if row.pruner == "kdv" and row.sampled > (sampled[row.run].sampled if row.run in sampled else 0):
            sampled[row.run] = row
    p_values, left, right = [], [], []
    for run, row in sampled.items():
        for k in (k for k in CHOICES[1:] if k <= row.sampled):
            one = Row(run, rho=row.rho, tau=row.tau, rollouts=k)
            plain, weighted = results.outcome_of(one), results.outcome_of(one, weighted=True)
            gains = [difference(weighted.where(is_wanted), plain.where(is_wanted)) for _, is_wanted in groups]
            line = [run, str(k), format_percent(plain.accuracy()), format_percent(weighted.accuracy())]
            left.append(line + [format_points(gain) for gain in gains])
            right.append([f"{100 * vote.saved_tokens():.1f}" for vote in (plain, weighted)])
            p_values.append(gains[0].p)
    for start, p, end in zip(left, holm(p_values), right, strict=True):
        lines.append([*start, format_p_value(p), *end])
    return lines


def _compare_avis(results: Results, others: list[str]) -> Table:
    """Return AVIS beside other rows: accuracy, cost, and paired differences."""
    lines = [["row", "accuracy", "#F LLM-only", "#F total", "AVIS minus it, points", "p (Holm)"]]
    avis, vanilla = results.outcome("AVIS"), results.vanilla()
    if avis is None:
        return lines
    outcomes = {name: one for name in others if (one := results.outcome(name))}
    gains = {name: difference(avis, one) for name, one in outcomes.items()}
    adjusted = dict(zip(gains, holm([gain.p for gain in gains.values()]), strict=True))
    lines.append(["AVIS", format_percent(avis.accuracy()), *flops_cells(avis, vanilla), "", ""])
    for name, one in outcomes.items():
        line = [name, format_percent(one.accuracy()), *flops_cells(one, vanilla)]
        lines.append([*line, format_points(gains[name]), format_p_value(adjusted[name])])
    return lines


def paper2(results: Results) -> Table:
    """Return the paper's table 2: AVIS against vanilla and fixed settings of similar FLOPs."""
    others = ["vanilla", "KDV rho=0.6", "KDV rho=0.85, K=5", "KDV rho=0.75", "KDV rho=0.75, K=5"]
    return _compare_avis(results, others)


def controls(results: Results) -> Table:
    """Return AVIS against controls without adaptivity, and against simple pruners."""
    others = [
        "AVIS, K permuted",
        "AVIS's mean rho, its K",
        "best K by task (dev)",
        "oracle K (not reachable)",
        "AVIS random",
        "AVIS smaller",
    ]
    return _compare_avis(results, others)


def _pairs_of_pruners(results: Results) -> dict[tuple[str, str], tuple[Outcome, Outcome]]:
    """Return by row and pruner the outcome of a row that prunes by keys, and that of the other pruner's row."""
    pairs = {}
    for name, row in results.rows.items():
        for other_name, other in results.rows.items():
            is_same = (other.rho, other.tau, other.rollouts) == (row.rho, row.tau, row.rollouts)
            if is_same and row.pruner == "kdv" and other.pruner != "kdv":
                kdv, baseline = results.outcome(name), results.outcome(other_name)
                if kdv and baseline:
                    pairs[name, other.pruner] = kdv, baseline
    return pairs


def pruners(results: Results) -> Table:
    """Return every row that prunes by keys, against random pruning and smaller images with as many tokens."""
    head = ["row", "accuracy", "mean rho", "random", "KDV minus random, points", "p (Holm)"]
    lines = [[*head, "smaller image", "its mean rho", "KDV minus smaller, points", "p (Holm)"]]
    pairs = _pairs_of_pruners(results)
    gains = {key: difference(kdv, baseline) for key, (kdv, baseline) in pairs.items()}
    adjusted = dict(zip(gains, holm([gain.p for gain in gains.values()]), strict=True))
    for name in dict.fromkeys(name for name, _ in pairs):
        kdv = results.outcome_of(results.rows[name])
        line = [name, format_percent(kdv.accuracy()), f"{kdv.rho.mean():.2f}"]
        for pruner in ("random", "downsample"):
            if (name, pruner) not in pairs:
                line += [""] * (3 if pruner == "random" else 4)
                continue
            baseline = pairs[name, pruner][1]
            line.append(format_percent(baseline.accuracy()))
            if pruner == "downsample":
                line.append(f"{baseline.rho.mean():.2f}")
            line += [format_points(gains[name, pruner]), format_p_value(adjusted[name, pruner])]
        lines.append(line)
    return lines
