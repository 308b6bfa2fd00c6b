"""The task "differ": which animal wears something else in the second of two images."""

from dataclasses import replace

from avis.garden.placement import cast
from avis.garden.scenes import KINDS, WEARS
from avis.garden.tasks.base import Task, draw_count
from avis.garden.tasks.extras import place_with_extras


class Differ(Task):
    """Difference between two images of one scene."""

    name = "differ"
    medium = "images"
    values = KINDS

    def compose(self, rng, level, width, height, about, answer, extras):
        pairs = cast(rng, draw_count(rng, level))
        pairs[0] = (answer, pairs[0][1])
        order = rng.permutation(len(pairs))
        scene = place_with_extras(rng, level, width, height, [pairs[i] for i in order], extras)
        kin = [animal for animal in scene.animals if animal.kind == answer]
        chosen = kin[int(rng.integers(len(kin)))]
        other = str(rng.choice([wears for wears in WEARS if wears != chosen.wears]))
        animals = tuple(replace(a, wears=other) if a is chosen else a for a in scene.animals)
        # The second image has light and noise of its own, as one taken a moment later.
        light = scene.light * float(rng.uniform(0.93, 1.07))
        later = replace(scene, animals=animals, seed=int(rng.integers(2**31)), light=light)
        return scene, later

    def _pairs(self, scenes):
        return [(a, b) for a, b in zip(scenes[0].from_left(), scenes[1].from_left(), strict=True)]

    def solve(self, scenes, about):
        if len(scenes) != 2 or len(scenes[0].animals) != len(scenes[1].animals):
            return None
        pairs = self._pairs(scenes)
        same = all((a.kind, a.x, a.y) == (b.kind, b.x, b.y) for a, b in pairs)
        changed = [a.kind for a, b in pairs if a.wears != b.wears]
        return changed[0] if same and len(changed) == 1 else None

    def wordings(self, about):
        return [
            "Which animal wears something else in the second picture?",
            "What differs between the pictures? Name the animal.",
            "One animal is not dressed the same in both pictures. Which one?",
        ]

    def traces(self, scenes, about):
        found = []
        for word, first, second in (
            ("left", scenes[0].from_left(), scenes[1].from_left()),
            ("top", scenes[0].from_top(), scenes[1].from_top()),
        ):
            steps = []
            for number, (a, b) in enumerate(zip(first, second, strict=True), start=1):
                steps.append(f"{number} {a.kind} {a.wears} {b.wears}")
                if a.wears != b.wears:
                    break
            found.append(f"{word}: {', '.join(steps)}")
        return found
