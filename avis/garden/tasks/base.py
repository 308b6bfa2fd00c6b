"""What a task is: how its scenes are composed, its questions put, solved from the record, and reasoned about.

A task is one small class in a file of its own. Its answer is drawn first, evenly whatever else was drawn, and then a
scene that has it: so nothing in a question tells its answer. `solve` reads the answer back from the scene's record.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avis.garden.scenes import KINDS, WEARS, Animal, Level, Scene

WORN = {"glasses": "glasses", "hat": "a hat", "scarf": "a scarf", "nothing": "nothing"}
LETTERS = "ABCD"
NUMBERS = ("first", "second", "third", "fourth")


@dataclass(frozen=True)
class Extras:
    """What a scene has beyond what its question needs, so that other tasks can ask about it too."""

    prices: bool = False
    sign: bool = False


class Task(ABC):
    """A kind of question.

    `medium` is "image", "video" or "images" (two pictures); `values`: every answer, each as likely as the others; ()
    when there are too many to list.
    """

    name: str
    medium: str = "image"
    values: tuple[str, ...] = ()

    def subject(self, rng: np.random.Generator) -> tuple:
        """What the question is about, drawn without looking at a scene."""
        return ()

    def draw_answer(self, rng: np.random.Generator, level: Level) -> str:
        """An answer, drawn before the scene."""
        return str(rng.choice(self.values))

    @abstractmethod
    def compose(
        self, rng: np.random.Generator, level: Level, width: int, height: int, about: tuple, answer: str, extras: Extras
    ) -> tuple[Scene, ...]:
        """New scenes of width x height pixels on which the question about `about` has this answer."""

    @abstractmethod
    def solve(self, scenes: tuple[Scene, ...], about: tuple) -> str | None:
        """The answer from the scenes' record; None when the question does not fit them."""

    @abstractmethod
    def wordings(self, about: tuple) -> list[str]:
        """All ways in which the question is put."""

    @abstractmethod
    def traces(self, scenes: tuple[Scene, ...], about: tuple) -> list[str]:
        """All valid ways of reasoning to the answer, without the answer itself."""

    def options(self, rng: np.random.Generator, answer: str, among: Sequence[str]) -> list[str]:
        """Up to four options in random order, the answer and others `among` which it was drawn evenly: which one is
        right cannot be told from the set."""
        others = [value for value in among if value != answer]
        chosen = [str(v) for v in rng.choice(others, size=min(3, len(others)), replace=False)] + [answer]
        return [chosen[i] for i in rng.permutation(len(chosen))]


def orders(scene: Scene) -> list[tuple[str, list[Animal]]]:
    """The orders in which animals are read, with the word that announces each; in a clip from the left only."""
    return [("left", scene.from_left()), ("top", scene.from_top())][: 1 if scene.seconds else 2]


def only(scene: Scene, kind: str) -> Animal | None:
    """The one animal of this kind, None when there are none or several."""
    found = [animal for animal in scene.animals if animal.kind == kind]
    return found[0] if len(found) == 1 else None


def plural(kind: str | None) -> str:
    """The kind's name for several, "animals" for None."""
    return f"{kind}s" if kind else "animals"


def matches(animal: Animal, kind: str | None, wears: str | None) -> bool:
    """Whether the animal is of this kind and wears this; None asks for nothing."""
    return kind in (None, animal.kind) and wears in (None, animal.wears)


def pairs_with(
    rng: np.random.Generator, kind: str | None, wears: str | None, answer: int, total: int
) -> list[tuple[str, str]]:
    """`total` pairs of kind and wear of which exactly `answer` match; half of the others share the kind or the wear."""
    every = [(k, w) for k in KINDS for w in WEARS]
    wanted = [(k, w) for k, w in every if kind in (None, k) and wears in (None, w)]
    others = [pair for pair in every if pair not in wanted]
    near = [pair for pair in others if kind == pair[0] or wears == pair[1]] or others
    pairs = [wanted[rng.integers(len(wanted))] for _ in range(answer)]
    for _ in range(total - answer):
        pool = near if rng.random() < 0.5 else others
        pairs.append(pool[rng.integers(len(pool))])
    return [pairs[i] for i in rng.permutation(total)]


def how_many(rng: np.random.Generator, level: Level, least: int = 0) -> int:
    """How many animals a scene of this level has, but at least `least`."""
    return max(least, int(rng.integers(level.count[0], level.count[1] + 1)))


def two_kinds(rng: np.random.Generator) -> tuple[str, str]:
    """Two different kinds."""
    first, second = rng.choice(KINDS, size=2, replace=False)
    return str(first), str(second)


def other_kinds(*kinds: str) -> list[str]:
    """The kinds that are not named."""
    return [kind for kind in KINDS if kind not in kinds]
