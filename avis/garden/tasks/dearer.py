"""The task "dearer": by how much one kind of animal, or one half of the image, costs more in total than another."""

from dataclasses import replace

import numpy as np

from avis.garden.placement import cast
from avis.garden.scenes import MAX_ANIMALS, MAX_PRICE, WEARS
from avis.garden.tasks.base import draw_two_kinds, kinds_except, pluralize
from avis.garden.tasks.extras import place_with_extras
from avis.garden.tasks.steps import (
    OrderedTask,
    count_ways,
    draw_by_weight,
    draw_num_terms,
    draw_terms,
    near_totals,
    ranked,
)

SIDES = ("left", "right")
CLEAR = 0.03  # no animal's centre is closer to the image's middle, as a share of its width


class Dearer(OrderedTask):
    """Adding up the tags of two groups at once, and comparing the totals.

    A subject is (two kinds, None), or (None, two sides); the first is the dearer one.
    """

    name = "dearer"
    values = tuple(map(str, range(1, 33)))

    def draw_subject(self, rng):
        if rng.random() < 0.5:
            return draw_two_kinds(rng), None
        return None, SIDES[:: 1 if rng.random() < 0.5 else -1]

    def answers(self, level, about):
        return [str(more) for more in range(1, 4 * level.terms[0] + 1)]

    def compose(self, rng, level, width, height, about, answer, extras):
        place = self._place_kinds if about[0] else self._place_sides
        return (place(rng, level, width, height, about[0] or about[1], int(answer), extras),)

    def _place_kinds(self, rng, level, width, height, kinds, more, extras):
        """Return a scene in which the first kind is dearer by `more`; others may be there."""
        count = draw_num_terms(rng, level)
        sizes = [(first, count - first) for first in range(1, count)]
        first, second = draw_by_weight(rng, sizes, [sum(_weigh_totals(*pair, more).values()) for pair in sizes])
        drawn = _draw_tags(rng, first, second, more)
        tags = [(kind, tag) for kind, own in zip(kinds, drawn, strict=True) for tag in own]
        for _ in range(min(int(rng.integers(0, 3)), MAX_ANIMALS - count)):
            tags.append((str(rng.choice(kinds_except(kinds))), int(rng.integers(1, MAX_PRICE + 1))))
        tags = [tags[i] for i in rng.permutation(len(tags))]
        pairs = [(kind, str(rng.choice(WEARS))) for kind, _ in tags]
        return place_with_extras(rng, level, width, height, pairs, extras, [tag for _, tag in tags])

    def _place_sides(self, rng, level, width, height, sides, more, extras):
        """Return a scene in which the first half is dearer by `more`."""
        pairs = cast(rng, draw_num_terms(rng, level))
        while True:
            scene = place_with_extras(rng, level, width, height, pairs, extras, [1] * len(pairs))
            first, second = _halves(scene, sides)
            if first and second and _weigh_totals(len(first), len(second), more):
                break
        tags = _draw_tags(rng, len(first), len(second), more)
        prices = dict(zip([rank for rank, _ in first + second], tags[0] + tags[1], strict=True))
        return replace(scene, animals=tuple(replace(animal, price=prices[rank]) for rank, animal in ranked(scene)))

    def _groups(self, scene, about):
        """Return the two groups of animals; empty ones where the question does not fit."""
        if not all(animal.price for animal in scene.animals):
            return [], []
        kinds, sides = about
        return _halves(scene, sides) if sides else [[one for one in ranked(scene) if one[1].kind == k] for k in kinds]

    def solve(self, scenes, about):
        first, second = self._groups(scenes[0], about)
        more = str(sum(animal.price for _, animal in first) - sum(animal.price for _, animal in second))
        return more if first and second and more in self.values else None

    def wordings(self, about):
        kinds, sides = about
        one, other = (f"the {pluralize(kind)}" for kind in kinds) if kinds else (f"the {side} half" for side in sides)
        return [
            f"How much more {'do' if kinds else 'does'} {one} cost than {other}?",
            f"Add up the tags: by how much {'are' if kinds else 'is'} {one} dearer than {other}?",
            f"What is the total of {one} minus the total of {other}?",
        ]

    def near_answers(self, scenes, about):
        first, second = ([animal.price for _, animal in group] for group in self._groups(scenes[0], about))
        return [str(more) for more in near_totals(sum(first) - sum(second), first + second)]

    def steps(self, scenes, about):
        first, second = self._groups(scenes[0], about)
        return first + second

    def write(self, scenes, about, order):
        _, second = self._groups(scenes[0], about)
        totals, found = [0, 0], []
        for rank, animal in order:
            totals[(rank, animal) in second] += animal.price
            found.append(f"{rank} {animal.price} {totals[0]} {totals[1]}")
        return ", ".join(found)


def _halves(scene, sides):
    """Return the animals left and right of the middle, in the order of `sides`; none where one stands in the middle."""
    if any(abs(animal.x - scene.width / 2) < CLEAR * scene.width for animal in scene.animals):
        return [], []
    return [[one for one in ranked(scene) if (one[1].x < scene.width / 2) == (side == "left")] for side in sides]


def _weigh_totals(first: int, second: int, more: int) -> dict[int, int]:
    """Return the totals of a second group of tags below a first one's by `more`, each with the ways to draw both."""
    totals = range(max(second, first - more), min(MAX_PRICE * second, MAX_PRICE * first - more) + 1)
    return {total: count_ways(first, total + more) * count_ways(second, total) for total in totals}


def _draw_tags(rng: np.random.Generator, first: int, second: int, more: int) -> list[list[int]]:
    """Draw the tags of two groups of these sizes, the first dearer by `more`, each way to do so evenly."""
    ways = _weigh_totals(first, second, more)
    total = draw_by_weight(rng, list(ways), list(ways.values()))
    return [draw_terms(rng, first, total + more), draw_terms(rng, second, total)]
