"""Tables of speed, from the JSON reports of `python -m avis.evaluation.benchmark`."""

from typing import Any

from avis.evaluation.benchmark.goals import current_words
from avis.evaluation.tables.cells import format_spread
from avis.evaluation.tables.store import Table


def latency(report: dict[str, Any]) -> Table:
    """Return the paper's table 3: seconds for pairs of image and question."""
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
    """Return seconds of a whole query and of a decoding step, beside predictions, limits, upstream and vanilla."""
    head = ["N", "rho", "K", "seconds", "predicted", "limits", "upstream, seconds", "times faster than upstream"]
    head += ["times faster than vanilla", "a step, milliseconds", "predicted", "limits", "peak, GB"]
    lines = [head]
    for point in report["points"]:
        line = [f"{point['visual_tokens']}", f"{point['rho']:g}", f"{point['k']}", *_stage_cells(point, "whole")]
        line += [format_spread(point.get("upstream")), format_spread(point.get("faster_than_upstream"))]
        is_vanilla = (point["rho"], point["k"]) == (0, 1)
        line.append("" if is_vanilla else format_spread(point.get("faster_than_vanilla")))
        peak = point["peak_bytes"]["decode"]
        lines.append([*line, *_stage_cells(point, "decode_step", 1e3), f"{peak / 1e9:.2f}" if peak else ""])
    return lines


def stages(report: dict[str, Any]) -> Table:
    """Return seconds of the stages before decoding, beside predictions and limits."""
    head = ["N", "rho", "kept", "vision encoder", "predicted", "limits", "windows in one call, times faster"]
    head += [
        "scoring and selection",
        "scoring over encoder",
        "prefill",
        "predicted",
        "limits",
        "prefill over its FLOPs",
    ]
    lines = [head]
    points = {(point["visual_tokens"], point["rho"]): point for point in report["points"]}
    for stage in report["stages"]:
        point = points[stage["visual_tokens"], stage["rho"]]
        line = [f"{stage['visual_tokens']}", f"{stage['rho']:g}", f"{stage['kept']}", *_stage_cells(point, "vision")]
        share = stage.get("scoring_share_of_tower")
        line += [format_spread(stage["windows_batched_gain"]), format_spread(stage.get("scoring"), 4)]
        line += [f"{100 * share['median']:.2f}%" if share else "", *_stage_cells(point, "prefill")]
        lines.append([*line, format_spread(stage.get("prefill_over_its_flops"))])
    return lines


def _stage_cells(point: dict[str, Any], stage: str, unit: float = 1.0) -> list[str]:
    """Return a stage's measured seconds (or parts of a second), the predicted, and the least."""
    measured = {key: value * unit for key, value in point[stage].items()}
    others = (point["predicted"][stage]["total"], point["floor"][stage])
    return [format_spread(measured), *(f"{seconds * unit:.2f}" for seconds in others)]


def targets(report: dict[str, Any]) -> Table:
    """Return the goals and what was measured, medians of the rounds."""
    lines = [["goal", "wanted", "measured", "reached"]]
    for goal in report["goals"]:
        wanted = f"at {'least' if goal['at_least'] else 'most'} {goal['wanted']:g}"
        reached = "yes" if goal["reached"] else "no"
        lines.append([current_words(goal["goal"]), wanted, f"{goal['measured']:.3g}", reached])
    return lines


def scale(report: dict[str, Any]) -> Table:
    """Return an estimate on paper: GPUs for a million image questions an hour."""
    lines = [["setting", "mean K", "questions decoded at once", "milliseconds a question", "GPUs"]]
    for row in report["internet_scale"]["rows"]:
        took = f"{1e3 * sum(row['seconds'].values()):.2f}"
        lines.append([row["setting"], f"{row['mean_k']:.2f}", f"{row['batch']}", took, f"{row['gpus']:.1f}"])
    return lines
