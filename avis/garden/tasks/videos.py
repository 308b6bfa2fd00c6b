"""What videos have in common: a scene with a length, smaller animals than images have, and no tags or sign."""

from dataclasses import replace

import numpy as np

from avis.garden.placement import place
from avis.garden.scenes import Animal, Level, Scene, video_times

SPAN = 0.72  # frames are about half as wide as images
SECOND_SPAN = 0.95  # the second garden's are larger, and tags have to be read on them


def place_for_video(
    rng: np.random.Generator, level: Level, width: int, height: int, pairs: list[tuple[str, str]]
) -> Scene:
    """Place animals in a scene for a video, with nothing before them: motion would show behind it anyway."""
    scene = place(rng, level, width, height, pairs, span=SECOND_SPAN if level.see else SPAN)
    return replace(scene, props=tuple(prop for prop in scene.props if not prop.front))


def as_video(scene: Scene, seconds: float) -> Scene:
    """Return the scene as a video of this many seconds, in which everybody stands still."""
    return replace(scene, seconds=float(seconds))


def step_times(scene: Scene) -> list[tuple[float, float]]:
    """Return the seconds of the two frames that each time step of a video shows."""
    times = video_times(scene.seconds).tolist()
    return list(zip(times[::2], times[1::2], strict=True))


def seen_places(scene: Scene, animal: Animal) -> np.ndarray:
    """Return where an animal on the ground is in the two frames of each time step, (steps, 2, 2): x and y."""
    seconds, xs, ys = zip(*(animal.track or ((0.0, animal.x, animal.y),)), strict=True)
    times = np.array(step_times(scene))
    return np.stack([np.interp(times, seconds, xs), np.interp(times, seconds, ys)], axis=-1)
