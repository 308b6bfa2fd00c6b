"""The figures of README and paper, redrawn from committed results.

    python -m avis.evaluation.figures                       # all, into assets/
    python -m avis.evaluation.figures teaser --out /tmp     # some

A figure whose results are not there is left out with one line. Marks differ in shape and colours in lightness, so that
they can be told apart in grey and by the colour-blind (colours: Okabe and Ito 2008; maps: cividis).
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch

from avis.evaluation.score import Row
from avis.evaluation.tables import ROOT, SHIPPED, Store
from policy.policy_model import CHOICES

POLICY = ROOT / "policy_checkpoint.pt"
# Mark, colour and legend of a family of rows.
VANILLA, ROLLOUTS, KEYS = ("*", "#000000", "vanilla"), ("s", "#56B4E9", "rollouts only"), ("o", "#0072B2", "KDV")
RANDOM, SMALLER, AVIS = (
    ("v", "#E69F00", "random pruning"),
    ("^", "#CC79A7", "smaller picture"),
    ("D", "#D55E00", "AVIS"),
)
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


class Missing(Exception):
    """A figure's data is not there; the message says what."""


def _result(store: Store, name: str):
    if name not in store.names():
        raise Missing(f"{store.folder.name}/{name}.jsonl.gz is not there")
    return store.result(name)


def _report(store: Store, name: str) -> dict:
    if not (store.folder / f"{name}.json").exists():
        raise Missing(f"{store.folder.name}/{name}.json is not there")
    return store.report(name)


def _under(figure, text: str) -> None:
    """A line under a figure that says what was measured."""
    figure.text(0.01, -0.01, text, fontsize=6.5, color="#444444", ha="left", va="top")


def _about(results) -> str:
    config = results.config
    sources, weights = ", ".join(config["sources"]), config["weights_sha256"][:8]
    seeds = " and ".join(map(str, config["seeds"]))
    return f"{len(results.items)} items of {sources}, sampling seed {seeds}; model {config['model']} ({weights})"


# ------------------------------------------------------------------------------------------------------------- figures


def _family(row: Row) -> tuple[str, str, str]:
    if row.name == "AVIS":
        return AVIS
    if row.pruner != "kdv":
        return RANDOM if row.pruner == "random" else SMALLER
    if row.rho is None:
        return VANILLA if row.rollouts == 1 else ROLLOUTS
    return KEYS


def teaser(store: Store):
    """Accuracy against LLM FLOPs, of every row with a fixed K and of AVIS."""
    results = _result(store, "test")
    vanilla = results.outcome("vanilla")
    figure, axes = plt.subplots(figsize=(6.8, 4.4))
    labelled, named = set(), []
    for name, row in results.rows.items():
        if name != "AVIS" and (type(row.rollouts) is not int or row.tau is not None or row.rho == "policy"):
            continue
        one = results.outcome(name)
        share, cost = one.accuracy(), one.relative(vanilla)["llm"].value
        mark, colour, label = _family(row)
        is_named = label in (VANILLA[2], ROLLOUTS[2], KEYS[2], AVIS[2])
        axes.errorbar(
            cost,
            100 * share.value,
            yerr=[[100 * (share.value - share.low)], [100 * (share.high - share.value)]],
            fmt=mark,
            color=colour,
            markersize=11 if mark in "*D" else 6.5,
            markeredgecolor="black",
            markeredgewidth=0.6,
            elinewidth=0.7,
            ecolor="#aaaaaa",
            zorder=4 if name == "AVIS" else 3 if is_named else 2,
            label=None if label in labelled else label,
        )
        labelled.add(label)
        if is_named:
            short = name.replace("KDV ", "").replace("VRS ", "").replace("rho=", "ρ=")
            named.append((cost, 100 * share.value, "" if name == "AVIS" else short))  # the legend names the large mark
    for cost, share, short in named:
        others = [other for other in named if other[0] != cost]
        nearest = min(others, key=lambda other: abs(np.log(other[0] / cost)), default=(0, 0, ""))
        place = (7, -12) if nearest[1] > share else (7, 6)  # away from the mark beside it
        axes.annotate(short, (cost, share), place, textcoords="offset points", fontsize=7.5, zorder=5)
    axes.set_xscale("log")
    ticks = (0.3, 0.4, 0.5, 0.7, 1.0, 1.4, 2.0)
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.set_xlabel("FLOPs of the language model, relative to vanilla (logarithmic)")
    axes.set_ylabel("right answers, % (95% interval)")
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.set_title("The garden: accuracy against compute", loc="left", fontsize=10)
    _under(figure, _about(results))
    return figure


def vcs_vrs_tradeoff(store: Store):
    """Accuracy over the fraction pruned and K."""
    results = _result(store, "grid")
    rows = sorted((row.rho or 0, row) for row in results.rows.values() if row.name != "vanilla")
    most = min(row.rollouts for _, row in rows)
    values = np.array(
        [
            [100 * results.outcome_of(Row("cell", rho=row.rho, rollouts=k)).right.mean() for _, row in rows]
            for k in range(1, most + 1)
        ]
    )
    figure, axes = plt.subplots(figsize=(6.4, 4.4))
    image = axes.imshow(values, origin="lower", aspect="auto", cmap="cividis")
    middle = (values.min() + values.max()) / 2
    for (k, column), value in np.ndenumerate(values):
        axes.text(
            column,
            k,
            f"{value:.0f}",
            ha="center",
            va="center",
            fontsize=7.5,
            color="white" if value < middle else "black",
        )
    axes.set_xticks(range(len(rows)), [f"{rho:g}" for rho, _ in rows])
    axes.set_yticks(range(most), range(1, most + 1))
    axes.set_xlabel("ρ, fraction of visual tokens pruned (KDV)")
    axes.set_ylabel("K, rollouts")
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label="right answers, %")
    half = 100 * (results.outcome("vanilla").accuracy().high - results.outcome("vanilla").accuracy().low) / 2
    axes.set_title(f"The garden: seeing against thinking (each cell ± about {half:.0f})", loc="left", fontsize=10)
    _under(figure, _about(results))
    return figure


def rollout_distribution(store: Store):
    """Of each task the share of items that the policy gives each K."""
    results = _result(store, "test")
    if not results.config["policy"]:
        raise Missing("test.jsonl.gz was measured without a policy")
    tasks = sorted({item["task"] for item in results.items})
    chosen = {task: [i["policy"]["rollouts"] for i in results.items if i["task"] == task] for task in tasks}
    tasks.sort(key=lambda task: np.mean(chosen[task]))
    figure, axes = plt.subplots(figsize=(6.4, 0.27 * len(tasks) + 1.3))
    left = np.zeros(len(tasks))
    for k in CHOICES:
        share = np.array([100 * np.mean([one == k for one in chosen[task]]) for task in tasks])
        axes.barh(tasks, share, left=left, color=K_SHADES[k], edgecolor="#555555", linewidth=0.4, label=f"K = {k}")
        left += share
    for place, task in enumerate(tasks):
        axes.text(101, place, f"mean {np.mean(chosen[task]):.1f}", va="center", fontsize=7)
    axes.set_xlabel("share of items, %")
    axes.set_xlim(0, 100)
    axes.tick_params(axis="y", length=0)
    axes.legend(ncols=4, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.0))
    _under(figure, _about(results))
    return figure


def reliability(store: Store):
    """Predicted against measured solvability, and how many questions there are."""
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
        axes.errorbar(
            x + shift, y, yerr=[y - low, high - y], fmt=f"{mark}-", color=colour, markersize=5, linewidth=1, label=label
        )
        centres = np.array([(one["from"] + one["to"]) / 2 for one in bins])
        below.bar(
            centres + 5 * shift, [one["n"] for one in bins], width=0.03, color=colour, edgecolor="black", linewidth=0.4
        )
    axes.set_ylabel("share of right rollouts")
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8, loc="upper left")
    below.set_xlabel("predicted solvability p")
    below.set_ylabel("questions")
    below.set_xlim(0, 1)
    _under(figure, f"{report['evaluation'][judged]['n']} questions ({judged}); weights {report['weights_sha256'][:8]}")
    return figure


def binning(store: Store):
    """What more rollouts bring at each p, and the rule that was fitted."""
    report = _report(store, "policy-calibrate")
    judged, network = report["chosen_on"], report["networks"][report["default"]]
    gains, rule = network["gains"][judged], network["solutions"]["inverted U"]
    figure, (axes, below) = plt.subplots(2, 1, figsize=(5.2, 5.0), sharex=True, gridspec_kw={"height_ratios": [2, 1]})
    axes.axhline(0, color="#999999", linewidth=0.8)
    for (mark, colour, _), k in zip((KEYS, SMALLER, AVIS), CHOICES[1:], strict=True):
        shown = [(one["p"], one["gain"][str(k)]) for one in gains if one["gain"][str(k)]]
        x, y = np.array([p for p, _ in shown]), np.array([100 * gain["value"] for _, gain in shown])
        low, high = 100 * np.array([gain["ci95"] for _, gain in shown]).T
        axes.errorbar(
            x + 0.004 * (k - 5),
            y,
            yerr=[y - low, high - y],
            fmt=f"{mark}-",
            color=colour,
            markersize=5,
            linewidth=1,
            label=f"K = {k}",
        )
    axes.set_ylabel("vote minus greedy, points")
    axes.legend(fontsize=8, ncols=3)
    edges = [min(one["from"] for one in gains), *rule["edges"], max(one["to"] for one in gains)]
    below.stairs(rule["num_rollouts"], sorted(edges), fill=True, color="#56B4E9", edgecolor="black")
    below.set_yticks(CHOICES)
    below.set_ylabel("K")
    below.set_xlabel("predicted solvability p")
    _under(figure, f"{report['questions'][judged]} questions ({judged}); weights {report['weights_sha256'][:8]}")
    return figure


def architecture(store: Store):
    """The flow of a query through `policy.answer.answer`."""
    figure, axes = plt.subplots(figsize=(10.4, 3.4))
    axes.set_xlim(-0.5, 104)
    axes.set_ylim(0, 34)
    axes.axis("off")
    sees, thinks, plain = "#d6e6f4", "#fbe3d2", "#f2f2f2"

    def box(x: float, y: float, width: float, height: float, text: str, colour: str = plain) -> None:
        style = "round,pad=0,rounding_size=0.8"
        axes.add_patch(
            FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor="black", linewidth=0.9)
        )
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8, linespacing=1.35)

    def arrow(*points: tuple[float, float], line: str = "-") -> None:
        for start, end in zip(points[:-2], points[1:-1], strict=True):
            axes.plot(*zip(start, end, strict=True), color="black", linewidth=0.9, linestyle=line)
        head = {"arrowstyle": "-|>", "color": "black", "linewidth": 0.9, "linestyle": line, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", points[-1], points[-2], arrowprops=head)

    def note(x: float, y: float, text: str, side: str = "left") -> None:
        axes.text(x, y, text, fontsize=7, ha=side, va="center", color="#333333", linespacing=1.2)

    box(0, 18, 12, 8, "image\nor video")
    box(0, 4, 12, 8, "question")
    box(16, 18, 13, 8, "vision tower\n(once)", sees)
    box(34, 24, 17, 7, "KDV: keys of the\nlast block → scores", sees)
    box(34, 13, 17, 7, "keep by ρ,\nor by angle τ", sees)
    box(58, 4, 15, 8, "prefill\n(once, pruned)")
    box(58, 22, 15, 9, "policy:\nsolvability p → K", thinks)
    box(77, 4, 9, 8, "K rollouts,\none cache", thinks)
    box(90, 4, 9, 8, "vote until\ndecided", thinks)
    arrow((12, 22), (16, 22))
    arrow((29, 23.5), (31.5, 23.5), (31.5, 27.5), (34, 27.5))
    arrow((42.5, 24), (42.5, 20))
    arrow((29, 20.5), (31.5, 20.5), (31.5, 16.5), (34, 16.5))
    arrow((51, 16.5), (63.5, 16.5), (63.5, 12))
    arrow((12, 8), (58, 8))
    arrow((22.5, 26), (22.5, 32.7), (65.5, 32.7), (65.5, 31))
    arrow((69.5, 12), (69.5, 22), line="--")
    arrow((73, 26.5), (81.5, 26.5), (81.5, 12))
    arrow((73, 8), (77, 8))
    arrow((86, 8), (90, 8))
    arrow((99, 8), (102, 8))
    note(44, 33.6, "unpruned visual embeddings", "center")
    note(52, 18, "kept tokens")
    note(52, 15, "and positions")
    note(70.2, 17, "last hidden\nstate, question-\naware form")
    note(82.2, 20, "K in {1, 3, 5, 7}")
    note(102.4, 8, "answer")
    note(0, 0.8, "blue: how much to see; orange: how long to think")
    return figure


def kdv_qualitative(store: Store):
    """What adaptive pruning keeps of a sparse and of a cluttered picture, with the same threshold."""
    from avis.config import AvisConfig
    from avis.garden.render import render
    from avis.garden.tasks import item_for
    from avis.loading import load_model
    from avis.pipeline import answer
    from avis.session import VisionCache
    from avis.visualize import draw_kept
    from policy.policy_model import PolicyModel

    if not POLICY.exists():
        raise Missing(f"{POLICY.name}, which has the threshold, is not there")
    model, processor = load_model(ROOT / SHIPPED, "cpu")
    settings = AvisConfig(enable_kdv=True, kdv_threshold=PolicyModel(POLICY).tau, max_new_tokens=1)
    # Of dev's pictures that are not dark those with the fewest and the most animals; nobody picked them.
    items = [item for item in map(partial(item_for, "dev"), range(200)) if item.medium == "image" and item.answerable]
    scenes = sorted((item.scenes[0] for item in items), key=lambda scene: len(scene.animals))

    def first_bright(scenes) -> tuple:
        pictures = ((scene, render(scene)) for scene in scenes)
        return next(pair for pair in pictures if np.asarray(pair[1].convert("L")).mean() > 110)

    shown = []
    for name, (scene, picture) in (("sparse", first_bright(scenes)), ("cluttered", first_bright(reversed(scenes)))):
        content = [{"type": "image", "image": picture}, {"type": "text", "text": "How many animals are there?"}]
        memory = VisionCache()
        answer(model, processor, [{"role": "user", "content": content}], settings, vision_cache=memory)
        shown.append((f"{name}: {len(scene.animals)} animals", np.asarray(draw_kept(memory, processor))))
    heights = [picture.shape[0] / picture.shape[1] for _, picture in shown]
    figure, panels = plt.subplots(
        2, 1, figsize=(6.4, 6.4 * sum(heights) + 0.7), gridspec_kw={"height_ratios": heights, "hspace": 0.12}
    )
    figure.subplots_adjust(left=0, right=1, bottom=0, top=0.96)
    for axes, (title, picture) in zip(panels, shown, strict=True):
        axes.imshow(picture)
        axes.set_title(title, loc="left", fontsize=9)
        axes.axis("off")
    _under(
        figure,
        f"Split dev; τ = {settings.kdv_threshold:.3f} rad for both; left kept tokens, right scores (light = diverse)",
    )
    return figure


FIGURES: dict[str, Callable[[Store], plt.Figure]] = {
    one.__name__: one
    for one in (
        *(teaser, vcs_vrs_tradeoff, rollout_distribution, reliability, binning),
        *(architecture, kdv_qualitative),
    )
}


def draw(names: list[str], store: Store, out: Path) -> list[str]:
    """Draw figures as `out/NAME.png`; returns one line for each that cannot be drawn. Raises ValueError or OSError."""
    out.mkdir(parents=True, exist_ok=True)
    left_out = []
    for name in names:
        with plt.rc_context(STYLE), tempfile.TemporaryDirectory(dir=out) as folder:
            try:
                figure = FIGURES[name](store)
            except Missing as lacking:
                left_out.append(f"{name}: left out, {lacking}")
                continue
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"{name}: the results have not what it shows ({type(error).__name__}: {error})"
                ) from None
            # The same bytes from the same results and versions: no date, no program's name.
            part = Path(folder) / f"{name}.png"
            figure.savefig(part, bbox_inches="tight", metadata={"Software": None})
            plt.close(figure)
            part.replace(out / f"{name}.png")
    return left_out


def main(argv: list[str] | None = None) -> int:
    """The command line; bad input is told in one line, and gives 2."""
    parser = argparse.ArgumentParser(
        prog="python -m avis.evaluation.figures", description="Figures from committed results."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(FIGURES)}; default: all")
    parser.add_argument("--results", type=Path, default=ROOT / "evaluation" / "results", help="the results' folder")
    parser.add_argument("--out", type=Path, default=ROOT / "assets", help="the pictures' folder")
    args = parser.parse_args(argv)
    try:
        unknown = [name for name in args.names if name not in FIGURES]
        if unknown:
            raise ValueError(f"no figure {unknown[0]!r}; there are {', '.join(FIGURES)}")
        for line in draw(args.names or list(FIGURES), Store(args.results), args.out):
            print(line, file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
