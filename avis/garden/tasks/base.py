"""The base class of tasks: how scenes are composed, questions put, solved from the record, and reasoned about.

A task is one small class in a file of its own. Its answer is drawn first, evenly whatever else was drawn, and then a
scene that has it, so that nothing in a question reveals its answer. `solve` reads the answer back from the record.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avis.garden.scenes import KINDS, MOVES, THINK, WEARS, Animal, Level, Scene

WORN = {"glasses": "glasses", "hat": "a hat", "scarf": "a scarf", "nothing": "nothing"}
LETTERS = "ABCD"
NUMBERS = ("first", "second", "third", "fourth")


@dataclass(frozen=True)
class Extras:
    """What a scene has beyond what its question needs, so that other tasks can ask about it too.

    Attributes:
        prices: whether animals have tags.
        sign: whether there is a sign.
    """

    prices: bool = False
    sign: bool = False


class Task(ABC):
    """A kind of question.

    Attributes:
        name: by which it is registered in `avis.garden.tasks.TASKS`.
        medium: "image", "video" or "images" (two images).
        values: every answer, each as likely as the others; () when there are too many to list.
        is_alone: whether no other task can ask about its scenes.
    """

    name: str
    medium: str = "image"
    values: tuple[str, ...] = ()
    is_alone: bool = False

    def draw_subject(self, rng: np.random.Generator) -> tuple:
        """Draw the subject of a question, before there is a scene."""
        return ()

    def draw_subject_at(self, rng: np.random.Generator, level: Level, scenes: tuple[Scene, ...] = ()) -> tuple:
        """Draw the subject of a question whose size follows the level, before there is a scene or for given scenes.

        Args:
            rng: the item's generator.
            level: of difficulty.
            scenes: those that the question is about; () when they are not drawn yet.
        """
        return self.draw_subject(rng)

    def shape(self, about: tuple) -> tuple:
        """Return what questions about one scene must have in common for any answer to be as likely for each of them."""
        return tuple(part is None for part in about)

    def most_think(self, columns: int, rows: int) -> int:
        """Return the largest `think` whose scenes can be read from labels, at a size in merged visual tokens."""
        return len(THINK)

    def answers(self, level: Level, about: tuple) -> Sequence[str]:
        """Return the answers that a question about this subject can have at a level, each as likely as the others."""
        return self.values

    def draw_answer(self, rng: np.random.Generator, level: Level, about: tuple) -> str:
        """Draw an answer to a question about this subject, before there is a scene."""
        return str(rng.choice(self.answers(level, about)))

    @abstractmethod
    def compose(
        self, rng: np.random.Generator, level: Level, width: int, height: int, about: tuple, answer: str, extras: Extras
    ) -> tuple[Scene, ...]:
        """Draw scenes of `width` x `height` pixels on which the question about a subject has this answer.

        Args:
            rng: the item's generator.
            level: of difficulty.
            width: of each scene, in pixels.
            height: of each scene, in pixels.
            about: the question's subject.
            answer: the answer.
            extras: tags and signs that the question does not need.
        """

    @abstractmethod
    def solve(self, scenes: tuple[Scene, ...], about: tuple) -> str | None:
        """Return the answer, read from the scenes' record; None when the question does not fit them."""

    def fits_level(self, level: Level, scenes: tuple[Scene, ...], about: tuple) -> bool:
        """Return whether a question that fits the scenes has as many reasoning steps as the level says."""
        return True

    @abstractmethod
    def wordings(self, about: tuple) -> list[str]:
        """Return all ways to put the question."""

    @abstractmethod
    def traces(self, scenes: tuple[Scene, ...], about: tuple) -> list[str]:
        """Return all valid ways of reasoning to the answer, without the answer itself."""

    def draw_trace(self, rng: np.random.Generator, scenes: tuple[Scene, ...], about: tuple) -> str:
        """Draw one valid way of reasoning to the answer, without the answer itself.

        Tasks with more orders of steps than `traces` lists draw one of all.
        """
        found = self.traces(scenes, about)
        return found[int(rng.integers(len(found)))]

    def near_answers(self, scenes: tuple[Scene, ...], about: tuple) -> list[str]:
        """Return the wrong numbers that one slip of reasoning leads to; [] where options are drawn from all answers.

        Where there are some, `answers` are whole numbers one apart: see `draw_near_options`.
        """
        return []

    def draw_options(self, rng: np.random.Generator, answer: str, among: Sequence[str]) -> list[str]:
        """Draw up to four options in random order.

        Args:
            rng: the item's generator.
            answer: the right option.
            among: the values that the answer was drawn from, evenly; the other options come from them, so that the
                set does not reveal which option is right.
        """
        others = [value for value in among if value != answer]
        chosen = [str(v) for v in rng.choice(others, size=min(3, len(others)), replace=False)] + [answer]
        return [chosen[i] for i in rng.permutation(len(chosen))]


_NAMES = re.compile(
    rf"\b(?:(?:{'|'.join(KINDS)})s?|{'|'.join(WORN.values())}|(?:to the )?(?:{'|'.join(MOVES)})|[A-Z])\b"
)


def without_names(question: str) -> str:
    """Return a question's words without kinds, things to wear, sides and letters, which tell nothing of the answer.

    What is left may: of what remains of 70, 80, 90 and 100, the most remains of 100, and a sum of four is larger than a
    sum of three. So questions about one scene of which each could have any answer are alike in it.
    """
    return _NAMES.sub("", question)


def draw_near_options(rng: np.random.Generator, answer: str, near: Sequence[str], among: Sequence[str]) -> list[str]:
    """Draw four whole numbers in random order, one or two slips apart, that do not reveal which one is right.

    Two slips are drawn, and then which of them the right number has that the least has not: none, one, the other, or
    both. So the four look the same from each of them: any rank is as likely to be the right one, and none is the middle
    of the others. `among` is a ring, which begins again after its end: else a number near an end would stand out.

    Args:
        rng: the item's generator.
        answer: the right option.
        near: what one slip leads to.
        among: the numbers that the answer was drawn from, evenly, one apart.

    Returns:
        The options; [] where `among` has too few numbers for two slips.
    """
    right, count = list(among).index(answer), len(among)
    slips = sorted({abs(int(value) - int(answer)) for value in near} & set(range(1, (count + 1) // 2)))
    if len(slips) < 2:
        return []
    one, other = (int(slip) for slip in rng.choice(slips, size=2, replace=False))
    least = right - one * int(rng.integers(2)) - other * int(rng.integers(2))
    chosen = [among[(least + slip) % count] for slip in (0, one, other, one + other)]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def reading_orders(scene: Scene) -> list[tuple[str, list[Animal]]]:
    """Return the orders in which animals are read, each with its word; in a video from the left only."""
    return [("left", scene.from_left()), ("top", scene.from_top())][: 1 if scene.seconds else 2]


def find_only(scene: Scene, kind: str) -> Animal | None:
    """Return the one animal of this kind; None when there are none or several."""
    found = [animal for animal in scene.animals if animal.kind == kind]
    return found[0] if len(found) == 1 else None


def pluralize(kind: str | None) -> str:
    """Return the kind's name for several; "animals" for None."""
    return f"{kind}s" if kind else "animals"


def matches(animal: Animal, kind: str | None, wears: str | None) -> bool:
    """Return whether the animal is of this kind and wears this; None fits every animal."""
    return kind in (None, animal.kind) and wears in (None, animal.wears)


def draw_pairs(
    rng: np.random.Generator, kind: str | None, wears: str | None, answer: int, total: int
) -> list[tuple[str, str]]:
    """Draw `total` pairs of kind and wear, exactly `answer` of which match.

    About half of the others share the kind or the wear, where that is possible.
    """
    every = [(k, w) for k in KINDS for w in WEARS]
    wanted = [(k, w) for k, w in every if kind in (None, k) and wears in (None, w)]
    others = [pair for pair in every if pair not in wanted]
    near = [pair for pair in others if kind == pair[0] or wears == pair[1]] or others
    pairs = [wanted[rng.integers(len(wanted))] for _ in range(answer)]
    for _ in range(total - answer):
        pool = near if rng.random() < 0.5 else others
        pairs.append(pool[rng.integers(len(pool))])
    return [pairs[i] for i in rng.permutation(total)]


def draw_count(rng: np.random.Generator, level: Level, least: int = 0) -> int:
    """Draw the number of animals in a scene of this level, at least `least`."""
    return max(least, int(rng.integers(level.count[0], level.count[1] + 1)))


def draw_two_kinds(rng: np.random.Generator) -> tuple[str, str]:
    """Draw two different kinds."""
    first, second = rng.choice(KINDS, size=2, replace=False)
    return str(first), str(second)


def kinds_except(kinds: Sequence[str]) -> list[str]:
    """Return the kinds that are not named."""
    return [kind for kind in KINDS if kind not in kinds]
