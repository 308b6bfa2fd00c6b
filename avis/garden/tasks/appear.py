"""The task "appear": which animal of a video comes first, second or last."""

from dataclasses import replace

from avis.garden.scenes import KINDS, WEARS
from avis.garden.tasks.base import Task
from avis.garden.tasks.videos import as_video, place_for_video


class Appear(Task):
    """Order of appearance: three or four animals of different kinds walk in one after another."""

    name = "appear"
    medium = "video"
    values = KINDS

    def draw_subject(self, rng):
        return (str(rng.choice(("first", "second", "last"))),)

    def compose(self, rng, level, width, height, about, answer, extras):
        count = 3 if level.crowd < 3 else 4
        rest = [str(kind) for kind in rng.permutation([kind for kind in KINDS if kind != answer])][: count - 1]
        place = {"first": 0, "second": 1, "last": count - 1}[about[0]]
        order = rest[:place] + [answer] + rest[place:]
        pairs = [(kind, str(rng.choice(WEARS))) for kind in order]
        scene = as_video(place_for_video(rng, level, width, height, pairs), float(rng.integers(5, 9)))
        gap = (scene.seconds - 1.0) / count * (1.0, 1.0, 0.9, 0.7, 0.45)[level.number - 1]
        animals = []
        for animal in scene.animals:
            start = 0.2 + gap * order.index(animal.kind)
            outside = -0.5 * animal.size if animal.x < width / 2 else width + 0.5 * animal.size
            track = ((start, outside, animal.y), (start + min(1.5, gap + 0.5), animal.x, animal.y))
            animals.append(replace(animal, track=track))
        return (replace(scene, animals=tuple(animals)),)

    def _order(self, scene):
        return [animal.kind for animal in sorted(scene.animals, key=lambda a: a.track[0][0])]

    def solve(self, scenes, about):
        scene = scenes[0]
        if not scene.seconds or len(scene.animals) < 3 or any(len(a.track) != 2 for a in scene.animals):
            return None
        ends = [[self._outside(scene, x) for _, x, _ in animal.track] for animal in scene.animals]
        if any(end != [True, False] for end in ends):
            return None
        return self._order(scene)[{"first": 0, "second": 1, "last": -1}[about[0]]]

    def _outside(self, scene, x):
        return x < 0 or x > scene.width

    def wordings(self, about):
        return [
            f"Which animal comes {about[0]}?",
            f"Which kind of animal appears {about[0]}?",
            f"Name the animal that walks in {about[0]}.",
        ]

    def traces(self, scenes, about):
        order = self._order(scenes[0])
        steps = [f"{n} {kind}" for n, kind in enumerate(order, start=1)]
        last = {"first": 1, "second": 2, "last": len(order)}[about[0]]
        return [", ".join(steps), ", ".join(steps[:last])]
