"""Questions about garden scenes, with their answers and the reasoning that leads there.

A counting question is made answer first: the answer is drawn evenly, then a scene that has it. (Drawn the other way
round, three of four answers are "0", and accuracy says nothing.)

Example::

    from garden.questions import item_for
    item = item_for("dev", 3)
    print(item.question, item.trace, item.answer)
"""

from dataclasses import dataclass, replace

import numpy as np

from garden.scenes import KINDS, WEARS, Animal, Scene, cast, place, rng_for

TASKS = ("count", "attribute")
MAX_COUNT = 4
WORN = {"glasses": "glasses", "hat": "a hat", "scarf": "a scarf", "nothing": "nothing"}


@dataclass(frozen=True)
class Item:
    """A scene, one question about it, its answer, and a reasoning trace (without tags)."""

    scene: Scene
    task: str
    question: str
    answer: str
    trace: str

    def response(self, thinking: bool = True) -> str:
        """What the model is to write: `<think>..</think><answer>..</answer>`, or the answer part alone."""
        final = f"<answer>{self.answer}</answer>"
        return f"<think>{self.trace}</think>{final}" if thinking else final


def matches(animal: Animal, kind: str | None, wears: str | None) -> bool:
    """Whether the animal is of this kind and wears this; None asks for nothing."""
    return (kind is None or animal.kind == kind) and (wears is None or animal.wears == wears)


def count_wordings(kind: str | None, wears: str | None) -> list[str]:
    """All ways in which a counting question is put; the first one is the example picture's."""
    animals = f"{kind}s" if kind else "animals"
    if wears is None:
        return [f"How many wooden {animals} are there?", f"Count the {animals}."]
    worn = WORN[wears]
    return [
        f"How many wooden {animals} are wearing {worn}?",
        f"How many {animals} wear {worn}?",
        f"Count the {animals} that wear {worn}.",
    ]


def _matching_pairs(kind: str | None, wears: str | None) -> list[tuple[str, str]]:
    return [(k, w) for k in KINDS for w in WEARS if kind in (None, k) and wears in (None, w)]


def _count_pairs(rng: np.random.Generator, kind: str | None, wears: str | None, answer: int, total: int) -> list:
    """`total` animals of which exactly `answer` match; half of the others share the kind or the wear."""
    wanted = _matching_pairs(kind, wears)
    others = [pair for pair in _matching_pairs(None, None) if pair not in wanted]
    near = [pair for pair in others if kind == pair[0] or wears == pair[1]] or others
    pairs = [wanted[rng.integers(len(wanted))] for _ in range(answer)]
    for _ in range(total - answer):
        pool = near if rng.random() < 0.5 else others
        pairs.append(pool[rng.integers(len(pool))])
    return [pairs[i] for i in rng.permutation(total)]


def count_trace(animals: tuple[Animal, ...], kind: str | None, wears: str | None) -> str:
    """Every animal in reading order with the running count: `1 rabbit glasses: 1; 2 bear hat: 1`."""
    seen, steps = 0, []
    for order, animal in enumerate(animals, start=1):
        seen += matches(animal, kind, wears)
        steps.append(f"{order} {animal.kind} {animal.wears}: {seen}")
    return "; ".join(steps)


def count_item_of(
    rng: np.random.Generator,
    width: int,
    height: int,
    kind: str | None,
    wears: str | None,
    answer: int,
    total: int,
    cell: float | None = None,
) -> Item:
    """The counting question about `kind` and `wears` on a new scene of `total` animals with that answer.

    It is put in the first wording; `cell` is as in `place`.
    """
    scene = place(rng, width, height, _count_pairs(rng, kind, wears, answer, total), cell)
    question = count_wordings(kind, wears)[0]
    return Item(scene, "count", question, str(answer), count_trace(scene.animals, kind, wears))


def count_item(rng: np.random.Generator, width: int, height: int, most: int = MAX_COUNT) -> Item:
    """A counting question on a new scene of up to `most` animals; the answer is even over 0 to `MAX_COUNT`."""
    answer = int(rng.integers(0, MAX_COUNT + 1))
    total = int(rng.integers(max(1, answer), max(most, answer) + 1))
    form = rng.random()
    kind = str(rng.choice(KINDS)) if form < 0.8 else None
    wears = str(rng.choice(WEARS)) if form < 0.6 or kind is None else None
    item = count_item_of(rng, width, height, kind, wears, answer, total)
    wordings = count_wordings(kind, wears)
    return replace(item, question=wordings[int(rng.integers(len(wordings)))])


def attribute_item(rng: np.random.Generator, width: int, height: int, most: int = MAX_COUNT) -> Item:
    """What the only animal of its kind wears, on a new scene; the answer is even over `WEARS`."""
    kind, wears = str(rng.choice(KINDS)), str(rng.choice(WEARS))
    total = int(rng.integers(1, most + 1))
    pairs = [pair for pair in cast(rng, 4 * total) if pair[0] != kind][: total - 1] + [(kind, wears)]
    scene = place(rng, width, height, [pairs[i] for i in rng.permutation(len(pairs))])
    steps = []
    for order, animal in enumerate(scene.animals, start=1):
        found = animal.kind == kind
        steps.append(f"{order} {animal.kind} {animal.wears}: {'yes' if found else 'no'}")
        if found:
            break
    wordings = [f"What is the wooden {kind} wearing?", f"What does the {kind} wear?"]
    return Item(scene, "attribute", wordings[int(rng.integers(len(wordings)))], wears, "; ".join(steps))


_MAKE = {"count": count_item, "attribute": attribute_item}


def make_item(
    rng: np.random.Generator, task: str, width: int = 224, height: int = 224, most: int = MAX_COUNT
) -> Item:
    """A new scene of the given size with a question of the given task, all drawn from `rng`.

    Raises:
        ValueError: for a task that is not in `TASKS`.
    """
    if task not in _MAKE:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    return _MAKE[task](rng, width, height, most)


def item_for(
    split: str, index: int, task: str = "count", width: int = 224, height: int = 224, most: int = MAX_COUNT
) -> Item:
    """Item number `index` of a split: the same item in every process."""
    return make_item(rng_for(split, TASKS.index(task), index), task, width, height, most)
