"""The task "more": which of two images has more animals of a kind."""

from avis.garden.scenes import KINDS
from avis.garden.tasks.base import Task, draw_count, draw_pairs, pluralize
from avis.garden.tasks.extras import place_with_extras


class More(Task):
    """Comparison of two images."""

    name = "more"
    medium = "images"
    values = ("first", "second")

    def draw_subject(self, rng):
        return (str(rng.choice(KINDS)),)

    def compose(self, rng, level, width, height, about, answer, extras):
        fewer = int(rng.integers(0, 3))
        counts = [fewer, fewer + int(rng.integers(1, 3))]
        if answer == "first":
            counts.reverse()
        scenes = []
        for count in counts:
            pairs = draw_pairs(rng, about[0], None, count, draw_count(rng, level, count))
            scenes.append(place_with_extras(rng, level, width, height, pairs, extras))
        return tuple(scenes)

    def solve(self, scenes, about):
        if len(scenes) != 2:
            return None
        first, second = (sum(animal.kind == about[0] for animal in scene.animals) for scene in scenes)
        return None if first == second else ("first" if first > second else "second")

    def wordings(self, about):
        kinds = pluralize(about[0])
        return [
            f"Which picture has more {kinds}, the first or the second?",
            f"Are there more {kinds} in the first or in the second picture?",
            f"Count the {kinds} of each picture. Which has more?",
        ]

    def traces(self, scenes, about):
        def listing(animals):
            seen, steps = 0, []
            for number, animal in enumerate(animals, start=1):
                seen += animal.kind == about[0]
                steps.append(f"{number} {animal.kind} {seen}")
            return ", ".join(steps)

        return [
            f"left: first {listing(scenes[0].from_left())}, second {listing(scenes[1].from_left())}",
            f"top: first {listing(scenes[0].from_top())}, second {listing(scenes[1].from_top())}",
        ]
