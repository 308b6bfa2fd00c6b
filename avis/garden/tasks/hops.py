"""The task "hops": how many times an animal of a video hops."""

from dataclasses import replace

import numpy as np

from avis.garden.placement import cast
from avis.garden.scenes import KINDS, Animal, Level, Scene, video_times
from avis.garden.tasks.base import Task, find_only, kinds_except
from avis.garden.tasks.videos import as_video, place_for_video


def with_hops(rng: np.random.Generator, level: Level, scene: Scene, animal: Animal, hops: int) -> Animal:
    """Return the animal with that many hops in the course of the video, and room above it to hop into."""
    airtime = (1.3, 1.2, 1.1, 0.9, 0.7)[level.number - 1]
    free = scene.seconds - 0.6 - 1.3 * airtime * hops
    gaps = np.sort(rng.uniform(0, max(0.0, free), size=hops))
    starts = tuple(0.3 + float(gap) + 1.3 * airtime * n for n, gap in enumerate(gaps))
    y = max(animal.y, 0.98 * animal.size)
    return replace(animal, hops=starts, airtime=airtime, y=min(y, scene.height - 0.4 * animal.size))


class Hops(Task):
    """Counting hops; at later levels they are quicker, and other animals hop too."""

    name = "hops"
    medium = "video"
    values = ("1", "2", "3", "4")

    def draw_subject(self, rng):
        return (str(rng.choice(KINDS)),)

    def compose(self, rng, level, width, height, about, answer, extras):
        count = (1, 2, 2, 3, 4)[level.crowd - 1]
        pairs = [(str(rng.choice(kinds_except(about))), wears) for _, wears in cast(rng, count)]
        pairs[0] = (about[0], pairs[0][1])
        scene = as_video(place_for_video(rng, level, width, height, pairs), float(rng.integers(7, 9)))
        animals = []
        for animal in scene.animals:
            hops = int(answer) if animal.kind == about[0] else int(rng.integers(0, 5)) * (level.crowd > 2)
            animals.append(with_hops(rng, level, scene, animal, hops))
        return (replace(scene, animals=tuple(animals)),)

    def solve(self, scenes, about):
        animal = find_only(scenes[0], about[0])
        if not scenes[0].seconds or animal is None or not animal.hops:
            return None
        return str(len(animal.hops))

    def wordings(self, about):
        kind = about[0]
        return [
            f"How many times does the {kind} hop?",
            f"Count the hops of the {kind}.",
            f"How often does the {kind} jump?",
        ]

    def traces(self, scenes, about):
        scene = scenes[0]
        animal = find_only(scene, about[0])
        assert animal is not None, "the question does not fit the scene"
        steps = []
        times = video_times(scene.seconds)
        for number, (first, last) in enumerate(zip(times[::2], times[1::2], strict=True), start=1):
            begun = sum(start < last for start in animal.hops)  # by the end of this step
            lift = animal.at(float(last)).lift - animal.at(float(first)).lift
            word = "still" if abs(lift) <= 0.02 * animal.size else ("up" if lift > 0 else "down")
            steps.append(f"{number} {word} {begun}")
        return [", ".join(steps)]
