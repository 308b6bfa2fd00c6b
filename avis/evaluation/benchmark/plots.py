"""Figures of a benchmark's document, readable in grey: seconds against N, K and rho, and the roofline::

    python -m avis.evaluation.benchmark.plots avis/evaluation/results/speed/mid.json

They are written to `assets/speed_<geometry>_{tokens,rollouts,rho,roofline}.png`, or into another `--folder`.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from avis.cli import ArgumentParser, run_command
from avis.files import read_json

# One look for each line of a figure, (color, linestyle, marker); dashes and marks tell them apart without colour.
_LOOKS = [
    ("black", "-", "o"),
    ("black", "--", "s"),
    ("0.45", "-", "^"),
    ("0.45", "--", "D"),
    ("0.65", ":", "v"),
    ("0.65", "-.", "x"),
]
_MARKS = {"vision": "s", "prefill": "o", "decode_step": "^"}

Document = dict[str, Any]


def plot_tokens(document: Document, axes: Sequence[Axes]) -> None:
    """Plot against N: left whole queries, ours and upstream's; right stages, with a straight line beside scoring."""
    config = document["config"]
    k = _nearest(config["rollouts"], 5)
    for rho in sorted({config["rho"][0], _nearest(config["rho"], 0.75)}):
        points = _select(document, rho=rho, k=k)
        _plot_line(axes[0], f"ours, K = {k}, rho = {rho:g}", _column(points, "visual_tokens"), _column(points, "whole"))
    points = [point for point in _select(document, rho=config["rho"][0], k=k) if point["upstream"]]
    _plot_line(axes[0], f"upstream, K = {k}", _column(points, "visual_tokens"), _column(points, "upstream"))
    rho = _nearest([stage["rho"] for stage in document["stages"] if "scoring" in stage] or [0.0], 0.75)
    stages = [stage for stage in document["stages"] if stage["rho"] == rho]
    tokens = _column(stages, "visual_tokens")
    _plot_line(axes[1], "vision encoder", tokens, _column(stages, "vision"))
    _plot_line(axes[1], f"prefill, rho = {rho:g}", tokens, _column(stages, "prefill"))
    scored = [stage for stage in stages if "scoring" in stage]
    if scored:
        _plot_line(axes[1], "scoring and selection", tokens, _column(scored, "scoring"))
        last = scored[-1]["scoring"]["median"]
        straight = [last * n / tokens[-1] for n in tokens]
        axes[1].plot(tokens, straight, color="0.7", linewidth=0.8, label="linear in N")
    for panel in axes:
        panel.set(xscale="log", yscale="log", xlabel="visual tokens N", ylabel="seconds")
        panel.set_xticks(config["visual_tokens"], [str(n) for n in config["visual_tokens"]])
        panel.minorticks_off()
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))


def plot_rollouts(document: Document, axes: Sequence[Axes]) -> None:
    """Plot whole queries against K, at the N nearest to 1,024."""
    config = document["config"]
    n = _nearest(config["visual_tokens"], 1024)
    for rho in config["rho"]:
        points = _select(document, visual_tokens=n, rho=rho)
        _plot_line(axes[0], f"ours, rho = {rho:g}", _column(points, "k"), _column(points, "whole"))
    points = [point for point in _select(document, visual_tokens=n, rho=config["rho"][0]) if point["upstream"]]
    _plot_line(axes[0], "upstream (cannot prune)", _column(points, "k"), _column(points, "upstream"))
    axes[0].set(xlabel=f"rollouts K, at N = {n}", ylabel="seconds", ylim=(0, None), xticks=config["rollouts"])


def plot_rho(document: Document, axes: Sequence[Axes]) -> None:
    """Plot whole queries against rho, at the N nearest to 1,024, with the cost model's predictions."""
    config = document["config"]
    n = _nearest(config["visual_tokens"], 1024)
    for k in config["rollouts"]:
        points = _select(document, visual_tokens=n, k=k)
        _plot_line(axes[0], f"K = {k}", _column(points, "rho"), _column(points, "whole"))
        predicted = [point["predicted"]["whole"]["total"] for point in points]
        label = "predicted" if k == config["rollouts"][-1] else None
        axes[0].plot(_column(points, "rho"), predicted, "+", color="black", label=label)
    axes[0].set(xlabel=f"fraction pruned rho, at N = {n}", ylabel="seconds", ylim=(0, None))


def plot_roofline(document: Document, axes: Sequence[Axes]) -> None:
    """Plot FLOPs a second of every stage against its FLOPs per byte of weights and cache, under the measured limits.

    Half of causal attention is counted, as in the floor.
    """
    rates = document["rates"]
    intensities = []
    for stage, mark in _MARKS.items():
        points = document["points"]
        x = [point["least_flops"][stage] / point["bytes"][stage] for point in points]
        y = [point["least_flops"][stage] / point[stage]["median"] for point in points]
        intensities += x
        axes[0].plot(x, y, mark, color="black", fillstyle="none", label=stage.replace("_", " "))
    grid = sorted([min(intensities) / 2, rates["best_matrix"] / rates["copy"], max(intensities) * 2])
    roof = [min(rates["best_matrix"], x * rates["copy"]) for x in grid]
    axes[0].plot(grid, roof, color="0.45", label="best matrix rate, copy bandwidth")
    axes[0].set(xscale="log", yscale="log", xlabel="FLOPs per byte of weights and cache", ylabel="FLOPs per second")


# By name: how many panels, and what fills them.
FIGURES: dict[str, tuple[int, Callable[[Document, Sequence[Axes]], None]]] = {
    "tokens": (2, plot_tokens),
    "rollouts": (1, plot_rollouts),
    "rho": (1, plot_rho),
    "roofline": (1, plot_roofline),
}


def draw(document: Document, folder: Path) -> list[Path]:
    """Write the figures of one document, and return their files."""
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, (panels, fill) in FIGURES.items():
        figure, axes = plt.subplots(1, panels, figsize=(5.5 * panels, 4), layout="constrained", squeeze=False)
        fill(document, list(axes[0]))
        for panel in figure.axes:
            panel.grid(True, which="major", color="0.9", linewidth=0.6)
            panel.legend(fontsize=8, frameon=False)
        figure.suptitle(_caption(document["config"]), fontsize=7)
        written.append(folder / f"speed_{document['config']['geometry']}_{name}.png")
        # Without matplotlib's version in the file, equal figures are equal bytes.
        figure.savefig(written[-1], dpi=130, metadata={"Software": None})
        plt.close(figure)
    return written


def _plot_line(axes: Axes, label: str, x: list, spreads: list[dict[str, float]]) -> None:
    """Plot medians, with bars from the least to the most."""
    medians = [value["median"] for value in spreads]
    bars = [
        [median - value["least"] for median, value in zip(medians, spreads, strict=True)],
        [value["most"] - median for median, value in zip(medians, spreads, strict=True)],
    ]
    color, linestyle, marker = _LOOKS[len(axes.containers) % len(_LOOKS)]
    axes.errorbar(
        x,
        medians,
        yerr=bars,
        label=label,
        capsize=2,
        markersize=5,
        linewidth=1.2,
        color=color,
        linestyle=linestyle,
        marker=marker,
    )


def _nearest(values: list, wanted: float) -> Any:
    return min(values, key=lambda value: abs(value - wanted))


def _column(records: list[dict[str, Any]], name: str) -> list:
    return [record[name] for record in records]


def _select(document: Document, **where: float) -> list[dict[str, Any]]:
    return [point for point in document["points"] if all(point[key] == value for key, value in where.items())]


def _caption(config: dict[str, Any]) -> str:
    return (
        f"{config['geometry']}, {config['hardware']}, {config['threads']} threads, {config['dtype']}, "
        f"{config['new_tokens']} new tokens; medians, least to most"
    )


def run(path: Path, folder: Path) -> None:
    """Draw a document's figures and print their names.

    Raises:
        ValueError, OSError: with one line.
    """
    document = read_json(path, "give a document that the benchmark wrote with --out")
    if not isinstance(document, dict) or not document.get("points"):
        raise ValueError(f"{path} has no measured points: give a document that the benchmark wrote with --out")
    for written in draw(document, folder):
        print(written)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = ArgumentParser(
        prog="python -m avis.evaluation.benchmark.plots", description="Draw the figures of a benchmark's document."
    )
    parser.add_argument("document", type=Path, help="the JSON file that the benchmark wrote with --out")
    parser.add_argument("--folder", type=Path, default=Path("assets"), help="of the figures (default: assets)")
    args = parser.parse_args(argv)
    return run_command(lambda: run(args.document, args.folder))


if __name__ == "__main__":
    sys.exit(main())
