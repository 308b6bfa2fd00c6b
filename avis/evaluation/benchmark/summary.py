"""The document of a sweep, from its lines alone; see `docs/speed.md` for its parts::

document = summarize(measure(sweep, path))
"""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from avis.evaluation.benchmark.cost_model import floor_seconds, predict_seconds, stage_costs
from avis.evaluation.benchmark.geometry import build_config
from avis.evaluation.benchmark.goals import judge_goals
from avis.evaluation.benchmark.latency import latency_table
from avis.evaluation.benchmark.rates import median_of_rates
from avis.evaluation.benchmark.scale import H200, Machine, estimate_gpus

_LARGE_ERROR = 0.25  # of a prediction, from which on its place is listed

Line = dict[str, Any]


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return median, least, most and number of some measured values."""
    values = list(values)
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "n": len(values)}


def summarize(lines: Sequence[Line]) -> dict[str, Any]:
    """Return the document of a sweep.

    Args:
        lines: of the sweep's file, its configuration first.

    Returns:
        "config", "points" and "stages"; where they were measured "video_memory", "rates", "cost_model", "latency" and
        "goals"; and "internet_scale", an estimate.
    """
    config = lines[0]
    memory, rates, counts, rounds, pairs = (
        [line for line in lines if line["kind"] == kind] for kind in ("memory", "rates", "counts", "round", "pair")
    )
    document: dict[str, Any] = {"config": config, "points": [], "stages": []}
    if memory:
        document["video_memory"] = _summarize_memory(memory[-1])
    if rounds:
        document["rates"] = median_of_rates([line["rates"] for line in rates])
        with_weights = document["rates"] | {"language_bytes": config["weights"]["language"]}
        for line in counts:
            of_size = [one for one in rounds if one["visual_tokens"] == line["visual_tokens"]]
            if of_size:
                measured = _Measured(config, with_weights, line, of_size)
                document["stages"] += measured.stages()
                document["points"] += measured.points()
        document["cost_model"] = prediction_errors(document["points"])
    if pairs:
        document["latency"] = latency_table(pairs, config["seed"], config["k_mix"])
    if rounds:
        document["goals"] = judge_goals(document)
    mix = {int(k): share for k, share in config["k_mix"].items()}
    document["internet_scale"] = estimate_gpus(
        "7b",
        _machine(document),
        {"vanilla": (0.0, {1: 1.0}), "fixed (0.75, 5)": (0.75, {5: 1.0}), "AVIS-like": (0.75, mix)},
        visual_tokens=1024,
        new_tokens=config["new_tokens"],
    )
    return document


def _summarize_memory(line: Line) -> dict[str, Any]:
    found = {key: value for key, value in line.items() if key != "kind"}
    if line["peak_bytes"] is not None:
        least = line["weights"] + line["cache"] + line["layer"]
        found["of_least"] = line["peak_bytes"] / least
        found["of_least_with_pixels"] = (line["peak_bytes"] + line["pixels"]) / least
    return found


def _machine(document: dict[str, Any]) -> Machine:
    """Return the GPU that was measured with the 7B, or an assumed one."""
    config, rates = document["config"], document.get("rates")
    if rates is None or config["device"] == "cpu" or config["geometry"] != "7b":
        return H200
    name = f"{config['hardware']}, rates measured in this run"
    return Machine(name, rates["best_matrix"], rates["copy"], config["memory_bytes"])


class _Measured:
    """The rounds of one number of visual tokens."""

    def __init__(self, config: Line, rates: dict[str, Any], line: Line, rounds: Sequence[Line]):
        """Take what was measured.

        Args:
            config: of the sweep.
            rates: of `median_of_rates`, with "language_bytes".
            line: with the counts of these visual tokens.
            rounds: their records.
        """
        self.config, self.rates, self.rounds = config, rates, rounds
        self.visual_tokens, self.counts = line["visual_tokens"], line["counts"]
        self.model_config = build_config(config["geometry"])
        self.unpruned = config["rho"].index(0.0) if 0.0 in config["rho"] else None

    def runs(self, index: int) -> list[Line]:
        """Return our engine's measurements at one rho, by round."""
        return [one["engine"][index] for one in self.rounds]

    def whole(self, index: int, column: int) -> list[float]:
        """Return the seconds of whole queries at one rho and K, by round."""
        return [run["vision"] + run["prefill"] + run["rollouts"][column]["seconds"] for run in self.runs(index)]

    def stages(self) -> list[dict[str, Any]]:
        """Return, by rho, the stages before decoding."""
        return [self._stage(index, rho) for index, rho in enumerate(self.config["rho"])]

    def points(self) -> list[dict[str, Any]]:
        """Return, by rho and K, whole queries and steps of decoding."""
        found = []
        for index, rho in enumerate(self.config["rho"]):
            for column, k in enumerate(self.config["rollouts"]):
                found.append(self._point(index, rho, column, k))
        return found

    def _stage(self, index: int, rho: float) -> dict[str, Any]:
        runs = self.runs(index)
        vision = [statistics.mean(run["vision"] for run in one["engine"]) for one in self.rounds]
        looped = [one["vision_looped"] for one in self.rounds]
        stage: dict[str, Any] = {"visual_tokens": self.visual_tokens, "rho": rho, "kept": runs[0]["kept"]}
        stage["vision"] = spread(vision)
        stage["prefill"] = spread(run["prefill"] for run in runs)
        stage["windows_batched_gain"] = spread(loop / own for loop, own in zip(looped, vision, strict=True))
        scoring = [run["scoring"] for run in runs if run["scoring"] is not None]
        if scoring:
            stage["scoring"] = spread(scoring)
            stage["scoring_share_of_tower"] = spread(s / own for s, own in zip(scoring, vision, strict=True))
        if self.unpruned is not None:
            prefill_flops = self._costs(index, 0)["prefill"].flops
            by_flops = prefill_flops / self._costs(self.unpruned, 0)["prefill"].flops
            unpruned = self.runs(self.unpruned)
            ratios = [run["prefill"] / base["prefill"] for run, base in zip(runs, unpruned, strict=True)]
            stage["prefill_over_its_flops"] = spread(ratio / by_flops for ratio in ratios)
            flop_seconds = prefill_flops / self.rates["best_matrix"]
            weight_seconds = self.config["weights"]["language"] / self.rates["copy"]
            stage["prefill_is_compute_bound"] = flop_seconds > 2 * weight_seconds
        return stage

    def _costs(self, index: int, column: int):
        by_rho = self.counts["rho"][index]
        return stage_costs(
            self.model_config,
            self.config["weights"],
            {
                "vision": self.counts["vision"],
                "prefill": by_rho["prefill"],
                "decode_step": by_rho["rollouts"][column]["decode_step"],
            },
            self.visual_tokens,
            self.config["rho"][index],
            self.config["rollouts"][column],
            self.config["new_tokens"],
        )

    def _point(self, index: int, rho: float, column: int, k: int) -> dict[str, Any]:
        runs, whole = self.runs(index), self.whole(index, column)
        rollouts = [run["rollouts"][column] for run in runs]
        captures = [one["capture"] for one in rollouts if "capture" in one]
        by_rho = self.counts["rho"][index]
        steps = self.config["new_tokens"] - 1
        point = {
            "visual_tokens": self.visual_tokens,
            "rho": rho,
            "k": k,
            "kept": runs[0]["kept"],
            "whole": spread(whole),
            "vision": spread(run["vision"] for run in runs),
            "prefill": spread(run["prefill"] for run in runs),
            "decode_step": spread(one["seconds"] / steps for one in rollouts),
            "cache_bytes": rollouts[0]["cache_bytes"],
            "capture": spread(captures) if captures else None,  # seconds to make a CUDA graph of a step; None on a CPU
            "peak_bytes": {"prefill": by_rho["peak_bytes"], "decode": by_rho["rollouts"][column]["peak_bytes"]},
        }
        return point | self._modelled(point, index, column) | self._compared(whole, k)

    def _modelled(self, point: dict[str, Any], index: int, column: int) -> dict[str, Any]:
        """Return the work of a point's stages, what the cost model says of it, and how far that is off."""
        costs = self._costs(index, column)
        floor = {name: floor_seconds(cost, self.rates) for name, cost in costs.items()}
        predicted: dict[str, dict[str, float]] = {
            name: predict_seconds(cost, self.rates, self.config["device"]) for name, cost in costs.items()
        }
        totals = {name: seconds["total"] for name, seconds in predicted.items()}
        for seconds in (floor, totals):
            steps = (self.config["new_tokens"] - 1) * seconds["decode_step"]
            seconds["whole"] = seconds["vision"] + seconds["prefill"] + steps
        predicted["whole"] = {"total": totals["whole"]}
        return {
            "flops": {name: cost.flops for name, cost in costs.items()},
            "least_flops": {name: cost.least_flops for name, cost in costs.items()},
            "bytes": {name: cost.bytes for name, cost in costs.items()},
            "floor": floor,
            "predicted": predicted,
            "error": {name: total / point[name]["median"] - 1 for name, total in totals.items()},
            "of_floor": {name: floor[name] / point[name]["median"] for name in totals},
        }

    def _compared(self, whole: list[float], k: int) -> dict[str, Any]:
        """Return upstream's seconds beside ours, and ratios to upstream and vanilla within a round."""
        found: dict[str, Any] = {}
        peers = [[one["seconds"] for one in record["upstream"] if one["k"] == k] for record in self.rounds]
        if all(peers):
            upstream = [seconds for (seconds,) in peers]
            found["upstream"] = spread(upstream)
            found["faster_than_upstream"] = spread(peer / own for peer, own in zip(upstream, whole, strict=True))
        else:
            found["upstream"] = None  # left out on a CPU, see `measure.measure_round`
        if self.unpruned is not None and 1 in self.config["rollouts"]:
            vanilla = self.whole(self.unpruned, self.config["rollouts"].index(1))
            found["faster_than_vanilla"] = spread(base / own for base, own in zip(vanilla, whole, strict=True))
        return found


def prediction_errors(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how far predictions are off, and every place where one is off by 25% or more, with its largest part.

    Args:
        points: of a document.
    """
    off = []
    for point in points:
        for name, error in point["error"].items():
            if abs(error) >= _LARGE_ERROR:
                causes = {cause: s for cause, s in point["predicted"][name].items() if cause != "total"}
                where = {key: point[key] for key in ("visual_tokens", "rho", "k")}
                most = max(causes, key=lambda cause: causes[cause]) if causes else None
                off.append({**where, "stage": name, "error": error, "largest_predicted_part": most})
    stages = {name: spread(abs(point["error"][name]) for point in points) for name in points[0]["error"]}
    return {"absolute_error": stages, "off_by_a_quarter": off}
