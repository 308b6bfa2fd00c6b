"""What clips have in common: a scene with a length, smaller animals than pictures have, and no tags or sign."""

from dataclasses import replace

import numpy as np

from avis.garden.scenes import Level, Scene, place

SPAN = 0.72  # frames are about half as wide as pictures


def staged(rng: np.random.Generator, level: Level, width: int, height: int, pairs: list[tuple[str, str]]) -> Scene:
    """A scene for a clip. Nothing stands before its animals: what moves would be seen anyway."""
    scene = place(rng, level, width, height, pairs, span=SPAN)
    return replace(scene, props=tuple(prop for prop in scene.props if not prop.front))


def clip_of(scene: Scene, seconds: float) -> Scene:
    """The scene as a clip of this many seconds, everybody standing still."""
    return replace(scene, seconds=float(seconds))
