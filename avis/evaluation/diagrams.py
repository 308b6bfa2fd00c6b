"""The two figures that are not charts: the flow of a query, and what adaptive pruning keeps of two garden images."""

from collections.abc import Iterable
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import BoxStyle, FancyBboxPatch
from PIL import Image

from avis.evaluation.tables.store import POLICY, ROOT, SHIPPED, Store
from avis.garden.scenes import Scene

POLICY_PATH = ROOT / POLICY


class MissingData(Exception):
    """The data of a figure is missing; the message names it."""


def write_caption(figure: plt.Figure, text: str) -> None:
    """Write a line under a figure that says what was measured."""
    figure.text(0.01, -0.01, text, fontsize=6.5, color="#444444", ha="left", va="top")


_SEEING, _THINKING, _PLAIN = "#d6e6f4", "#fbe3d2", "#f2f2f2"
# x, y, width, height, text and colour of each stage.
_BOXES = (
    (0, 18, 12, 8, "image\nor video", _PLAIN),
    (0, 4, 12, 8, "question", _PLAIN),
    (16, 18, 13, 8, "vision encoder\n(once)", _SEEING),
    (34, 24, 17, 7, "KDV: keys of the\nlast block → scores", _SEEING),
    (34, 13, 17, 7, "keep by ρ,\nor by angle τ", _SEEING),
    (58, 4, 15, 8, "prefill\n(once, pruned)", _PLAIN),
    (58, 22, 15, 9, "policy:\nsolvability p → K", _THINKING),
    (77, 4, 9, 8, "K rollouts,\none cache", _THINKING),
    (90, 4, 9, 8, "vote until\ndecided", _THINKING),
)
# Corners of each arrow, and its line.
_ARROWS = (
    (((12, 22), (16, 22)), "-"),
    (((29, 23.5), (31.5, 23.5), (31.5, 27.5), (34, 27.5)), "-"),
    (((42.5, 24), (42.5, 20)), "-"),
    (((29, 20.5), (31.5, 20.5), (31.5, 16.5), (34, 16.5)), "-"),
    (((51, 16.5), (63.5, 16.5), (63.5, 12)), "-"),
    (((12, 8), (58, 8)), "-"),
    (((22.5, 26), (22.5, 32.7), (65.5, 32.7), (65.5, 31)), "-"),
    (((69.5, 12), (69.5, 22)), "--"),
    (((73, 26.5), (81.5, 26.5), (81.5, 12)), "-"),
    (((73, 8), (77, 8)), "-"),
    (((86, 8), (90, 8)), "-"),
    (((99, 8), (102, 8)), "-"),
)
# x, y, text and alignment of each note.
_NOTES = (
    (44, 33.6, "unpruned visual embeddings", "center"),
    (52, 18, "kept tokens", "left"),
    (52, 15, "and positions", "left"),
    (70.2, 17, "last hidden\nstate, question-\naware form", "left"),
    (82.2, 20, "K in {1, 3, 5, 7}", "left"),
    (102.4, 8, "answer", "left"),
    (0, 0.8, "blue: how much to see; orange: how long to think", "left"),
)


def draw_architecture(store: Store) -> plt.Figure:
    """Draw the flow of a query through `avis.pipeline.answer`."""
    figure, axes = plt.subplots(figsize=(10.4, 3.4))
    axes.set_xlim(-0.5, 104)
    axes.set_ylim(0, 34)
    axes.axis("off")
    for x, y, width, height, text, colour in _BOXES:
        style = BoxStyle("round", pad=0, rounding_size=0.8)
        axes.add_patch(
            FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor="black", linewidth=0.9)
        )
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8, linespacing=1.35)
    for points, line in _ARROWS:
        for start, end in pairwise(points[:-1]):
            axes.plot([start[0], end[0]], [start[1], end[1]], color="black", linewidth=0.9, linestyle=line)
        head = {"arrowstyle": "-|>", "color": "black", "linewidth": 0.9, "linestyle": line, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", points[-1], points[-2], arrowprops=head)
    for left, bottom, text, side in _NOTES:
        axes.text(left, bottom, text, fontsize=7, ha=side, va="center", color="#333333", linespacing=1.2)
    return figure


def draw_kdv_qualitative(store: Store) -> plt.Figure:
    """Draw what adaptive pruning keeps of a sparse and of a cluttered image, with the same threshold."""
    from avis.config import AvisConfig
    from avis.garden.tasks import item_for
    from avis.loading import load_model
    from avis.pipeline import answer
    from avis.session import VisionCache
    from avis.visualize import draw_kept
    from policy.policy_model import PolicyModel

    if not POLICY_PATH.exists():
        raise MissingData(f"{POLICY_PATH.name}, which has the threshold, is missing")
    model, processor = load_model(ROOT / SHIPPED, "cpu")
    config = AvisConfig(enable_kdv=True, kdv_threshold=PolicyModel(POLICY_PATH).tau, max_new_tokens=1)
    # Images of dev that are not dark, the ones with the fewest and the most animals; nobody picked them.
    items = [item_for("dev", index) for index in range(200)]
    scenes = [item.scenes[0] for item in items if item.medium == "image" and item.answerable]
    scenes.sort(key=lambda scene: len(scene.animals))
    panels = []
    for name, ordered in (("sparse", scenes), ("cluttered", reversed(scenes))):
        scene, image = _first_bright(ordered)
        content = [{"type": "image", "image": image}, {"type": "text", "text": "How many animals are there?"}]
        vision_cache = VisionCache()
        answer(model, processor, [{"role": "user", "content": content}], config, vision_cache=vision_cache)
        panels.append((f"{name}: {len(scene.animals)} animals", np.asarray(draw_kept(vision_cache, processor))))
    heights = [pixels.shape[0] / pixels.shape[1] for _, pixels in panels]
    layout = {"height_ratios": heights, "hspace": 0.12}
    figure, rows = plt.subplots(2, 1, figsize=(6.4, 6.4 * sum(heights) + 0.7), gridspec_kw=layout)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=0.96)
    for axes, (title, pixels) in zip(rows, panels, strict=True):
        axes.imshow(pixels)
        axes.set_title(title, loc="left", fontsize=9)
        axes.axis("off")
    explained = "left kept tokens, right scores (light = diverse)"
    write_caption(figure, f"Split dev; τ = {config.kdv_threshold:.3f} rad for both; {explained}")
    return figure


def _first_bright(scenes: Iterable[Scene]) -> tuple[Scene, Image.Image]:
    """Return the first scene that is not dark, and its image."""
    from avis.garden.render import render

    for scene in scenes:
        image = render(scene)
        if np.asarray(image.convert("L")).mean() > 110:
            return scene, image
    raise MissingData("all scenes are dark")
