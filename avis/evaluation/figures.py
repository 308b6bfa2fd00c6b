"""The figures of README and docs, redrawn from committed results.

    python -m avis.evaluation.figures                       # all, into assets/
    python -m avis.evaluation.figures teaser --out /tmp     # some

A figure whose results are missing is left out with one line. Marks differ in shape and colours in lightness, so that
they can be told apart in grey and by the colour-blind (colours: Okabe and Ito 2008; maps: cividis).
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from avis.cli import ArgumentParser, run_command
from avis.evaluation.diagrams import MissingData, draw_architecture, draw_kdv_qualitative, write_caption
from avis.evaluation.recipe import Row
from avis.evaluation.score import Outcome, Results
from avis.evaluation.tables.cells import distinct_values, has_value, largest_vote
from avis.evaluation.tables.store import RESULTS, ROOT, Store
from policy.policy_model import CHOICES

Style = tuple[str, str, str]  # mark, colour and legend of a family of rows
VANILLA: Style = ("*", "#000000", "vanilla")
ROLLOUTS: Style = ("s", "#56B4E9", "rollouts only")
KEYS: Style = ("o", "#0072B2", "KDV")
RANDOM: Style = ("v", "#E69F00", "random pruning")
SMALLER: Style = ("^", "#CC79A7", "smaller image")
AVIS: Style = ("D", "#D55E00", "AVIS")
NAMED = (VANILLA, ROLLOUTS, KEYS, AVIS)  # families whose marks have a label each
K_SHADES = {1: "#e8e8e8", 3: "#9ecae1", 5: "#3182bd", 7: "#08306b"}  # ever darker
STYLE = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def _result(store: Store, name: str) -> Results:
    if name not in store.names:
        raise MissingData(f"{store.folder.name}/{name}.jsonl.gz is missing")
    return store.result(name)


def _report(store: Store, name: str) -> dict:
    if not store.has_report(name):
        raise MissingData(f"{store.folder.name}/{name}.json is missing")
    return store.report(name)


def _describe(results: Results) -> str:
    config = results.config
    sources, weights = ", ".join(config["sources"]), config["weights_sha256"][:8]
    seeds = " and ".join(map(str, config["seeds"]))
    return f"{len(results.records)} examples of {sources}, sampling seed {seeds}; model {config['model']} ({weights})"


def _style(row: Row) -> Style:
    if row.name == "AVIS":
        return AVIS
    if row.pruner != "kdv":
        return RANDOM if row.pruner == "random" else SMALLER
    if row.rho is None:
        return VANILLA if row.rollouts == 1 else ROLLOUTS
    return KEYS


def _draw_mark(axes: plt.Axes, outcome: Outcome, cost: float, label: str | None) -> float:
    """Draw one row of the teaser. Returns its accuracy in percent."""
    share, style = outcome.accuracy(), _style(outcome.row)
    if share is None:
        raise MissingData("the results have no examples")
    axes.errorbar(
        cost,
        100 * share.value,
        yerr=[[100 * (share.value - share.low)], [100 * (share.high - share.value)]],
        fmt=style[0],
        color=style[1],
        markersize=11 if style[0] in "*D" else 6.5,
        markeredgecolor="black",
        markeredgewidth=0.6,
        elinewidth=0.7,
        ecolor="#aaaaaa",
        zorder=4 if style == AVIS else 3 if style in NAMED else 2,
        label=label,
    )
    return 100 * share.value


def draw_teaser(store: Store) -> plt.Figure:
    """Draw accuracy against LLM FLOPs, of every row with a fixed K and of AVIS."""
    results = _result(store, "test")
    vanilla = results.vanilla()
    figure, axes = plt.subplots(figsize=(6.8, 4.4))
    labelled: set[str] = set()
    named = []
    for name, row in results.rows.items():
        is_fixed = isinstance(row.rollouts, int) and row.tau is None and row.rho != "policy"
        if name != "AVIS" and not is_fixed:
            continue
        outcome, legend = results.outcome_of(row), _style(row)[2]
        cost = outcome.relative(vanilla)["llm"].value
        percent = _draw_mark(axes, outcome, cost, None if legend in labelled else legend)
        labelled.add(legend)
        if _style(row) in NAMED:
            short = name.replace("KDV ", "").replace("VRS ", "").replace("rho=", "ρ=")
            named.append((cost, percent, "" if name == "AVIS" else short))  # the legend names the large mark
    for cost, percent, short in named:
        distance = {other: abs(np.log(other[0] / cost)) for other in named if other[0] != cost}
        nearest = min(distance, key=distance.__getitem__, default=(0, 0, ""))
        offset = (7, -12) if nearest[1] > percent else (7, 6)  # away from the mark beside it
        axes.annotate(short, (cost, percent), offset, textcoords="offset points", fontsize=7.5, zorder=5)
    axes.set_xscale("log")
    ticks = (0.3, 0.4, 0.5, 0.7, 1.0, 1.4, 2.0)
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.set_xlabel("FLOPs of the language model, relative to vanilla (logarithmic)")
    axes.set_ylabel("right answers, % (95% interval)")
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.set_title("The garden: accuracy against compute", loc="left", fontsize=10)
    write_caption(figure, _describe(results))
    return figure


def draw_vcs_vrs_tradeoff(store: Store) -> plt.Figure:
    """Draw accuracy over the fraction pruned and K."""
    results = _result(store, "grid")
    by_rho = {row.rho or 0: row for row in results.rows.values() if row.name != "vanilla"}
    rows = [by_rho[rho] for rho in sorted(by_rho)]
    most = min(row.sampled for row in rows)
    cells = [[Row("cell", rho=row.rho, rollouts=k) for row in rows] for k in range(1, most + 1)]
    values = np.array([[100 * results.outcome_of(cell).right.mean() for cell in line] for line in cells])
    figure, axes = plt.subplots(figsize=(6.4, 4.4))
    heat_map = axes.imshow(values, origin="lower", aspect="auto", cmap="cividis")
    middle = (values.min() + values.max()) / 2
    for (k, column), value in np.ndenumerate(values):
        colour = "white" if value < middle else "black"
        axes.text(column, k, f"{value:.0f}", ha="center", va="center", fontsize=7.5, color=colour)
    axes.set_xticks(range(len(rows)), [f"{rho:g}" for rho in sorted(by_rho)])
    axes.set_yticks(range(most), range(1, most + 1))
    axes.set_xlabel("ρ, fraction of visual tokens pruned (KDV)")
    axes.set_ylabel("K, rollouts")
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(heat_map, ax=axes, label="right answers, %")
    share = results.vanilla().accuracy()
    half = 0 if share is None else 100 * (share.high - share.low) / 2
    axes.set_title(f"The garden: seeing against thinking (each cell ± about {half:.0f})", loc="left", fontsize=10)
    write_caption(figure, _describe(results))
    return figure


def draw_axes(store: Store) -> plt.Figure:
    """Draw accuracy over how hard it is to see and how many steps it takes: greedy, the vote, and what it gains."""
    results = _result(store, "test")
    sees, thinks = (distinct_values(results, axis) for axis in ("see", "think"))
    if not (sees and thinks):
        raise MissingData("test.jsonl.gz has no axes of seeing and thinking")
    name, vote = largest_vote(results)
    greedy, voted = (_accuracy_over_axes(one, sees, thinks) for one in (results.vanilla(), vote))
    panels = (("greedy", greedy, "cividis"), (name, voted, "cividis"), (f"{name} minus greedy", voted - greedy, "PuOr"))
    figure, all_axes = plt.subplots(1, 3, figsize=(9.6, 3.2), sharey=True)
    widest = max(1.0, float(np.nanmax(np.abs(voted - greedy))))
    for axes, (title, values, colours) in zip(all_axes, panels, strict=True):
        low, high = (-widest, widest) if colours == "PuOr" else (0, 100)
        axes.imshow(values, origin="lower", aspect="auto", cmap=colours, vmin=low, vmax=high)
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                colour = "white" if colours == "cividis" and value < 50 else "black"
                text = f"{value:+.0f}" if colours == "PuOr" else f"{value:.0f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(len(thinks)), thinks)
        axes.set_yticks(range(len(sees)), sees)
        axes.set_xlabel("think")
        axes.set_title(title, fontsize=9)
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
    all_axes[0].set_ylabel("see")
    write_caption(figure, f"right answers, %, by difficulty (1 is easy); {_describe(results)}")
    return figure


def _accuracy_over_axes(outcome: Outcome, sees: list, thinks: list) -> np.ndarray:
    """Return right answers in percent, (sees, thinks); NaN where there are no examples."""
    found = np.full((len(sees), len(thinks)), np.nan)
    for row, see in enumerate(sees):
        for column, think in enumerate(thinks):
            part = outcome.where(has_value("see", see)).where(has_value("think", think))
            if part.records:
                found[row, column] = 100 * part.right.mean()
    return found


def draw_rollout_distribution(store: Store) -> plt.Figure:
    """Draw for each task the share of examples that the policy gives each K."""
    results = _result(store, "test")
    if not results.config["policy"]:
        raise MissingData("test.jsonl.gz was measured without a policy")
    chosen: dict[str, list[int]] = {}
    for record in results.records:
        chosen.setdefault(record["task"], []).append(record["policy"]["rollouts"])
    tasks = sorted(sorted(chosen), key=lambda task: np.mean(chosen[task]))
    figure, axes = plt.subplots(figsize=(6.4, 0.27 * len(tasks) + 1.3))
    left = np.zeros(len(tasks))
    for k in CHOICES:
        share = np.array([100 * np.mean([one == k for one in chosen[task]]) for task in tasks])
        axes.barh(tasks, share, left=left, color=K_SHADES[k], edgecolor="#555555", linewidth=0.4, label=f"K = {k}")
        left += share
    for place, task in enumerate(tasks):
        axes.text(101, place, f"mean {np.mean(chosen[task]):.1f}", va="center", fontsize=7)
    axes.set_xlabel("share of examples, %")
    axes.set_xlim(0, 100)
    axes.tick_params(axis="y", length=0)
    axes.legend(ncols=4, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.0))
    write_caption(figure, _describe(results))
    return figure


def draw_reliability(store: Store) -> plt.Figure:
    """Draw predicted against measured solvability, and the number of questions at each prediction."""
    report = _report(store, "policy-fit")
    judged = report["default_chosen_on"]
    found = report["evaluation"][judged]["predictors"]
    figure, (axes, below) = plt.subplots(2, 1, figsize=(4.6, 5.0), sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle="--", label="perfect")
    for name, (mark, colour, _), shift in (("visual", KEYS, -0.006), ("question", AVIS, 0.006)):
        bins = [one for one in found[name]["reliability"] if one["right"]]
        x, y = np.array([one["p"] for one in bins]), np.array([one["right"]["value"] for one in bins])
        low, high = np.array([one["right"]["ci95"] for one in bins]).T
        label = f"{name}{' (default)' if name == report['default'] else ''}"
        error, line = [y - low, high - y], {"fmt": f"{mark}-", "color": colour, "markersize": 5, "linewidth": 1}
        axes.errorbar(x + shift, y, yerr=error, label=label, **line)
        centres = np.array([(one["from"] + one["to"]) / 2 for one in bins])
        counts = [one["n"] for one in bins]
        below.bar(centres + 5 * shift, counts, width=0.03, color=colour, edgecolor="black", linewidth=0.4)
    axes.set_ylabel("share of right rollouts")
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8, loc="upper left")
    below.set_xlabel("predicted solvability p")
    below.set_ylabel("questions")
    below.set_xlim(0, 1)
    count, weights = report["evaluation"][judged]["n"], report["weights_sha256"][:8]
    write_caption(figure, f"{count} questions ({judged}); weights {weights}")
    return figure


def draw_binning(store: Store) -> plt.Figure:
    """Draw what more rollouts bring at each p, and the rule that was fitted."""
    report = _report(store, "policy-calibrate")
    judged, network = report["chosen_on"], report["networks"][report["default"]]
    gains, rule = network["gains"][judged], network["solutions"]["inverted U"]
    figure, (axes, below) = plt.subplots(2, 1, figsize=(5.2, 5.0), sharex=True, gridspec_kw={"height_ratios": [2, 1]})
    axes.axhline(0, color="#999999", linewidth=0.8)
    for (mark, colour, _), k in zip((KEYS, SMALLER, AVIS), CHOICES[1:], strict=True):
        shown = [(one["p"], one["gain"][str(k)]) for one in gains if one["gain"][str(k)]]
        x, y = np.array([p for p, _ in shown]), np.array([100 * gain["value"] for _, gain in shown])
        low, high = 100 * np.array([gain["ci95"] for _, gain in shown]).T
        error, line = [y - low, high - y], {"fmt": f"{mark}-", "color": colour, "markersize": 5, "linewidth": 1}
        axes.errorbar(x + 0.004 * (k - 5), y, yerr=error, label=f"K = {k}", **line)
    axes.set_ylabel("vote minus greedy, points")
    axes.legend(fontsize=8, ncols=3)
    edges = [min(one["from"] for one in gains), *rule["edges"], max(one["to"] for one in gains)]
    below.stairs(rule["num_rollouts"], sorted(edges), fill=True, color="#56B4E9", edgecolor="black")
    below.set_yticks(CHOICES)
    below.set_ylabel("K")
    below.set_xlabel("predicted solvability p")
    write_caption(figure, f"{report['questions'][judged]} questions ({judged}); weights {report['weights_sha256'][:8]}")
    return figure


# By the name of the file.
FIGURES: dict[str, Callable[[Store], plt.Figure]] = {
    "teaser": draw_teaser,
    "vcs_vrs_tradeoff": draw_vcs_vrs_tradeoff,
    "axes": draw_axes,
    "rollout_distribution": draw_rollout_distribution,
    "reliability": draw_reliability,
    "binning": draw_binning,
    "architecture": draw_architecture,
    "kdv_qualitative": draw_kdv_qualitative,
}


def draw_figures(names: list[str], store: Store, out: Path) -> list[str]:
    """Draw figures as `out/NAME.png`.

    Args:
        names: of `FIGURES`.
        store: of the results.
        out: a folder, made when it is missing.

    Returns:
        One line for each figure whose data is missing.

    Raises:
        ValueError, OSError: the results do not have what a figure shows, or it cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    left_out = []
    for name in names:
        with plt.rc_context(STYLE), tempfile.TemporaryDirectory(dir=out) as folder:
            try:
                figure = FIGURES[name](store)
            except MissingData as missing:
                left_out.append(f"{name}: left out, {missing}")
                continue
            except (KeyError, TypeError) as error:
                reason = f"{type(error).__name__}: {error}"
                raise ValueError(f"{name}: the results do not have what it shows ({reason})") from None
            # The same bytes from the same results and versions: no date, no program's name.
            part = Path(folder) / f"{name}.png"
            figure.savefig(part, bbox_inches="tight", metadata={"Software": None})
            plt.close(figure)
            part.replace(out / f"{name}.png")
    return left_out


def build_parser() -> ArgumentParser:
    """Return the parser of the command line."""
    parser = ArgumentParser(prog="python -m avis.evaluation.figures", description="Figures from committed results.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(FIGURES)}; default: all")
    parser.add_argument("--results", type=Path, default=ROOT / RESULTS, help="the results' folder (default: committed)")
    parser.add_argument("--out", type=Path, default=ROOT / "assets", help="the images' folder (default: assets)")
    return parser


def run(args: argparse.Namespace) -> None:
    """Draw what the parsed command line names. Raises ValueError or OSError with one line."""
    unknown = [name for name in args.names if name not in FIGURES]
    if unknown:
        raise ValueError(f"no figure {unknown[0]!r}; there are {', '.join(FIGURES)}")
    for line in draw_figures(args.names or list(FIGURES), Store(args.results), args.out):
        print(line, file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run the command line, and return its exit status."""
    args = build_parser().parse_args(argv)
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
