"""Tables of accuracy and cost: settings beside each other, tasks, the grid of rho and K."""

from collections.abc import Sequence

from avis.evaluation.recipe import Row
from avis.evaluation.score import Results, constant_guess, difference
from avis.evaluation.tables.cells import (
    difficulty_groups,
    distinct_values,
    flops_cells,
    format_fraction,
    format_percent,
    format_points,
    has_value,
    is_image,
    is_video,
    largest_vote,
)
from avis.evaluation.tables.store import Table
from avis.statistics import Interval, wilson_interval

_HEADLINE = ("vanilla", "VRS K=7", "KDV rho=0.75", "random rho=0.75", "smaller rho=0.75", "AVIS")
_SUMMARY = (
    "vanilla",
    "VRS K=5",
    "VRS K=7",
    "KDV rho=0.75",
    "random rho=0.75",
    "smaller rho=0.75",
    "KDV rho=0.75, K=5",
    "AVIS",
    "AVIS random",
    "AVIS smaller",
    "AVIS, K permuted",
)


def headline(results: Results) -> Table:
    """Return the summary with six settings."""
    return _summarise(results, _HEADLINE)


def summary(results: Results) -> Table:
    """Return a line for each of the settings that matter most: accuracy, its difference from vanilla, and cost."""
    return _summarise(results, _SUMMARY)


def _summarise(results: Results, names: Sequence[str]) -> Table:
    lines = [["setting", "all", "minus vanilla, points", "images", "videos", "mean K", "#F LLM-only", "#F total"]]
    vanilla = results.vanilla()
    for name in names:
        one = results.outcome(name)
        if one is None:
            continue
        line = [
            name,
            format_percent(one.accuracy()),
            "" if name == "vanilla" else format_points(difference(one, vanilla)),
        ]
        line += [format_percent(one.where(kind).accuracy()) for kind in (is_image, is_video)]
        lines.append([*line, f"{one.rollouts.mean():.2f}", *flops_cells(one, vanilla)])
    return lines


def settings(results: Results) -> Table:
    """Return a line for each row of the recipe: accuracy by medium and difficulty, K, rho, cost in both accountings."""
    groups = difficulty_groups(results)
    head = ["setting", "all", "images", "videos", *(name for name, _ in groups), "mean K", "mean rho"]
    lines = [[*head, "#F LLM-only", "#F total", "#F LLM-only, early stop"]]
    vanilla = results.vanilla()
    for name in results.rows:
        one = results.outcome(name)
        if one is None:
            continue
        line = [name, format_percent(one.accuracy())]
        line += [format_percent(one.where(kind).accuracy()) for kind in (is_image, is_video)]
        line += [format_percent(one.where(is_in_group).accuracy(), 0) for _, is_in_group in groups]
        line += [f"{one.rollouts.mean():.2f}", f"{one.rho.mean():.2f}", *flops_cells(one, vanilla)]
        lines.append([*line, format_fraction(one.relative(vanilla, stopped=True)["llm"])])
    return lines


def tasks(results: Results) -> Table:
    """Return a line for each task: vanilla over all and by difficulty, votes, and the best constant guess."""
    groups = difficulty_groups(results)
    vanilla = results.vanilla()
    votes = {}
    for name in results.rows:
        if name.startswith("VRS ") and (vote := results.outcome(name)):
            votes[name.removeprefix("VRS ")] = vote
    lines = [["task", "greedy", *(name for name, _ in groups), *votes, "constant guess"]]
    for task in distinct_values(results, "task"):
        is_of_task = has_value("task", task)
        greedy = vanilla.where(is_of_task)
        line = [task, format_percent(greedy.accuracy())]
        line += [format_percent(greedy.where(is_in_group).accuracy(), 0) for _, is_in_group in groups]
        line += [format_percent(vote.where(is_of_task).accuracy()) for vote in votes.values()]
        lines.append([*line, f"{100 * constant_guess(greedy.records):.1f}"])
    return lines


def goals(results: Results) -> Table:
    """Return the bundled model's goals and what was measured."""
    vanilla, vote = results.vanilla(), results.outcome_of(results.rows["VRS K=7"])
    easy = vanilla.where(lambda record: (record["level"] or record["see"]) <= 3)
    axis = "see" if distinct_values(results, "see") else "levels"
    lines = [["goal", "wanted", "measured"]]
    for name, kind, wanted in (("images", is_image, "70%"), ("videos", is_video, "60%")):
        lines.append([f"greedy, {name}, {axis} 1 to 3", wanted, format_percent(easy.where(kind).accuracy())])
    names = distinct_values(results, "task")
    above = []
    for task in names:
        of_task = vanilla.where(has_value("task", task))
        # 0.575 - 0.375 is less than 0.2 in floats.
        if of_task.right.mean() - constant_guess(of_task.records) >= 0.2 - 1e-9:
            above.append(task)
    found = f"{len(above)}: {', '.join(above) or 'none'}"
    lines.append(["tasks at least 20 points above the constant guess", f"all {len(names)}", found])
    rates = [sum(record["runs"]["rho=0"][0]["right"][1:8]) / 7 for record in results.records]
    unsure = sum(0.2 <= rate <= 0.8 for rate in rates)
    low, high = wilson_interval(unsure, len(rates))
    share = format_percent(Interval(unsure / len(rates), low, high, len(rates)))
    lines.append(["examples with a pass rate from 0.2 to 0.8", "25%", share])
    against = f"{format_percent(vote.accuracy())} against {format_percent(vanilla.accuracy())}"
    gain = format_points(difference(vote, vanilla))
    lines.append(["vote at K = 7 above greedy", "yes", f"{against}; difference {gain}"])
    return lines


def paper1(results: Results) -> Table:
    """Return the paper's table 1: score and #F (LLM-only; total) by task."""
    shown = {
        "vanilla": "vanilla",
        "VRS K=5": "VRS-only (K = 5)",
        "KDV rho=0.75": "KDV (rho = 0.75)",
        "AVIS": "AVIS",
    }
    outcomes = {label: results.outcome_of(results.rows[name]) for name, label in shown.items() if name in results.rows}
    lines = [["task"]]
    for label in outcomes:
        lines[0] += [label, "#F"]
    groups = [(task, has_value("task", task)) for task in distinct_values(results, "task")]
    groups += [("**images**", is_image), ("**videos**", is_video), ("**all**", lambda record: True)]
    for label, is_wanted in groups:
        vanilla = results.vanilla().where(is_wanted)
        if not vanilla.records:
            continue
        line = [label]
        for outcome in outcomes.values():
            part = outcome.where(is_wanted)
            line += [format_percent(part.accuracy()), "; ".join(flops_cells(part, vanilla))]
        lines.append(line)
    return lines


def backbones(results: Results) -> Table:
    """Return the paper's table 4 for one model: score, cost, and difference from vanilla."""
    lines = [["row", "all", "images", "videos", "#F LLM-only", "#F total", "minus vanilla, points"]]
    vanilla = results.vanilla()
    for name, row in results.rows.items():
        one = results.outcome_of(row)
        parts = (one, one.where(is_image), one.where(is_video))
        line = [name, *(format_percent(part.accuracy()) for part in parts), *flops_cells(one, vanilla)]
        lines.append([*line, "" if name == "vanilla" else format_points(difference(one, vanilla))])
    return lines


def axes(results: Results) -> Table:
    """Return accuracy over see x think: greedy, the vote of the largest K, and the difference."""
    vanilla, (name, vote) = results.vanilla(), largest_vote(results)
    parts = [("all", lambda record: True)]
    sees, thinks = (
        [*((f"{axis} {value}", has_value(axis, value)) for value in distinct_values(results, axis)), *parts]
        for axis in ("see", "think")
    )
    lines = [["see", "answer", *(think for think, _ in thinks)]]
    for see, is_see in sees:
        cells: dict[str, list[str]] = {"greedy": [], name: [], f"{name} minus greedy, points": []}
        for _, is_think in thinks:
            one, other = (outcome.where(is_see).where(is_think) for outcome in (vanilla, vote))
            found = [format_percent(one.accuracy(), 0), format_percent(other.accuracy(), 0)]
            found.append(format_points(difference(other, one)) if one.records else "")
            for own, cell in zip(cells.values(), found, strict=True):
                own.append(cell)
        lines += [[see, answer, *own] for answer, own in cells.items()]
    return lines


def grid(results: Results) -> Table:
    """Return the heat map's numbers: accuracy by rho and K."""
    rows = {row.rho or 0: row for row in results.rows.values() if isinstance(row.rollouts, int) and row.rollouts > 1}
    most = max(row.sampled for row in rows.values())
    lines = [["rho", *(f"K={k}" for k in range(1, most + 1))]]
    for rho, row in sorted(rows.items()):
        cells = [results.outcome_of(Row(row.name, rho=row.rho, rollouts=k)) for k in range(1, most + 1)]
        lines.append([f"{rho:g}", *(format_percent(cell.accuracy()) for cell in cells)])
    return lines
