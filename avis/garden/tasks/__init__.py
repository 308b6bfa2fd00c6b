"""Every task of the garden, and the items that splits are made of.

Example::

    from avis.garden.tasks import item_for
    item = item_for("dev", 7)
    print(item.task, item.level, item.question, item.trace, item.answer)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from avis.garden.scenes import LEVELS, TOKEN, Scene, hide, rng_for
from avis.garden.tasks.appear import Appear
from avis.garden.tasks.attribute import Attribute
from avis.garden.tasks.base import LETTERS, Extras, Task
from avis.garden.tasks.changed import Changed
from avis.garden.tasks.compare import Compare
from avis.garden.tasks.count import Count
from avis.garden.tasks.differ import Differ
from avis.garden.tasks.exist import Exist
from avis.garden.tasks.hops import Hops
from avis.garden.tasks.more import More
from avis.garden.tasks.motion import Motion
from avis.garden.tasks.odd import Odd
from avis.garden.tasks.passed import Passed
from avis.garden.tasks.price import Price
from avis.garden.tasks.read import Read
from avis.garden.tasks.relation import Relation

IMAGE = (Count(), Exist(), Attribute(), Compare(), Relation(), Odd(), Read(), Price())
IMAGES = (More(), Differ())
VIDEO = (Motion(), Hops(), Appear(), Passed(), Changed())
TASKS: dict[str, Task] = {task.name: task for task in IMAGE + IMAGES + VIDEO}
FORMS = ("free", "choice")
# Sizes in merged visual tokens (columns, rows): of a picture, of one of two pictures, and of a clip's frames.
SIZES = {
    "image": (
        *((16, 16), (18, 14), (14, 20), (24, 12), (20, 16), (16, 22)),
        *((20, 20), (26, 16), (24, 20), (18, 28), (24, 24)),
    ),
    "images": ((12, 12), (14, 11), (11, 14), (16, 12), (14, 14), (13, 17)),
    "video": ((8, 8), (9, 8), (8, 9), (10, 7), (9, 9)),
}
SPLIT_SIZES = {"train": 100_000, "calibration": 5000, "dev": 1000, "test": 2500}  # one in five shows a clip
QUESTIONS = 4  # about each calibration picture
HOPELESS = 0.15  # share of level 5 that cannot be answered from the pixels


@dataclass(frozen=True)
class Item:
    """Pictures or a clip, one question about them, its answer, and a reasoning trace (without tags).

    `question` holds the options when `form` is "choice", and `answer` is then a letter; `value` is the answer in words.
    `scene_id` names what is shown: items with the same one share their pictures. `answerable` is False when the pixels
    do not tell.
    """

    task: str
    medium: str
    level: int
    form: str
    scenes: tuple[Scene, ...]
    question: str
    options: tuple[str, ...]
    answer: str
    value: str
    trace: str
    scene_id: int = 0
    answerable: bool = True
    about: tuple = field(default=())

    def response(self, thinking: bool = True, boxed: bool = False) -> str:
        """What the model is to write: `<think>..</think><answer>..</answer>`, the answer `boxed` for models that are
        trained so; without `thinking` the answer part alone."""
        final = f"\\boxed{{{self.answer}}}" if boxed else f"<answer>{self.answer}</answer>"
        return f"<think>{self.trace}</think>{final}" if thinking else final


def _put(
    rng: np.random.Generator,
    task: Task,
    level: int,
    scenes: tuple[Scene, ...],
    about: tuple,
    form: str,
    among: Sequence[str] = (),
) -> Item:
    """One of the ways to ask this question about these scenes; `among`: what options may be, () for every answer."""
    value = task.solve(scenes, about)
    wordings, traces = task.wordings(about), task.traces(scenes, about)
    question, trace = wordings[int(rng.integers(len(wordings)))], traces[int(rng.integers(len(traces)))]
    options, answer = (), value
    trace = f"{trace}; {value}"
    if form == "choice":
        options = tuple(task.options(rng, value, among or task.values))
        answer = LETTERS[options.index(value)]
        question += "\n" + " ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
        trace = f"{trace} {answer}"
    return Item(task.name, task.medium, level, form, scenes, question, options, answer, value, trace, about=about)


def make_item(
    rng: np.random.Generator,
    task: str,
    level: int,
    form: str = "free",
    size: tuple[int, int] | None = None,
    extras: Extras | None = None,
) -> Item:
    """A new scene with a question of the given task, all drawn from `rng`.

    Args:
        rng: the item's generator.
        task: a name in `TASKS`.
        level: 1 to 5.
        form: "free" or "choice".
        size: of the picture in merged visual tokens, (columns, rows); drawn from `SIZES` when not given.
        extras: tags and signs that the question does not need; drawn when not given.

    Raises:
        ValueError: for a task, level or form that is not there.
    """
    if task not in TASKS or form not in FORMS or not 1 <= level <= len(LEVELS):
        raise ValueError(f"no such item: task {task!r}, level {level!r}, form {form!r}")
    chosen, sizes = TASKS[task], SIZES[TASKS[task].medium]
    columns, rows = size or sizes[int(rng.integers(len(sizes)))]
    if extras is None:
        extras = Extras(bool(rng.random() < 0.4), bool(rng.random() < 0.35))
    about = chosen.subject(rng)
    answer = chosen.draw_answer(rng, LEVELS[level - 1])
    scenes = chosen.compose(rng, LEVELS[level - 1], columns * TOKEN, rows * TOKEN, about, answer, extras)
    return _put(rng, chosen, level, scenes, about, form)


def ask(rng: np.random.Generator, item: Item, task: str, form: str) -> Item | None:
    """Another question about an item's scenes; None when none of this task fits.

    The answer is drawn evenly among those that questions of one shape (about a kind, about a wear, about both) have
    here, and the options are among these too: else the most common counts would be the likely ones.
    """
    chosen = TASKS[task]
    shape, fitting = None, {}
    for _ in range(12):
        about = chosen.subject(rng)
        value = chosen.solve(item.scenes, about)
        if shape is None:
            shape = [part is None for part in about]
        if value is not None and about != item.about and shape == [part is None for part in about]:
            fitting.setdefault(value, []).append(about)
    if not fitting or (form == "choice" and chosen.values and len(fitting) == 1):
        return None
    answers = sorted(fitting)
    abouts = fitting[answers[int(rng.integers(len(answers)))]]
    return _put(rng, chosen, item.level, item.scenes, abouts[int(rng.integers(len(abouts)))], form, answers)


def _others(rng: np.random.Generator, item: Item) -> list[Item]:
    """One question of each other task about an item's picture, of those tasks that fit."""
    asked = (ask(rng, item, task.name, item.form) for task in IMAGE if task.name != item.task)
    return [other for other in asked if other]


def item_for(split: str, index: int) -> Item:
    """Item number `index` of a split, the same in every process.

    Tasks and levels take turns; every fifth item is a clip. Calibration asks `QUESTIONS` different tasks about each of
    its pictures, all multiple choice; the other splits ask one question a scene, half of them multiple choice.

    Raises:
        ValueError: for a split that is not there.
        IndexError: for an index beyond the split's size.
    """
    if not 0 <= index < SPLIT_SIZES.get(split, index + 1):
        raise IndexError(f"split {split} has items 0 to {SPLIT_SIZES[split] - 1}, got {index}")
    clip = index % 5 == 4
    number = index // 5 if clip else index // 5 * 4 + index % 5  # among the clips, or among the pictures
    asked = QUESTIONS if split == "calibration" and not clip else 1
    scene, question = divmod(number, asked)
    tasks = VIDEO if clip else IMAGE + IMAGES
    task, level = tasks[scene % len(tasks)], 1 + scene // len(tasks) % len(LEVELS)
    key = (int(clip), scene)
    scene_id = 2 * scene + int(clip)
    if task.medium == "images" and question:
        key, scene_id = (*key, question), 2 * (scene + question * SPLIT_SIZES[split]) + int(clip)
    rng = rng_for(split, *key)
    form = "choice" if split == "calibration" or rng.random() < 0.5 else "free"
    item, others = make_item(rng, task.name, level, form), []
    if asked > 1 and task.medium == "image":
        others = _others(rng, item)
        while len(others) < asked - 1:  # some scenes allow for few other questions
            item = make_item(rng, task.name, level, form)
            others = _others(rng, item)
    if question and others:
        item = others[rng.permutation(len(others))[question - 1]]
    hopeless = level == len(LEVELS) and rng_for(split, *key, 97).random() < HOPELESS
    if hopeless:
        item = replace(item, scenes=tuple(hide(rng_for(split, *key, 98), scene) for scene in item.scenes))
    return replace(item, scene_id=scene_id, answerable=not hopeless)
