"""Draws the bundled example picture and clip: `python -m avis.garden.example`."""

import argparse
from dataclasses import replace
from pathlib import Path

from avis.garden.make import write_clip
from avis.garden.render import render
from avis.garden.scenes import LEVELS, Scene, place, rng_for
from avis.garden.tasks.clips import clip_of, staged
from avis.garden.tasks.hops import hopping

PICTURE = (
    *(("rabbit", "glasses"), ("cat", "hat"), ("rabbit", "glasses")),
    *(("bear", "scarf"), ("duck", "nothing"), ("rabbit", "hat")),
)
CLIP = (("rabbit", "glasses"), ("cat", "hat"), ("rabbit", "scarf"), ("bear", "glasses"))
HOPS = (2, 0, 1, 3)


def example_scene(candidate: int = 0) -> Scene:
    """The scene of `example.jpg`.

    Not picked: the first candidate, about which the bundled model answers "How many wooden rabbits are wearing
    glasses?" rightly in every mode, with at least four of five sampling seeds where it samples. How it does on scenes
    at large is what `avis.evaluation.run` measures.
    """
    return place(rng_for("train", 77, candidate), LEVELS[0], 392, 504, list(PICTURE))


def clip_scene(candidate: int = 0) -> Scene:
    """The scene of `example.mp4`: seven seconds in which three of four animals hop.

    Not picked: the first candidate, about which the model answers the picture's question rightly (one), by the same
    measure.
    """
    rng = rng_for("train", 78, candidate)
    scene = clip_of(staged(rng, LEVELS[0], 252, 224, list(CLIP)), 7.0)
    times = {pair: hops for pair, hops in zip(CLIP, HOPS, strict=True)}
    animals = [hopping(rng, LEVELS[0], scene, a, times[(a.kind, a.wears)]) for a in scene.animals]
    return replace(scene, animals=tuple(animals))


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw example.jpg and example.mp4.")
    parser.add_argument("--out", type=Path, default=Path("."))
    out = parser.parse_args().out
    render(example_scene()).save(out / "example.jpg", quality=92)
    write_clip(clip_scene(), out / "example.mp4")


if __name__ == "__main__":
    main()
