"""The task "relation": where one animal stands, seen from another."""

from dataclasses import replace

from avis.garden.placement import cast
from avis.garden.scenes import Animal, token_at
from avis.garden.tasks.base import Task, draw_count, draw_two_kinds, find_only, kinds_except
from avis.garden.tasks.extras import place_with_extras


def relation_of(one: Animal, other: Animal) -> str | None:
    """Return on which side of `other` the animal `one` stands; None when it is nearly diagonal."""
    dx, dy = one.x - other.x, one.y - other.y
    if abs(dx) >= 1.8 * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) >= 1.8 * abs(dx):
        return "above" if dy < 0 else "below"
    return None


class Relation(Task):
    """Spatial relation between the only two animals of their kinds."""

    name = "relation"
    values = ("left", "right", "above", "below")

    def draw_subject(self, rng):
        return draw_two_kinds(rng)

    def compose(self, rng, level, width, height, about, answer, extras):
        while True:
            others = [(str(rng.choice(kinds_except(about))), wears) for _, wears in cast(rng, draw_count(rng, level))]
            scene = place_with_extras(rng, level, width, height, others, extras)
            pairs = [(a, b) for a in scene.animals for b in scene.animals if a is not b]
            fitting = [(a, b) for a, b in pairs if relation_of(a, b) == answer]
            if fitting:
                one, other = fitting[int(rng.integers(len(fitting)))]
                named = {id(one): about[0], id(other): about[1]}
                animals = tuple(replace(a, kind=named.get(id(a), a.kind)) for a in scene.animals)
                return (replace(scene, animals=animals),)

    def solve(self, scenes, about):
        one, other = (find_only(scenes[0], kind) for kind in about)
        return relation_of(one, other) if one and other else None

    def wordings(self, about):
        first, second = about
        return [
            f"Where is the {first}, seen from the {second}?",
            f"On which side of the {second} is the {first}?",
            f"Is the {first} left, right, above or below the {second}?",
        ]

    def traces(self, scenes, about):
        steps = []
        for kind in about:
            animal = find_only(scenes[0], kind)
            steps.append(f"{kind} {scenes[0].from_left().index(animal) + 1} {scenes[0].from_top().index(animal) + 1}")
        return [", ".join(steps), ", ".join(reversed(steps))]


class RelationByPlace(Relation):
    """The same in the second garden, reasoned about by columns and rows of tokens, which say how far apart two are."""

    def traces(self, scenes, about):
        steps, places = [], []
        for kind in about:
            animal = find_only(scenes[0], kind)
            assert animal is not None, "the question does not fit the scene"
            row, column = token_at(scenes[0], animal.x, animal.y)
            steps.append(f"{kind} {column + 1} {row + 1}")
            places.append((column, row))
        across, along = (one - other for one, other in zip(*places, strict=True))
        apart = [f"{'right' if across > 0 else 'left'} {abs(across)}"]
        apart.append(f"{'below' if along > 0 else 'above'} {abs(along)}")
        orders = [(first, then) for first in (steps, steps[::-1]) for then in (apart, apart[::-1])]
        return [f"{', '.join(first)}; {', '.join(then)}" for first, then in orders]
