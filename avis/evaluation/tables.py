"""The tables of README and cards, made from committed results, and checked against them.

    python -m avis.evaluation.tables             # prints every table that the results allow
    python -m avis.evaluation.tables --check     # exit status 1 when a shown table is not what the results say
    python -m avis.evaluation.tables --write     # puts them there, and all of them into evaluation/results/TABLES.md
    python -m avis.evaluation.tables --from-vlmevalkit DIR     # prints the paper's tables from VLMEvalKit's outputs

A document shows the table KIND of `evaluation/results/RESULT.jsonl.gz` between two lines:

    <!-- table: KIND RESULT -->
    <!-- end -->

Kinds are in `TABLES`, and in `REPORTS` those of JSON reports. Percentages are right answers with 95% intervals
(Wilson's, for as many trials as scenes; two seeds are averaged); differences, and FLOPs relative to vanilla, have
percentile intervals of 10,000 resamples, clustered by scene.
"""

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from inspect import getdoc
from pathlib import Path
from typing import Any

import yaml

from avis.evaluation.adapters import vlmevalkit_results
from avis.evaluation.score import Outcome, Results, Row, Share, constant_guess, difference, holm, read, wilson
from avis.provenance import weights_sha256
from policy.policy_model import CHOICES

ROOT = Path(__file__).resolve().parents[1]
SHIPPED, POLICY = Path("models/garden-tiny"), Path("policy_checkpoint.pt")
OTHERS = "backbone-"  # results of other models begin like this
ALL = Path("evaluation/results/TABLES.md")
_BLOCK = re.compile(r"<!-- table: ([^\n]*?) -->\n(.*?)<!-- end -->", re.DOTALL)

Table = list[list[str]]  # the head, then lines


class Store:
    """The results of a folder, each read once. K by task, where a row needs it, is chosen on the result `dev`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.result = lru_cache(maxsize=None)(self._result)
        self.report = lru_cache(maxsize=None)(self._report)

    def names(self) -> list[str]:
        """Of all results, by name."""
        return sorted(path.name.removesuffix(".jsonl.gz") for path in self.folder.glob("*.jsonl.gz"))

    def _result(self, name: str) -> Results:
        results = read(self.folder / f"{name}.jsonl.gz")
        if name != "dev" and (self.folder / "dev.jsonl.gz").exists():
            dev = self.result("dev")
            tasks = {item["task"] for item in dev.items}
            if {item["task"] for item in results.items} <= tasks and {"VRS K=7"} <= set(dev.rows):
                # Where dev was pruned as AVIS prunes, what is best there, else what is best without pruning.
                results.by_task = dev.best_by_task(dev.rows["AVIS" if "AVIS" in dev.rows else "VRS K=7"].run)
        return results

    def _report(self, name: str) -> dict[str, Any]:
        """A JSON report: of the policy's fitting, or, as `speed/NAME`, of `avis.evaluation.speed`."""
        try:
            return json.loads((self.folder / f"{name}.json").read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.folder / name}.json cannot be read: {error}") from None


# -------------------------------------------------------------------------------------------------------------- cells


def percent(share: Share | None, digits: int = 1) -> str:
    """`35.6 (30 to 42)`; nothing where there are no items."""
    if share is None:
        return ""
    return f"{100 * share.value:.{digits}f} ({100 * share.low:.0f} to {100 * share.high:.0f})"


def _points(found) -> str:
    """A difference in points of percent."""
    return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def fraction(share: Share) -> str:
    """`0.42 (0.40 to 0.44)`; without an interval where there is nothing to vary, as for vanilla itself."""
    interval = f" ({share.low:.2f} to {share.high:.2f})" if share.high - share.low > 1e-9 else ""
    return f"{share.value:.2f}{interval}"


def _flops(one: Outcome, vanilla: Outcome) -> list[str]:
    cost = one.relative(vanilla)
    return [fraction(cost["llm"]), fraction(cost["total"])]


def _is_video(item: dict) -> bool:
    return item["medium"] == "video"


def _is_picture(item: dict) -> bool:
    return item["medium"] != "video"


def _of(name: str, value: Any) -> Callable[[dict], bool]:
    return lambda item: item[name] == value


def _values(results: Results, name: str) -> list:
    """The values of a fact, in order of first appearance; of levels ascending."""
    found = list(dict.fromkeys(item[name] for item in results.items if item[name] is not None))
    return sorted(found) if name == "level" else found


def _about(results: Results) -> str:
    """What a table's numbers hang on, in one line."""
    config, seeds = results.config, [str(seed) for seed in results.config["seeds"]]
    backend, profile = config["backend"], config["settings"].get("profile")
    fitted_on = config["policy"] and config["policy"].get("fitted_on", config["weights_sha256"])
    model = f"model {config['model']} ({config['weights_sha256'][:8]})" + (f", asked as {profile}" if profile else "")
    if fitted_on and fitted_on != config["weights_sha256"]:
        model += f", policy fitted on other weights ({fitted_on[:8]})"
    return (
        f"{len(results.items)} items of {', '.join(config['sources'])}; seed{'s' * (len(seeds) > 1)} "
        f"{' and '.join(seeds)}; {backend['device']}, {backend['dtype']}, {backend['attention']}; "
        f"{model}; `{results.environment['command']}`"
    )


# ------------------------------------------------------------------------------------------------------------- tables


def settings(results: Results) -> Table:
    """One line a row: accuracy over all, by medium and by level, K, rho, and the cost in both accountings."""
    levels = _values(results, "level")
    head = ["setting", "all", "pictures", "clips", *(f"level {level}" for level in levels), "mean K", "mean rho"]
    lines = [[*head, "#F LLM-only", "#F total", "#F LLM-only, early stop"]]
    vanilla = results.outcome("vanilla")
    for name in results.rows:
        one = results.outcome(name)
        if one is None:
            continue
        line = [name, percent(one.accuracy())]
        line += [percent(one.where(keep).accuracy()) for keep in (_is_picture, _is_video)]
        line += [percent(one.where(_of("level", level)).accuracy(), 0) for level in levels]
        line += [f"{one.rollouts.mean():.2f}", f"{one.rho.mean():.2f}", *_flops(one, vanilla)]
        lines.append([*line, fraction(one.relative(vanilla, stopped=True)["llm"])])
    return lines


# What a reader wants to know first.
_FIRST = (
    *("vanilla", "VRS K=5", "VRS K=7", "KDV rho=0.75", "random rho=0.75", "smaller rho=0.75"),
    *("KDV rho=0.75, K=5", "AVIS", "AVIS random", "AVIS smaller", "AVIS, K permuted"),
)


def summary(results: Results) -> Table:
    """One line for each of the settings that matter most: accuracy, its difference from vanilla, and the cost."""
    lines = [["setting", "all", "minus vanilla, points", "pictures", "clips", "mean K", "#F LLM-only", "#F total"]]
    vanilla = results.outcome("vanilla")
    for name in _FIRST:
        one = results.outcome(name)
        if one is None:
            continue
        line = [name, percent(one.accuracy()), "" if name == "vanilla" else _points(difference(one, vanilla))]
        line += [percent(one.where(keep).accuracy()) for keep in (_is_picture, _is_video)]
        lines.append([*line, f"{one.rollouts.mean():.2f}", *_flops(one, vanilla)])
    return lines


# What is asked of full AVIS: against each of these, multiple choice and free answers apart.
_FORMS = (
    *("vanilla", "VRS K=3", "VRS K=5", "VRS K=7", "KDV rho=0.75", "KDV rho=0.75, K=5"),
    *("AVIS", "AVIS, K permuted"),
)


def _by_form(results: Results) -> list[tuple[str, Callable[[dict], bool]]]:
    """All items, then those of each form that there is more than one of."""
    names = {"choice": "multiple choice", "free": "free"}
    forms = [form for form in names if form in _values(results, "form")]
    return [("all", lambda item: True), *((names[form], _of("form", form)) for form in forms if len(forms) > 1)]


def forms(results: Results) -> Table:
    """One line a row, over all, of multiple choice and of free answers: accuracy, and its difference from vanilla."""
    head = ["form", "setting", "accuracy", "minus vanilla, points", "p (Holm)", "#F LLM-only", "#F total"]
    lines = [[*head, "mean K", "mean rho", "tokens saved by early stop, %"]]
    outcomes = {name: one for name in _FORMS if (one := results.outcome(name))}
    for form, keep in _by_form(results):
        mine = {name: one.where(keep) for name, one in outcomes.items()}
        vanilla = mine["vanilla"]
        found = {name: difference(one, vanilla) for name, one in mine.items() if name != "vanilla"}
        adjusted = dict(zip(found, holm([one.p for one in found.values()]), strict=True))
        for name, one in mine.items():
            line = [form, name, percent(one.accuracy())]
            line += [_points(found[name]), _p(adjusted[name])] if name in found else ["", ""]
            line += [*_flops(one, vanilla), f"{one.rollouts.mean():.2f}", f"{one.rho.mean():.2f}"]
            lines.append([*line, f"{100 * one.saved():.1f}"])
    return lines


def votes(results: Results) -> Table:
    """The vote that weighs rollouts by confidence against plain majority, on the same rollouts."""
    groups = _by_form(results)
    lines = [["pruning", "K", "majority", "by confidence", "p (Holm)"]]
    lines[0][4:4] = [f"by confidence minus majority, {form}, points" for form, _ in groups]
    lines[0] += ["tokens saved by early stop, %: majority", "by confidence"]
    sampled: dict[str, Row] = {}
    for row in results.rows.values():
        if row.pruner == "kdv" and row.sampled > (sampled[row.run].sampled if row.run in sampled else 0):
            sampled[row.run] = row
    found = []
    for run, row in sampled.items():
        for k in (k for k in CHOICES[1:] if k <= row.sampled):
            one = Row(run, rho=row.rho, tau=row.tau, rollouts=k)
            plain, weighted = results.outcome_of(one), results.outcome_of(one, weighted=True)
            by_form = [difference(weighted.where(keep), plain.where(keep)) for _, keep in groups]
            line = [run, str(k), percent(plain.accuracy()), percent(weighted.accuracy()), *map(_points, by_form)]
            found.append((by_form[0].p, line, [f"{100 * vote.saved():.1f}" for vote in (plain, weighted)]))
    adjusted = holm([p for p, _, _ in found])
    return [*lines, *([*line, _p(p), *saved] for p, (_, line, saved) in zip(adjusted, found, strict=True))]


def tasks(results: Results) -> Table:
    """One line a task: vanilla over all and by level, votes, and the best constant guess."""
    levels = _values(results, "level")
    vanilla = results.outcome("vanilla")
    votes = {name.removeprefix("VRS "): results.outcome(name) for name in results.rows if name.startswith("VRS ")}
    lines = [["task", "greedy", *(f"level {level}" for level in levels), *votes, "constant guess"]]
    for task in _values(results, "task"):
        mine = vanilla.where(_of("task", task))
        line = [task, percent(mine.accuracy())]
        line += [percent(mine.where(_of("level", level)).accuracy(), 0) for level in levels]
        line += [percent(vote.where(_of("task", task)).accuracy()) for vote in votes.values()]
        lines.append([*line, f"{100 * constant_guess(mine.items):.1f}"])
    return lines


def goals(results: Results) -> Table:
    """The bundled model's goals and what was measured."""
    vanilla, vote = results.outcome("vanilla"), results.outcome("VRS K=7")
    easy = vanilla.where(lambda item: item["level"] <= 3)
    lines = [["goal", "wanted", "measured"]]
    for name, keep, wanted in (("pictures", _is_picture, "70%"), ("clips", _is_video, "60%")):
        lines.append([f"greedy, {name}, levels 1 to 3", wanted, percent(easy.where(keep).accuracy())])
    above = []
    for task in _values(results, "task"):
        mine = vanilla.where(_of("task", task))
        if mine.right.mean() - constant_guess(mine.items) >= 0.2 - 1e-9:  # 0.575 - 0.375 is less than 0.2 in floats
            above.append(task)
    known = len(_values(results, "task"))
    lines.append(
        [
            "tasks at least 20 points above the constant guess",
            f"all {known}",
            f"{len(above)}: {', '.join(above) or 'none'}",
        ]
    )
    rates = [sum(item["runs"]["rho=0"][0]["right"][1:8]) / 7 for item in results.items]
    unsure = sum(0.2 <= rate <= 0.8 for rate in rates)
    share = Share(unsure / len(rates), *wilson(unsure, len(rates)), len(rates))
    lines.append(["items with a per-rollout success rate from 0.2 to 0.8", "25%", percent(share)])
    against = f"{percent(vote.accuracy())} against {percent(vanilla.accuracy())}"
    lines.append(["vote at K = 7 above greedy", "yes", f"{against}; difference {_points(difference(vote, vanilla))}"])
    return lines


def paper1(results: Results) -> Table:
    """The paper's table 1: score and #F (LLM-only; total) by task, for vanilla, VRS-only, KDV, AVIS."""
    shown = {
        "vanilla": "vanilla",
        "VRS K=5": "VRS-only (K = 5)",
        "KDV rho=0.75": "KDV (rho = 0.75)",
        "AVIS": "AVIS",
    }
    outcomes = {label: results.outcome(name) for name, label in shown.items() if name in results.rows}
    head = ["task"]
    for label in outcomes:
        head += [label, "#F"]
    groups = [(task, _of("task", task)) for task in _values(results, "task")]
    groups += [("**pictures**", _is_picture), ("**clips**", _is_video), ("**all**", lambda item: True)]
    lines = [head]
    for label, keep in groups:
        base = results.outcome("vanilla").where(keep)
        if not base.items:
            continue
        line = [label]
        for outcome in outcomes.values():
            mine = outcome.where(keep)
            line += [percent(mine.accuracy()), "; ".join(_flops(mine, base))]
        lines.append(line)
    return lines


def _against(results: Results, others: list[str]) -> Table:
    """AVIS beside other rows: accuracy, cost, and the paired difference with Holm's correction over these rows."""
    lines = [["row", "accuracy", "#F LLM-only", "#F total", "AVIS minus it, points", "p (Holm)"]]
    avis, vanilla = results.outcome("AVIS"), results.outcome("vanilla")
    if avis is None:
        return lines
    rows = {name: found for name in others if (found := results.outcome(name))}
    found = {name: difference(avis, other) for name, other in rows.items()}
    adjusted = dict(zip(found, holm([one.p for one in found.values()]), strict=True))
    lines.append(["AVIS", percent(avis.accuracy()), *_flops(avis, vanilla), "", ""])
    for name, other in rows.items():
        line = [name, percent(other.accuracy()), *_flops(other, vanilla)]
        lines.append([*line, _points(found[name]), _p(adjusted[name])])
    return lines


def paper2(results: Results) -> Table:
    """The paper's table 2: AVIS against fixed settings of similar FLOPs, and against vanilla."""
    return _against(results, ["vanilla", "KDV rho=0.6", "KDV rho=0.85, K=5", "KDV rho=0.75", "KDV rho=0.75, K=5"])


def controls(results: Results) -> Table:
    """What of AVIS is adaptivity: against K dealt to other items, one rho for all, K by task, and simple pruners."""
    others = ["AVIS, K permuted", "AVIS's mean rho, its K", "best K by task (dev)", "oracle K (not reachable)"]
    return _against(results, [*others, "AVIS random", "AVIS smaller"])


def pruners(results: Results) -> Table:
    """Every row that prunes by keys, against random pruning and smaller pictures with as many tokens."""
    head = ["row", "accuracy", "mean rho", "random", "KDV minus random, points", "p (Holm)"]
    lines, pairs = [[*head, "smaller picture", "its mean rho", "KDV minus smaller, points", "p (Holm)"]], {}
    for name, row in results.rows.items():
        mine = results.outcome(name)
        for other_name, other in results.rows.items():
            same = (other.rho, other.tau, other.rollouts) == (row.rho, row.tau, row.rollouts)
            if mine and same and row.pruner == "kdv" and other.pruner != "kdv":
                pairs[name, other.pruner] = mine, results.outcome(other_name)
    found = {key: difference(mine, other) for key, (mine, other) in pairs.items()}
    adjusted = dict(zip(found, holm([one.p for one in found.values()]), strict=True))
    for name in dict.fromkeys(name for name, _ in pairs):
        mine = results.outcome(name)
        line = [name, percent(mine.accuracy()), f"{mine.rho.mean():.2f}"]
        for pruner in ("random", "downsample"):
            if (name, pruner) not in pairs:
                line += [""] * (3 if pruner == "random" else 4)
                continue
            other = pairs[name, pruner][1]
            line.append(percent(other.accuracy()))
            if pruner == "downsample":
                line.append(f"{other.rho.mean():.2f}")
            line += [_points(found[name, pruner]), _p(adjusted[name, pruner])]
        lines.append(line)
    return lines


def backbones(results: Results) -> Table:
    """The paper's table 4, one model: score and cost of vanilla, VRS-only, KDV and AVIS, and AVIS minus vanilla."""
    lines = [["row", "all", "pictures", "clips", "#F LLM-only", "#F total", "minus vanilla, points"]]
    vanilla = results.outcome("vanilla")
    for name in results.rows:
        one = results.outcome(name)
        line = [name, *(percent(part.accuracy()) for part in (one, one.where(_is_picture), one.where(_is_video)))]
        lines.append([*line, *_flops(one, vanilla), "" if name == "vanilla" else _points(difference(one, vanilla))])
    return lines


def grid(results: Results) -> Table:
    """The heat map's numbers: accuracy by rho and K."""
    rows = {row.rho or 0: row for row in results.rows.values() if type(row.rollouts) is int and row.rollouts > 1}
    most = max(row.rollouts for row in rows.values())
    lines = [["rho", *(f"K={k}" for k in range(1, most + 1))]]
    for rho, row in sorted(rows.items()):
        line = []
        for k in range(1, most + 1):
            line.append(percent(results.outcome_of(type(row)(row.name, rho=row.rho, rollouts=k)).accuracy()))
        lines.append([f"{rho:g}", *line])
    return lines


def predictors(report: dict[str, Any]) -> Table:
    """How well difficulty is predicted: each predictor's measures on what judges it, from the report of step `fit`."""
    names = ["auc_item", "auc_rollout", "auc_item_within_task", "auc_rollout_within_task", "brier", "ece"]
    judged = report["evaluation"][report["default_chosen_on"]]
    lines = [["predictor", *names]]
    for predictor, found in judged["predictors"].items():
        lines.append([predictor, *(_measure(found["all"].get(name)) for name in names)])
    lines.append(["ceiling: the question's own other rollouts", *(_measure(judged["ceiling"].get(x)) for x in names)])
    for part, found in report["evaluation"].items():
        if told := found.get("pictures_with_other_questions"):
            name = f"the picture's other questions ({part}, n = {told['n']})"
            lines.append([name, *(_measure(told["other_questions"].get(x)) for x in names)])
    return lines


def rules(report: dict[str, Any]) -> Table:
    """The shipped rule from p to K, and the two it is compared with, from the report of step `calibrate`."""
    solutions = report["networks"][report["default"]]["solutions"]
    lines = [["shape", "K by bin", "edges of p", "accuracy", "#F LLM-only", "mean K", "minus K permuted, points"]]
    for shape in ("inverted U", "unconstrained", "constant"):
        one = solutions[shape]
        judged = one[report["chosen_on"]]
        gain = judged["minus_k_permuted"]
        lines.append(
            [
                shape,
                ", ".join(map(str, one["num_rollouts"])),
                ", ".join(f"{edge:.3f}" for edge in one["edges"]),
                _measure(judged["accuracy"]),
                _measure(judged["relative_llm"]),
                f"{judged['mean_k']['value']:.2f}",
                f"{100 * gain['value']:+.1f} ({100 * gain['ci95'][0]:+.1f} to {100 * gain['ci95'][1]:+.1f})",
            ]
        )
    return lines


def _measure(found: dict | None) -> str:
    if not found:
        return ""
    return f"{found['value']:.3f} ({found['ci95'][0]:.3f} to {found['ci95'][1]:.3f})"


def latency(report: dict[str, Any]) -> Table:
    """The paper's table 3: seconds for pairs of picture and question, from a report of `avis.evaluation.speed`."""
    pairs = report["latency"]["pairs"]
    head = ["(rho, K)", f"seconds, {pairs} pairs", "times faster than vanilla"]
    lines = [[*head, "the paper's, 7B on one L40 with vLLM"]]
    for row in report["latency"]["rows"]:
        low, high = row["ci95"]
        interval = "" if row["setting"] == "(0, 1)" else f" ({low:.2f} to {high:.2f})"
        faster = f"{row['faster_than_vanilla']:.2f}{interval}"
        lines.append([row["setting"], f"{row['seconds']:.1f}", faster, f"{row['paper']:.2f}"])
    return lines


def speed(report: dict[str, Any]) -> Table:
    """Seconds of a whole query and of a step of decoding; what the cost model (without captures of graphs) predicts,
    and the least that the machine's limits allow; upstream's `generate` (empty where it was left out, on a CPU beyond
    7,168 visual tokens times K) and vanilla beside it; and the most memory that the process (on CUDA: its tensors) took
    in decoding. From a report of `avis.evaluation.speed`."""
    lines = [["N", "rho", "K", "seconds", "predicted", "limits", "upstream, seconds", "times faster than upstream"]]
    lines[0] += ["times faster than vanilla", "a step, milliseconds", "predicted", "limits", "peak, GB"]
    for point in report["points"]:
        line = [f"{point['visual_tokens']}", f"{point['rho']:g}", f"{point['k']}", *_beside(point, "whole")]
        line += [_spread(point.get("upstream")), _spread(point.get("faster_than_upstream"))]
        line.append("" if (point["rho"], point["k"]) == (0, 1) else _spread(point.get("faster_than_vanilla")))
        peak = point["peak_bytes"]["decode"]
        lines.append([*line, *_beside(point, "decode_step", 1e3), f"{peak / 1e9:.2f}" if peak else ""])
    return lines


def stages(report: dict[str, Any]) -> Table:
    """Seconds of what comes before decoding, what the cost model predicts and what the machine's limits allow, from a
    report of `avis.evaluation.speed`; prefill over its FLOPs is its time, relative to rho = 0, over its FLOPs, relative to
    rho = 0."""
    lines = [["N", "rho", "kept", "vision tower", "predicted", "limits", "windows in one call, times faster"]]
    lines[0] += ["scoring and selection", "scoring over tower", "prefill", "predicted", "limits"]
    lines[0].append("prefill over its FLOPs")
    points = {(point["visual_tokens"], point["rho"]): point for point in report["points"]}
    for stage in report["stages"]:
        point = points[stage["visual_tokens"], stage["rho"]]
        line = [f"{stage['visual_tokens']}", f"{stage['rho']:g}", f"{stage['kept']}", *_beside(point, "vision")]
        share = stage.get("scoring_share_of_tower")
        line += [_spread(stage["windows_batched_gain"]), _spread(stage.get("scoring"), 4)]
        line += [f"{100 * share['median']:.2f}%" if share else "", *_beside(point, "prefill")]
        lines.append([*line, _spread(stage.get("prefill_over_its_flops"))])
    return lines


def _beside(point: dict[str, Any], stage: str, unit: float = 1.0) -> list[str]:
    """A stage's measured seconds (or parts of a second, `unit` of them), those predicted, and the least possible."""
    measured = {key: value * unit for key, value in point[stage].items()}
    others = (point["predicted"][stage]["total"], point["floor"][stage])
    return [_spread(measured), *(f"{seconds * unit:.2f}" for seconds in others)]


def targets(report: dict[str, Any]) -> Table:
    """What was to be reached, of what a report of `avis.evaluation.speed` measured; medians of its rounds."""
    lines = [["goal", "wanted", "measured", "reached"]]
    for goal in report["goals"]:
        wanted = f"at {'least' if goal['at_least'] else 'most'} {goal['wanted']:g}"
        lines.append([goal["goal"], wanted, f"{goal['measured']:.3g}", "yes" if goal["reached"] else "no"])
    return lines


def scale(report: dict[str, Any]) -> Table:
    """An estimate on paper, never measured: GPUs for a million image questions an hour."""
    lines = [["setting", "mean K", "questions decoded at once", "milliseconds a question", "GPUs"]]
    for row in report["internet_scale"]["rows"]:
        took = f"{1e3 * sum(row['seconds'].values()):.2f}"
        lines.append([row["setting"], f"{row['mean_k']:.2f}", f"{row['batch']}", took, f"{row['gpus']:.1f}"])
    return lines


def _spread(found: dict[str, float] | None, digits: int = 2) -> str:
    if not found:
        return ""
    median, least, most = (f"{found[name]:.{digits}f}" for name in ("median", "least", "most"))
    return f"{median} ({least} to {most})"


def _about_fitting(report: dict[str, Any]) -> str:
    judged = report.get("default_chosen_on") or report["chosen_on"]
    read = f"{report['n']} questions read, judged on {judged}"
    return f"{read}; weights {report['weights_sha256'][:8]}; `{report['command']}`"


def _about_speed(report: dict[str, Any]) -> str:
    config = report["config"]
    rounds = report["points"][0]["whole"]["n"] if report["points"] else 0
    return (
        f"Geometry {config['geometry']} ({config['parameters'] / 1e9:.3g}B random weights); {config['hardware']}, "
        f"{config['threads']} threads, {config['device']}, {config['dtype']}, {config['attention']}; "
        f"{config['new_tokens']} new tokens a rollout; medians (least to most) of {rounds} rounds; "
        f"torch {config['versions']['torch']}, seed {config['seed']}; `{report['command']}`"
    )


def _about_latency(report: dict[str, Any]) -> str:
    config = report["config"]
    mix = ", ".join(f"{k} ({100 * share:.0f}%)" for k, share in report["latency"]["k_mix"].items())
    tokens = " and ".join(map(str, config["visual_tokens"]))
    return (
        f"Geometry {config['geometry']} ({config['parameters'] / 1e9:.3g}B random weights); {config['hardware']}, "
        f"{config['threads']} threads, {config['device']}, {config['dtype']}, {config['attention']}; {tokens} visual "
        f"tokens a picture in turn, {config['new_tokens']} new tokens a rollout, shared prefill; AVIS-like is rho = "
        f"0.75 with K dealt as {mix}; torch {config['versions']['torch']}, seed {config['seed']}; `{report['command']}`"
    )


def _about_scale(report: dict[str, Any]) -> str:
    told = report["internet_scale"]
    return f"Geometry {told['geometry']}. Assumed: {'; '.join(told['assumptions'])}. `{report['command']}`"


_RESULTS = (summary, settings, forms, votes, tasks, goals, paper1, paper2, controls, pruners, backbones, grid)
TABLES = {one.__name__: one for one in _RESULTS}
# Of JSON reports, not of results: the table, and what it hangs on.
REPORTS = {
    "predictors": (predictors, _about_fitting),
    "rules": (rules, _about_fitting),
    "speed": (speed, _about_speed),
    "stages": (stages, _about_speed),
    "targets": (targets, _about_speed),
    "latency": (latency, _about_latency),
    "scale": (scale, _about_scale),
}


def _fits(kind: str, results: Results) -> bool:
    """Whether a result has what a table shows."""
    rows = set(results.rows)
    if kind in ("paper2", "controls"):
        return "AVIS" in rows
    if kind in ("tasks", "goals"):
        return results.config["recipe"] == "dev"
    is_other = results.config["recipe"] == "backbones"
    is_grid = results.config["recipe"] == "grid"
    if kind == "grid" or is_grid:
        return kind == "grid" and is_grid
    if kind == "backbones" or is_other:
        return kind == "backbones" and is_other
    if kind == "votes":
        recorded = [record for seeds in results.items[0]["runs"].values() for record in seeds]
        return all("confidence" in record for record in recorded) and max(r.sampled for r in results.rows.values()) > 1
    if kind == "pruners":
        return any(row.pruner != "kdv" for row in results.rows.values())
    return True


def block(kind: str, name: str, store: Store) -> str:
    """A table as a document has it, with what it hangs on. Raises ValueError with one line."""
    if kind in REPORTS:
        report = store.report(name)
        try:
            lines, about = (make(report) for make in REPORTS[kind])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{name}.json has no {error}") from None
    elif kind in TABLES:
        results = store.result(name)
        try:
            lines = TABLES[kind](results)
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{name} has not what table {kind} shows ({type(error).__name__}: {error})") from None
        about = _about(results)
    else:
        raise ValueError(f"no table {kind!r}; there are {', '.join([*TABLES, *REPORTS])}")
    return f"{_markdown(lines)}\n\n{about}\n"


def _markdown(lines: Table) -> str:
    body = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in body)


def everything(store: Store) -> str:
    """Every table that the results allow, as a document. Raises ValueError with one line."""
    shown = [(kind, name) for name in store.names() for kind in TABLES if _fits(kind, store.result(name))]
    for kind, name in (("predictors", "policy-fit"), ("rules", "policy-calibrate")):
        shown += [(kind, name)] * (store.folder / f"{name}.json").exists()
    for name in [f"speed/{path.stem}" for path in sorted(store.folder.glob("speed/*.json"))]:
        report = store.report(name)
        if report["points"] and report["points"][0]["whole"]["n"] > 1:  # one round has no spread, and is no sweep
            shown += [(kind, name) for kind in ("speed", "stages", "targets", "scale")]
        shown += [("latency", name)] * ("latency" in report)
    parts = ["# Every table\n\nMade by `python -m avis.evaluation.tables --write` from the results beside it.\n"]
    for kind, name in shown:
        table = REPORTS[kind][0] if kind in REPORTS else TABLES[kind]
        parts.append(f"## {kind} {name}\n\n{getdoc(table)}\n\n{block(kind, name, store)}")
    return "\n".join(parts)


# --------------------------------------------------------------------------------------------------------- VLMEvalKit


def from_vlmevalkit(folder: Path) -> str:
    """The paper's tables from a work folder of VLMEvalKit, each model's: 1, and 2 and 4 in one, by setting.

    Raises ValueError with one line when a model has no vanilla run, which #F is relative to.
    """
    found, named = vlmevalkit_results.read_settings(folder), {}
    for recipe in ("paper_images", "paper_videos"):
        data = yaml.safe_load((ROOT / "evaluation" / "recipes" / f"{recipe}.yaml").read_text())["data"]
        named |= {value: name for name, value in data.items()}
    parts = []
    for model in dict.fromkeys(one.model for one in found):
        mine = [one for one in found if one.model == model]
        if mine[0].spent != "vanilla":
            raise ValueError(f"{folder} has no vanilla run of {model}: #F is relative to one, made without other flags")
        parts += _of_vlmevalkit(model, mine, named)
    return "\n\n".join(parts)


def _of_vlmevalkit(model: str, found: list[vlmevalkit_results.Setting], named: dict[str, str]) -> list[str]:
    """Both tables of one model; `found` begins with vanilla, `named` are the paper's names of data sets."""
    vanilla, order = found[0], list(named)
    data = sorted(vanilla.records, key=lambda one: (order.index(one) if one in named else len(order), one))
    head = ["benchmark"]
    for one in found:
        head += [f"{one.name} ({one.spent})", "#F LLM-only; total"]
    of_means = ["setting", "pictures", "clips", "minus vanilla, points", "#F LLM-only", "#F total"]
    by_data, by_setting = [head], [[*of_means, "mean K", "mean rho"]]
    for part in data:
        line = [named.get(part, part)]
        for one in found:
            cost, score = one.cost(part, vanilla), one.scores.get(part)
            told = "" if cost is None else "; ".join(fraction(cost[name]) for name in ("llm", "total"))
            line += ["" if score is None else f"{score:.1f}", told]
        by_data.append(line)
    for one in found:
        # Means over the benchmarks that all settings have answered and the harness has scored.
        both = [p for p in data if all(p in s.records and s.scores.get(p) is not None for s in found)]
        if not both:
            break
        halves = [[p for p in both if vanilla.is_video(p) == is_video] for is_video in (False, True)]
        means = ["" if not half else f"{sum(one.scores[p] for p in half) / len(half):.1f}" for half in halves]
        gain = sum(one.scores[p] - vanilla.scores[p] for p in both) / len(both)
        costs = [one.cost(p, vanilla) for p in both]
        if None in costs:
            raise ValueError(f"{one.name} and {vanilla.name} have answered no same question of a benchmark")
        spent = [f"{sum(cost[name].value for cost in costs) / len(costs):.2f}" for name in ("llm", "total")]
        name = f"{one.name} ({one.spent})"
        means += ["" if one is vanilla else f"{gain:+.1f}", *spent]
        by_setting.append([name, *means, f"{one.mean('num_rollouts', both):.2f}", f"{one.mean('rho', both):.2f}"])
    stops = any(one.config["settings"]["early_stop"] for one in found)
    failed = ", ".join(f"{one.name} {one.failed}" for one in found if one.failed)
    about = [
        f"Scores are VLMEvalKit's, without intervals, since its score files hold no single question; #F is relative to "
        f"{vanilla.name} on the same questions{', with early stop of the vote' if stops else ''}, with intervals that "
        f"resample questions; weights {str(vanilla.config['weights_sha256'])[:8]}.",
        f"Failed questions, scored as wrong: {failed}." if failed else "",
        "The second table has means over the benchmarks that every setting has a score of.",
    ]
    tables = [f"## {model}: by benchmark\n\n{_markdown(by_data)}"]
    if len(by_setting) > 1:
        tables.append(f"## {model}: by setting\n\n{_markdown(by_setting)}")
    return [*tables, " ".join(filter(None, about))]


# ------------------------------------------------------------------------------------------------- documents and checks


def documents(root: Path) -> list[Path]:
    """The files whose tables are checked."""
    return [path for path in (root / "README.md", *sorted(root.glob("models/*/*.md"))) if path.exists()]


def renewed(text: str, store: Store) -> str:
    """The text with every marked table made anew. Raises ValueError with one line."""

    def make(found: re.Match) -> str:
        words = found[1].split()
        if len(words) != 2:
            raise ValueError(f"a table is marked KIND RESULT, not {found[1]!r}")
        return f"<!-- table: {found[1]} -->\n{block(*words, store)}<!-- end -->"

    if text.count("<!-- table:") != len(_BLOCK.findall(text)):
        raise ValueError("a table's mark has no end")
    return _BLOCK.sub(make, text)


def check(root: Path) -> list[str]:
    """Everything that documents say and committed results do not, one line each; none when all is well."""
    problems, store = [], Store(root / "evaluation" / "results")
    names = store.names()
    if not names:
        problems.append("evaluation/results has no results")
    shipped = weights_sha256(str(root / SHIPPED))
    policy = root / POLICY
    policy_hash = hashlib.sha256(policy.read_bytes()).hexdigest() if policy.exists() else None
    for name in names:
        try:
            results = store.result(name)
        except ValueError as error:
            problems.append(str(error))
            continue
        model = Path("models") / results.config["model"] if name.startswith(OTHERS) else SHIPPED
        # Another model need not be here; where it is, it is the one that was measured.
        if (root / model).is_dir() and results.config["weights_sha256"] != weights_sha256(str(root / model)):
            problems.append(f"{name} was measured with other weights than {model} has")
        if results.config["policy"] and results.config["policy"]["sha256"] != policy_hash:
            problems.append(f"{name} was measured with another policy than {POLICY}")
        problems += [f"{name}: {line}" for line in disagreements(results)]
    for path in sorted((root / "evaluation" / "results").glob("policy-*.json")):
        if store.report(path.stem).get("weights_sha256") != shipped:
            problems.append(f"{path.name} was made with other weights than {SHIPPED} has")
    shown = 0
    for path in documents(root):
        text = path.read_text()
        shown += len(_BLOCK.findall(text))
        try:
            if renewed(text, store) != text:
                problems.append(
                    f"{path.relative_to(root)} shows other numbers: run python -m avis.evaluation.tables --write"
                )
        except (ValueError, OSError) as error:
            problems.append(f"{path.relative_to(root)}: {error}")
    if not shown:
        problems.append("no document shows a table")
    try:
        if not (root / ALL).exists() or (root / ALL).read_text() != everything(store):
            problems.append(f"{ALL} is not what the results say: run python -m avis.evaluation.tables --write")
    except (ValueError, OSError) as error:
        problems.append(f"{ALL}: {error}")
    return problems


def disagreements(results: Results) -> list[str]:
    """Where full AVIS, run as a user runs it with early stop, and its vote made offline say different things."""
    if "AVIS" not in results.rows:
        return []
    offline = results.outcome("AVIS").right[0]
    live = [item["policy"]["right"] for item in results.items]
    different = sum(bool(a != b) for a, b in zip(offline, live, strict=True))
    # On the CPU tokens are the same but for rounding that follows the number of rows, which is rare.
    return [f"AVIS with early stop differs on {different} items"] if different > 0.01 * len(live) else []


def write(root: Path) -> list[Path]:
    """Renew the tables of all documents, and the document of all tables; those that changed. Raises as `renewed`."""
    store, changed = Store(root / "evaluation" / "results"), []
    made = {path: renewed(path.read_text(), store) for path in documents(root)}
    made[root / ALL] = everything(store)
    for path, text in made.items():
        if not path.exists() or text != path.read_text():
            part = path.with_name(f".{path.name}.part")
            part.write_text(text)
            os.replace(part, path)
            changed.append(path)
    return changed


def main(argv: list[str] | None = None) -> int:
    """The command line: 0, 1 when a check fails, 2 for what cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m avis.evaluation.tables", description="Tables from committed results."
    )
    does = parser.add_mutually_exclusive_group()
    does.add_argument("--check", action="store_true", help="fail when a shown table is not what the results say")
    does.add_argument("--write", action="store_true", help="renew the tables of README and cards")
    does.add_argument("--from-vlmevalkit", type=Path, metavar="DIR", help="the launcher's --work-dir, after its runs")
    does.add_argument("--of", type=Path, metavar="DIR", help="print the tables of another folder of results")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository's folder")
    args = parser.parse_args(argv)
    try:
        if args.check:
            problems = check(args.root)
            for problem in problems:
                print(problem, file=sys.stderr)
            return 1 if problems else 0
        if args.write:
            for path in write(args.root):
                print(path)
            return 0
        if args.from_vlmevalkit:
            print(from_vlmevalkit(args.from_vlmevalkit))
            return 0
        folder = args.of or args.root / "evaluation" / "results"
        if not folder.is_dir():
            raise ValueError(f"no such folder: {folder}")
        print(everything(Store(folder)), end="")
    except (ValueError, OSError) as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
