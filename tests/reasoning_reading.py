"""A second reading of reasoning questions: their own words are parsed here, everything is counted again from the
scene's record without the tasks' code, and traces are replayed step by step.
"""

import re
from typing import NamedTuple

from avis.garden.scenes import Animal, Scene

KIND = r"(rabbit|bear|cat|duck)"
GROUP = r"all (animal|rabbit|bear|cat|duck)s(?: that wear (glasses|a hat|a scarf|nothing))?"
WORDINGS: tuple[tuple[str, str], ...] = (
    ("total", f"What do you pay for {GROUP} together\\?"),
    ("total", f"What is the total of the tags of {GROUP}\\?"),
    ("total", f"How much are {GROUP} in all\\?"),
)
COMPILED = tuple((task, re.compile(wording)) for task, wording in WORDINGS)


class Reading(NamedTuple):
    """What a question's words ask: the task, the groups of the wording, and which of `WORDINGS` it is."""

    task: str
    subjects: tuple
    wording: int


def read_question(stem: str) -> Reading:
    """The one way in which a question can be read."""
    found = [
        Reading(task, match.groups(), number)
        for number, (task, wording) in enumerate(COMPILED)
        if (match := wording.fullmatch(stem))
    ]
    assert len(found) == 1, f"{len(found)} readings of {stem!r}"
    return found[0]


def from_left(scene: Scene) -> dict[int, Animal]:
    """The animals by their place from the left, from 1."""
    return dict(enumerate(sorted(scene.animals, key=lambda animal: animal.x), start=1))


def is_meant(animal: Animal, kind: str, worn: str | None) -> bool:
    """Whether an animal is of a group that the question's words name."""
    return kind in ("animal", animal.kind) and (worn is None or worn.removeprefix("a ") == animal.wears)


def count_again(reading: Reading, scenes: tuple[Scene, ...]) -> str:
    """The answer to a question, from its words and the scenes' record alone."""
    scene = scenes[0]
    if reading.task == "total":
        return str(sum(a.price for a in scene.animals if is_meant(a, *reading.subjects)))
    raise AssertionError(reading.task)


def numbers(part: str, width: int) -> list[tuple[int, ...]]:
    """The steps of a part of a trace: `width` whole numbers each."""
    steps = [tuple(map(int, step.split(" "))) for step in part.split(", ")]
    assert {len(step) for step in steps} == {width}, part
    return steps


def replay(reading: Reading, scenes: tuple[Scene, ...], trace: str, value: str) -> tuple:
    """Check a trace step by step, from what it says is seen to the answer; the order in which it goes.

    Every number that is read must be the record's, every running result must follow from the one before, every step
    that has to be made must be made once, and the answer must follow from the last step.
    """
    animals = from_left(scenes[0])
    parts = trace.split("; ")
    if reading.task == "total":
        (part,) = parts
        steps, total = numbers(part, 3), 0
        for rank, price, running in steps:
            total += price
            assert animals[rank].price == price and running == total
        order = tuple(rank for rank, *_ in steps)
        assert sorted(order) == [rank for rank, a in animals.items() if is_meant(a, *reading.subjects)]
        assert str(total) == value
        return order
    raise AssertionError(reading.task)
