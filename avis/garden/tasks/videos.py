"""What videos have in common: a scene with a length, smaller animals than images have, and no tags or sign."""

from dataclasses import replace

import numpy as np

from avis.garden.placement import place
from avis.garden.scenes import Level, Scene

SPAN = 0.72  # frames are about half as wide as images


def place_for_video(
    rng: np.random.Generator, level: Level, width: int, height: int, pairs: list[tuple[str, str]]
) -> Scene:
    """Place animals in a scene for a video, with nothing before them: motion would show behind it anyway."""
    scene = place(rng, level, width, height, pairs, span=SPAN)
    return replace(scene, props=tuple(prop for prop in scene.props if not prop.front))


def as_video(scene: Scene, seconds: float) -> Scene:
    """Return the scene as a video of this many seconds, in which everybody stands still."""
    return replace(scene, seconds=float(seconds))
