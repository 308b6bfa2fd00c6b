"""The task "compare": how many more there are of one kind than of another."""

from avis.garden.scenes import WEARS
from avis.garden.tasks.base import Task, draw_count, draw_two_kinds, kinds_except, pluralize, reading_orders
from avis.garden.tasks.extras import place_with_extras


class Compare(Task):
    """Comparison of two counts: by how many the first exceeds the second."""

    name = "compare"
    values = ("0", "1", "2", "3")

    def draw_subject(self, rng):
        return draw_two_kinds(rng)

    def compose(self, rng, level, width, height, about, answer, extras):
        total = draw_count(rng, level, max(2, int(answer)))
        fewer = int(rng.integers(0, (total - int(answer)) // 2 + 1))
        kinds = [about[0]] * (fewer + int(answer)) + [about[1]] * fewer
        kinds += [str(rng.choice(kinds_except(about))) for _ in range(total - len(kinds))]
        pairs = [(kinds[i], str(rng.choice(WEARS))) for i in rng.permutation(total)]
        return (place_with_extras(rng, level, width, height, pairs, extras),)

    def solve(self, scenes, about):
        first, second = (sum(animal.kind == kind for animal in scenes[0].animals) for kind in about)
        return str(first - second) if 0 <= first - second <= 3 else None

    def wordings(self, about):
        first, second = map(pluralize, about)
        return [
            f"How many more {first} than {second} are there?",
            f"By how many do the {first} outnumber the {second}?",
            f"Count {first} and {second}: how many more {first} are there?",
        ]

    def traces(self, scenes, about):
        found = []
        for word, animals in reading_orders(scenes[0]):
            counts, steps = [0, 0], []
            for number, animal in enumerate(animals, start=1):
                counts = [n + (animal.kind == kind) for n, kind in zip(counts, about, strict=True)]
                steps.append(f"{number} {animal.kind} {counts[0]} {counts[1]}")
            found.append(f"{word}: {', '.join(steps)}")
        return found
