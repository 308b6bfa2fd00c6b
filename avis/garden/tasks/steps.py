"""What reasoning tasks share: steps that can be taken in any order, and sums of tags."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from avis.garden.scenes import MAX_PRICE, Animal, Level, Scene
from avis.garden.tasks.base import WORN, Task, matches, pluralize, without_names

Ranked = tuple[int, Animal]  # an animal with its place from the left, from 1


class OrderedTask(Task):
    """A task whose steps can be taken in any order; each order is a valid way of reasoning."""

    @abstractmethod
    def steps(self, scenes: tuple[Scene, ...], about: tuple) -> list:
        """Return what the steps go through, in reading order."""

    @abstractmethod
    def write(self, scenes: tuple[Scene, ...], about: tuple, order: list) -> str:
        """Return the trace that goes through all of `steps` in this order."""

    def draw_trace(self, rng: np.random.Generator, scenes: tuple[Scene, ...], about: tuple) -> str:
        """Draw a trace, every order of its steps alike."""
        steps = self.steps(scenes, about)
        return self.write(scenes, about, [steps[i] for i in rng.permutation(len(steps))])

    def shape(self, about: tuple) -> tuple:
        """Return the words of the question, but for names."""
        return (without_names(self.wordings(about)[0]),)

    def fits_level(self, level: Level, scenes: tuple[Scene, ...], about: tuple) -> bool:
        """Return whether the steps are about as many as the level's terms; some tasks have up to three more."""
        return not level.think or level.terms[0] <= len(self.steps(scenes, about)) <= level.terms[1] + 3

    def traces(self, scenes: tuple[Scene, ...], about: tuple) -> list[str]:
        """Return the traces in reading order and back: two of many."""
        steps = self.steps(scenes, about)
        return [self.write(scenes, about, order) for order in (steps, steps[::-1])]


def ranked(scene: Scene) -> list[Ranked]:
    """Return the animals from left to right, each with its place."""
    return list(enumerate(scene.from_left(), start=1))


def draw_group(rng: np.random.Generator, kinds: Sequence[str], wears: Sequence[str]) -> tuple[str | None, str | None]:
    """Draw which animals a question is about: all of them (half of the time), a kind, or those that wear something."""
    form = rng.random()
    kind = str(rng.choice(kinds)) if 0.5 <= form < 0.75 else None
    return kind, str(rng.choice(wears)) if form >= 0.75 else None


def describe_group(kind: str | None, wears: str | None) -> str:
    """Return a group's name, as "all bears" or "all animals that wear a hat"."""
    return f"all {pluralize(kind)}" + (f" that wear {WORN[wears]}" if wears else "")


def tagged_group(scene: Scene, kind: str | None, wears: str | None) -> list[Ranked]:
    """Return the animals of a group with their places; [] when there are fewer than two or one has no tag."""
    group = [(rank, animal) for rank, animal in ranked(scene) if matches(animal, kind, wears)]
    return group if len(group) > 1 and all(animal.price for _, animal in group) else []


def draw_terms(rng: np.random.Generator, count: int, total: int) -> list[int]:
    """Draw `count` prices that add up to `total`, each way to do so evenly."""
    terms = []
    for left in range(count - 1, -1, -1):
        tags = range(1, MAX_PRICE + 1)
        terms.append(draw_by_weight(rng, tags, [count_ways(left, total - tag) for tag in tags]))
        total -= terms[-1]
    return terms


@lru_cache(maxsize=None)
def count_ways(count: int, total: int) -> int:
    """Return in how many ways `count` prices add up to `total`."""
    if count == 0:
        return int(total == 0)
    return sum(count_ways(count - 1, total - term) for term in range(1, MAX_PRICE + 1)) if total > 0 else 0


def draw_by_weight(rng: np.random.Generator, choices: Sequence, weights: Sequence[int]) -> Any:
    """Draw one of the choices, by weights that need not add up to 1."""
    shares = np.array(weights, dtype=float)
    return choices[int(rng.choice(len(choices), p=shares / shares.sum()))]


def draw_num_terms(rng: np.random.Generator, level: Level) -> int:
    """Draw the number of reasoning steps of a question of this level."""
    return int(rng.integers(level.terms[0], level.terms[1] + 1))


def totals_at(least: int, most: int) -> range:
    """Return the totals asked for where `least` to `most` tags are added: tags of 2 on average to tags of 8."""
    return range(2 * most, 8 * least + 1)


def near_totals(total: int, tags: Sequence[int]) -> list[int]:
    """Return what one slip makes of a sum of tags: one left out or counted twice, one misread, a ten forgotten."""
    return [total + sign * slip for slip in (*tags, 1, 10) for sign in (-1, 1)]
