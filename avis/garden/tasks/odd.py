"""The task "odd": which animal is unlike all others."""

from collections import Counter

from avis.garden.scenes import KINDS, WEARS
from avis.garden.tasks.base import Task, draw_count, kinds_except, reading_orders
from avis.garden.tasks.extras import place_with_extras


class Odd(Task):
    """Odd one out: the kind of the one animal that differs from the rest in kind, or in what it wears."""

    name = "odd"
    values = KINDS

    def draw_subject(self, rng):
        return (str(rng.choice(("kind", "wears"))),)

    def compose(self, rng, level, width, height, about, answer, extras):
        total = draw_count(rng, level, 3)
        if about[0] == "kind":
            rest = str(rng.choice(kinds_except((answer,))))
            pairs = [(rest, str(rng.choice(WEARS))) for _ in range(total - 1)]
            pairs.append((answer, str(rng.choice(WEARS))))
        else:
            rest, own = (str(w) for w in rng.choice(WEARS, size=2, replace=False))
            pairs = [(str(rng.choice(KINDS)), rest) for _ in range(total - 1)] + [(answer, own)]
        pairs = [pairs[i] for i in rng.permutation(total)]
        return (place_with_extras(rng, level, width, height, pairs, extras),)

    def solve(self, scenes, about):
        animals = scenes[0].animals
        seen = Counter(getattr(animal, about[0]) for animal in animals)
        if len(animals) < 3 or sorted(seen.values()) != [1, len(animals) - 1]:
            return None
        return next(animal.kind for animal in animals if seen[getattr(animal, about[0])] == 1)

    def wordings(self, about):
        if about[0] == "kind":
            return [
                "All animals but one are of the same kind. Which kind is the other?",
                "Which kind of animal is the odd one out?",
                "One animal is of another kind than the rest. What is it?",
            ]
        return [
            "All animals but one wear the same. Which animal is the other?",
            "Going by what they wear, which animal is the odd one out?",
            "One animal does not wear the same as the rest. What is it?",
        ]

    def traces(self, scenes, about):
        def step(number, animal):
            return f"{number} {animal.kind}" if about[0] == "kind" else f"{number} {animal.kind} {animal.wears}"

        return [
            f"{word}: {', '.join(step(number, animal) for number, animal in enumerate(animals, start=1))}"
            for word, animals in reading_orders(scenes[0])
        ]
