"""Where one animal stands, seen from another."""

from dataclasses import replace

from avis.garden.scenes import Animal, cast
from avis.garden.tasks.base import Task, how_many, only, other_kinds, two_kinds
from avis.garden.tasks.extras import furnished


def side_of(one: Animal, other: Animal) -> str | None:
    """On which side of `other` `one` stands; None when it is nearly diagonal."""
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

    def subject(self, rng):
        return two_kinds(rng)

    def compose(self, rng, level, width, height, about, answer, extras):
        while True:
            others = [(str(rng.choice(other_kinds(*about))), wears) for _, wears in cast(rng, how_many(rng, level))]
            scene = furnished(rng, level, width, height, others, extras)
            fitting = [(a, b) for a in scene.animals for b in scene.animals if a is not b and side_of(a, b) == answer]
            if fitting:
                one, other = fitting[int(rng.integers(len(fitting)))]
                named = {id(one): about[0], id(other): about[1]}
                animals = tuple(replace(a, kind=named.get(id(a), a.kind)) for a in scene.animals)
                return (replace(scene, animals=animals),)

    def solve(self, scenes, about):
        one, other = (only(scenes[0], kind) for kind in about)
        return side_of(one, other) if one and other else None

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
            animal = only(scenes[0], kind)
            steps.append(f"{kind} {scenes[0].from_left().index(animal) + 1} {scenes[0].from_top().index(animal) + 1}")
        return [", ".join(steps), ", ".join(reversed(steps))]
