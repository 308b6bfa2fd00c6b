"""The task "passed": how many animals pass by in a video."""

from dataclasses import replace

import numpy as np

from avis.garden.placement import cast
from avis.garden.tasks.base import Task
from avis.garden.tasks.videos import as_video, place_for_video


class Passed(Task):
    """Counting the animals that cross the scene, one after another and, at later levels, at once."""

    name = "passed"
    medium = "video"
    values = ("1", "2", "3", "4", "5")

    def compose(self, rng, level, width, height, about, answer, extras):
        scene = as_video(place_for_video(rng, level, width, height, cast(rng, int(answer))), float(rng.integers(7, 9)))
        crossing = (2.4, 2.4, 2.2, 1.8, 1.4)[level.number - 1]
        free = scene.seconds - 0.4 - crossing
        # Evenly spread at first, in a crowd later.
        spread = np.linspace(0, free, int(answer)) if int(answer) > 1 else rng.uniform(0, free, size=1)
        loose = (0.05, 0.1, 0.25, 0.5, 0.8)[level.number - 1]
        starts = np.sort((1 - loose) * spread + loose * rng.uniform(0, free, size=int(answer)))
        animals = []
        for start, animal in zip(starts, (scene.animals[i] for i in rng.permutation(len(scene.animals))), strict=True):
            ends = [-0.45 * animal.size, width + 0.45 * animal.size][:: 1 if rng.random() < 0.5 else -1]
            begin = 0.2 + float(start)
            track = ((begin, ends[0], animal.y), (begin + crossing, ends[1], animal.y))
            animals.append(replace(animal, track=track, x=ends[0], flip=ends[0] > 0))
        return (replace(scene, animals=tuple(animals)),)

    def solve(self, scenes, about):
        scene = scenes[0]
        crossing = scene.seconds and all(
            len(a.track) == 2 and {a.track[0][1] < 0, a.track[1][1] < 0} == {True, False} for a in scene.animals
        )
        whole = crossing and all(max(a.track[0][1], a.track[1][1]) > scene.width for a in scene.animals)
        return str(len(scene.animals)) if whole else None

    def wordings(self, about):
        return [
            "How many animals pass by?",
            "How many different animals walk through the picture?",
            "Count the animals that cross the picture.",
        ]

    def traces(self, scenes, about):
        order = sorted(scenes[0].animals, key=lambda animal: animal.track[0][0])
        return [", ".join(f"{n} {animal.kind}" for n, animal in enumerate(order, start=1))]
