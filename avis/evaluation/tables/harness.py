"""The paper's tables from a work folder of VLMEvalKit, see `avis.evaluation.adapters.vlmevalkit`."""

from pathlib import Path

import yaml

from avis.evaluation.adapters.vlmevalkit_results import Setting, read_settings
from avis.evaluation.tables.cells import format_fraction
from avis.evaluation.tables.documents import format_table
from avis.evaluation.tables.store import ROOT, Table

_RECIPES = ("paper_images", "paper_videos")


def tables_from_vlmevalkit(folder: Path) -> str:
    """Return the paper's tables of each model: table 1, and tables 2 and 4 in one, by setting.

    Raises:
        ValueError: a model has no vanilla run, which #F is relative to, or the folder is of another kind; in one line.
    """
    found = read_settings(folder)
    paper_names: dict[str, str] = {}
    for recipe in _RECIPES:
        data = yaml.safe_load((ROOT / "avis/evaluation/recipes" / f"{recipe}.yaml").read_text())["data"]
        paper_names |= {value: name for name, value in data.items()}
    parts = []
    for model in dict.fromkeys(one.model for one in found):
        of_model = [one for one in found if one.model == model]
        vanilla = of_model[0]
        if vanilla.spent != "vanilla":
            raise ValueError(f"{folder} has no vanilla run of {model}: #F is relative to one, made without other flags")
        order = list(paper_names)
        data_sets = sorted(vanilla.records, key=lambda one: (order.index(one) if one in order else len(order), one))
        by_data, by_setting = _by_data(of_model, data_sets, paper_names), _by_setting(of_model, data_sets)
        parts.append(f"## {model}: by benchmark\n\n{format_table(by_data)}")
        if len(by_setting) > 1:
            parts.append(f"## {model}: by setting\n\n{format_table(by_setting)}")
        parts.append(_caption(of_model))
        notes = _empty_cells(of_model, data_sets)
        if notes:
            parts.append(
                "\n".join(["Empty cells, and what the tables leave out:", "", *(f"- {note}" for note in notes)])
            )
    return "\n\n".join(parts)


def _by_data(settings: list[Setting], data_sets: list[str], paper_names: dict[str, str]) -> Table:
    """Return a line for each benchmark: score and cost of each setting, vanilla first."""
    vanilla, head = settings[0], ["benchmark"]
    for setting in settings:
        head += [f"{setting.name} ({setting.spent})", "#F LLM-only; total"]
    lines = [head]
    for data in data_sets:
        line = [paper_names.get(data, data)]
        for setting in settings:
            cost, score = setting.cost(data, vanilla), setting.scores.get(data)
            line.append("" if score is None else f"{score:.1f}")
            line.append("" if cost is None else "; ".join(format_fraction(cost[name]) for name in ("llm", "total")))
        lines.append(line)
    return lines


def _by_setting(settings: list[Setting], data_sets: list[str]) -> Table:
    """Return a line for each setting: means over the benchmarks that all have answered and the harness has scored."""
    vanilla = settings[0]
    head = ["setting", "images", "videos", "minus vanilla, points", "#F LLM-only", "#F total", "mean K", "mean rho"]
    lines = [head]
    common = [d for d in data_sets if all(d in one.records and one.scores.get(d) is not None for one in settings)]
    if not common:
        return lines
    of_vanilla = _scores(vanilla, common)
    for setting in settings:
        scores = _scores(setting, common)
        line = [f"{setting.name} ({setting.spent})"]
        for is_video in (False, True):
            half = [scores[data] for data in common if vanilla.is_video(data) == is_video]
            line.append("" if not half else f"{sum(half) / len(half):.1f}")
        gain = sum(scores[data] - of_vanilla[data] for data in common) / len(common)
        costs = [cost for data in common if (cost := setting.cost(data, vanilla)) is not None]
        if len(costs) < len(common):
            raise ValueError(f"{setting.name} and {vanilla.name} have answered no same question of a benchmark")
        line.append("" if setting is vanilla else f"{gain:+.1f}")
        line += [f"{sum(cost[name].value for cost in costs) / len(costs):.2f}" for name in ("llm", "total")]
        lines.append([*line, f"{setting.mean('num_rollouts', common):.2f}", f"{setting.mean('rho', common):.2f}"])
    return lines


def _scores(setting: Setting, data_sets: list[str]) -> dict[str, float]:
    return {data: score for data in data_sets if (score := setting.scores[data]) is not None}


def _caption(settings: list[Setting]) -> str:
    vanilla = settings[0]
    stops = "" if not any(_has_early_stop(one) for one in settings) else ", with early stop of the vote"
    failed = ", ".join(f"{one.name} {one.failed}" for one in settings if one.failed)
    parts = [
        f"Scores are VLMEvalKit's, without intervals, since its score files hold no single question; #F is relative to "
        f"{vanilla.name} on the same questions{stops}, with intervals that resample questions; weights "
        f"{str(vanilla.config['weights_sha256'])[:8]}."
    ]
    if failed:
        parts.append(f"Failed questions, scored as wrong: {failed}.")
    parts.append("The second table has means over the benchmarks that every setting has a score of.")
    return " ".join(parts)


def _empty_cells(settings: list[Setting], data_sets: list[str]) -> list[str]:
    """Return a sentence for each empty cell, and for each score that has no line: one says why."""
    vanilla, notes = settings[0], []
    for setting in settings:
        for data in data_sets:
            of = f"{data} of {setting.name}"
            if setting.scores.get(data) is None:
                notes.append(f"{of} has no score: {setting.notes.get(data, 'it was not run')}.")
            elif setting.cost(data, vanilla) is None:
                notes.append(f"{of} has no #F: it has no record of a question that {vanilla.name} has answered.")
        for data, score in setting.scores.items():
            if data not in data_sets:
                shown = "no score" if score is None else f"the score {score:.1f}"
                notes.append(f"{data} of {setting.name} has {shown} and no line: {vanilla.name} has no record of it.")
    return notes


def _has_early_stop(setting: Setting) -> bool:
    settings = setting.config["settings"]
    return settings.get("vote_stop") == "decided" or bool(settings.get("early_stop"))  # early_stop: records of 0.1
