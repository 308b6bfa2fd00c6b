"""Draws what `avis.evaluation.speed` measured, readable in grey: time against N, K and rho, and the roofline.

    python -m avis.evaluation.speed_plots evaluation/results/speed/mid.json

Writes `assets/speed_<geometry>_{tokens,rollouts,rho,roofline}.png` (or into `--folder`).
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

# One look for each line of a figure; told apart by dashes and marks, not by colour.
LOOKS = [
    {"color": "black", "linestyle": "-", "marker": "o"},
    {"color": "black", "linestyle": "--", "marker": "s"},
    {"color": "0.45", "linestyle": "-", "marker": "^"},
    {"color": "0.45", "linestyle": "--", "marker": "D"},
    {"color": "0.65", "linestyle": ":", "marker": "v"},
    {"color": "0.65", "linestyle": "-.", "marker": "x"},
]


def _line(axes: Axes, label: str, x: list, found: list[dict]) -> None:
    """Medians with bars from the least to the most; `found` are records of `speed.middle`."""
    medians = [value["median"] for value in found]
    spread = [
        [median - value["least"] for median, value in zip(medians, found)],
        [value["most"] - median for median, value in zip(medians, found)],
    ]
    look = LOOKS[len(axes.containers) % len(LOOKS)]
    axes.errorbar(x, medians, yerr=spread, label=label, capsize=2, markersize=5, linewidth=1.2, **look)


def _nearest(values: list, wanted: float) -> float:
    return min(values, key=lambda value: abs(value - wanted))


def _caption(config: dict) -> str:
    return (
        f"{config['geometry']}, {config['hardware']}, {config['threads']} threads, {config['dtype']}, "
        f"{config['new_tokens']} new tokens; medians, least to most"
    )


def _select(document: dict, **where) -> list[dict]:
    return [point for point in document["points"] if all(point[key] == value for key, value in where.items())]


def against_tokens(document: dict, axes: list[Axes]) -> None:
    """Left the whole query against N, ours and upstream's; right its stages, with a straight line beside scoring."""
    config = document["config"]
    k = _nearest(config["rollouts"], 5)
    for rho in sorted({config["rho"][0], _nearest(config["rho"], 0.75)}):
        points = _select(document, rho=rho, k=k)
        label = f"ours, K = {k}, rho = {rho:g}"
        _line(axes[0], label, [p["visual_tokens"] for p in points], [p["whole"] for p in points])
    points = [p for p in _select(document, rho=config["rho"][0], k=k) if p["upstream"]]
    _line(axes[0], f"upstream, K = {k}", [p["visual_tokens"] for p in points], [p["upstream"] for p in points])
    rho = _nearest([stage["rho"] for stage in document["stages"] if "scoring" in stage] or [0.0], 0.75)
    stages = [stage for stage in document["stages"] if stage["rho"] == rho]
    tokens = [stage["visual_tokens"] for stage in stages]
    _line(axes[1], "vision tower", tokens, [stage["vision"] for stage in stages])
    _line(axes[1], f"prefill, rho = {rho:g}", tokens, [stage["prefill"] for stage in stages])
    scored = [stage for stage in stages if "scoring" in stage]
    if scored:
        _line(axes[1], "scoring and selection", tokens, [stage["scoring"] for stage in scored])
        last = scored[-1]["scoring"]["median"]
        straight = [last * n / tokens[-1] for n in tokens]
        axes[1].plot(tokens, straight, color="0.7", linewidth=0.8, label="linear in N")
    for panel in axes:
        panel.set(xscale="log", yscale="log", xlabel="visual tokens N", ylabel="seconds")
        panel.set_xticks(config["visual_tokens"], [str(n) for n in config["visual_tokens"]])
        panel.minorticks_off()
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))


def against_rollouts(document: dict, axes: Axes) -> None:
    """The whole query against K at one N."""
    config = document["config"]
    n = _nearest(config["visual_tokens"], 1024)
    for rho in config["rho"]:
        points = _select(document, visual_tokens=n, rho=rho)
        _line(axes, f"ours, rho = {rho:g}", [p["k"] for p in points], [p["whole"] for p in points])
    points = [p for p in _select(document, visual_tokens=n, rho=config["rho"][0]) if p["upstream"]]
    _line(axes, "upstream (cannot prune)", [p["k"] for p in points], [p["upstream"] for p in points])
    axes.set(xlabel=f"rollouts K, at N = {n}", ylabel="seconds", ylim=(0, None), xticks=config["rollouts"])


def against_rho(document: dict, axes: Axes) -> None:
    """The whole query against rho at one N, and what the cost model predicts."""
    config = document["config"]
    n = _nearest(config["visual_tokens"], 1024)
    for k in config["rollouts"]:
        points = _select(document, visual_tokens=n, k=k)
        _line(axes, f"K = {k}", [p["rho"] for p in points], [p["whole"] for p in points])
        predicted = [p["predicted"]["whole"]["total"] for p in points]
        label = "predicted" if k == config["rollouts"][-1] else None
        axes.plot([p["rho"] for p in points], predicted, "+", color="black", label=label)
    axes.set(xlabel=f"fraction pruned rho, at N = {n}", ylabel="seconds", ylim=(0, None))


def roofline(document: dict, axes: Axes) -> None:
    """FLOPs per second of every stage against its FLOPs per byte of weights and cache, under the measured limits; of
    causal attention, half is counted, as in the floor."""
    rates = document["rates"]
    marks = {"vision": "s", "prefill": "o", "decode_step": "^"}
    intensities = []
    for stage, mark in marks.items():
        points = document["points"]
        x = [p["least_flops"][stage] / p["bytes"][stage] for p in points]
        y = [p["least_flops"][stage] / p[stage]["median"] for p in points]
        intensities += x
        axes.plot(x, y, mark, color="black", fillstyle="none", label=stage.replace("_", " "))
    grid = [min(intensities) / 2, rates["best_matrix"] / rates["copy"], max(intensities) * 2]
    roof = [min(rates["best_matrix"], x * rates["copy"]) for x in sorted(grid)]
    axes.plot(sorted(grid), roof, color="0.45", label="best matrix rate, copy bandwidth")
    axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte of weights and cache", ylabel="FLOPs per second")


FIGURES = {"tokens": against_tokens, "rollouts": against_rollouts, "rho": against_rho, "roofline": roofline}


def draw(document: dict, folder: Path) -> list[Path]:
    """Writes the figures of one document of `avis.evaluation.speed`; returns their files."""
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, fill in FIGURES.items():
        panels = 2 if name == "tokens" else 1
        figure, axes = plt.subplots(1, panels, figsize=(5.5 * panels, 4), layout="constrained")
        fill(document, axes)
        for panel in figure.axes:
            panel.grid(True, which="major", color="0.9", linewidth=0.6)
            panel.legend(fontsize=8, frameon=False)
        figure.suptitle(_caption(document["config"]), fontsize=7)
        written.append(folder / f"speed_{document['config']['geometry']}_{name}.png")
        # Without the version of matplotlib in the file, equal pictures are equal bytes.
        figure.savefig(written[-1], dpi=130, metadata={"Software": None})
        plt.close(figure)
    return written


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw what avis.evaluation.speed measured.")
    parser.add_argument("document", type=Path, help="what avis.evaluation.speed wrote with --out")
    parser.add_argument("--folder", type=Path, default=Path("assets"))
    args = parser.parse_args(argv)
    try:
        document = json.loads(args.document.read_text())
        if not document.get("points"):
            raise ValueError(f"{args.document} has no measured points")
        for path in draw(document, args.folder):
            print(path)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
