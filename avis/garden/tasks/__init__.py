"""All tasks of the garden, and the items that splits are made of::

from avis.garden.tasks import item_for
item = item_for("dev", 7)
print(item.task, item.level, item.question, item.trace, item.answer)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from avis.garden.placement import hide
from avis.garden.scenes import LEVELS, TOKEN, Scene, rng_for
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

IMAGE_TASKS: tuple[Task, ...] = (Count(), Exist(), Attribute(), Compare(), Relation(), Odd(), Read(), Price())
PAIR_TASKS: tuple[Task, ...] = (More(), Differ())
VIDEO_TASKS: tuple[Task, ...] = (Motion(), Hops(), Appear(), Passed(), Changed())
TASKS: dict[str, Task] = {task.name: task for task in IMAGE_TASKS + PAIR_TASKS + VIDEO_TASKS}
FORMS = ("free", "choice")
# Sizes in merged visual tokens (columns, rows): of an image, of one of two images, and of a video's frames.
SIZES = {
    "image": (
        *((16, 16), (18, 14), (14, 20), (24, 12), (20, 16), (16, 22)),
        *((20, 20), (26, 16), (24, 20), (18, 28), (24, 24)),
    ),
    "images": ((12, 12), (14, 11), (11, 14), (16, 12), (14, 14), (13, 17)),
    "video": ((8, 8), (9, 8), (8, 9), (10, 7), (9, 9)),
}
SPLIT_SIZES = {"train": 100_000, "calibration": 5000, "dev": 1000, "test": 2500}  # one item in five shows a video
QUESTIONS_PER_IMAGE = 4  # in calibration
UNANSWERABLE_SHARE = 0.15  # of level 5: what cannot be answered from the pixels


@dataclass(frozen=True)
class Item:
    """One or two images or a video, and one question about them.

    Attributes:
        task: a name in `TASKS`.
        medium: "image", "images" (two) or "video".
        level: of difficulty, 1 to 5.
        form: "free" or "choice".
        scenes: one, or two of a pair of images.
        question: as put to the model; with the options when `form` is "choice".
        options: their texts; () for a free answer.
        answer: the right answer; a letter when `form` is "choice".
        value: the right answer in words.
        trace: a way of reasoning to the answer, without tags.
        scene_id: items with the same one show the same scenes.
        answerable: whether the pixels show the answer.
        about: the question's subject.
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

    def response(self, enable_thinking: bool = True, is_boxed: bool = False) -> str:
        """Return the text that the model is trained to write: `<think>..</think><answer>..</answer>`.

        Args:
            enable_thinking: False for the answer alone.
            is_boxed: whether the answer stands in a LaTeX box instead of tags.
        """
        final = f"\\boxed{{{self.answer}}}" if is_boxed else f"<answer>{self.answer}</answer>"
        return f"<think>{self.trace}</think>{final}" if enable_thinking else final


def _ask(
    rng: np.random.Generator,
    task: Task,
    level: int,
    scenes: tuple[Scene, ...],
    about: tuple,
    form: str,
    among: Sequence[str] = (),
) -> Item:
    """Draw one of the ways to ask a question about scenes.

    Args:
        rng: the item's generator.
        task: the question's.
        level: of the scenes.
        scenes: one, or two of a pair.
        about: the question's subject.
        form: "free" or "choice".
        among: the values that options may have; () for all of the task's.
    """
    value = task.solve(scenes, about)
    if value is None:
        raise ValueError(f"a question about {about} of task {task.name} does not fit these scenes")
    wordings, traces = task.wordings(about), task.traces(scenes, about)
    question, trace = wordings[int(rng.integers(len(wordings)))], traces[int(rng.integers(len(traces)))]
    options: tuple[str, ...] = ()
    answer = value
    trace = f"{trace}; {value}"
    if form == "choice":
        options = tuple(task.draw_options(rng, value, among or task.values))
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
    """Draw a new scene with a question of a task.

    Args:
        rng: the item's generator.
        task: a name in `TASKS`.
        level: 1 to 5.
        form: "free" or "choice".
        size: of the scene in merged visual tokens, (columns, rows); None: drawn from `SIZES`.
        extras: tags and signs that the question does not need; None: drawn.

    Raises:
        ValueError: no such task, level or form.
    """
    if task not in TASKS or form not in FORMS or not 1 <= level <= len(LEVELS):
        raise ValueError(f"no such item: task {task!r}, level {level!r}, form {form!r}")
    chosen, sizes = TASKS[task], SIZES[TASKS[task].medium]
    columns, rows = size or sizes[int(rng.integers(len(sizes)))]
    if extras is None:
        extras = Extras(bool(rng.random() < 0.4), bool(rng.random() < 0.35))
    about = chosen.draw_subject(rng)
    answer = chosen.draw_answer(rng, LEVELS[level - 1])
    scenes = chosen.compose(rng, LEVELS[level - 1], columns * TOKEN, rows * TOKEN, about, answer, extras)
    return _ask(rng, chosen, level, scenes, about, form)


def ask(rng: np.random.Generator, item: Item, task: str, form: str) -> Item | None:
    """Draw another question about an item's scenes.

    The answer is drawn evenly among those that questions of one shape (about a kind, a wear or both) have here, and so
    are the options: else the most common counts would be the likely ones.

    Args:
        rng: a generator.
        item: the one whose scenes the question is about.
        task: of the question.
        form: "free" or "choice".

    Returns:
        An item; None when no question of this task fits the scenes.
    """
    chosen = TASKS[task]
    shape: list[bool] | None = None
    fitting: dict[str, list[tuple]] = {}
    for _ in range(12):
        about = chosen.draw_subject(rng)
        value = chosen.solve(item.scenes, about)
        if shape is None:
            shape = [part is None for part in about]
        if value is not None and about != item.about and shape == [part is None for part in about]:
            fitting.setdefault(value, []).append(about)
    if not fitting or (form == "choice" and chosen.values and len(fitting) == 1):
        return None
    answers = sorted(fitting)
    abouts = fitting[answers[int(rng.integers(len(answers)))]]
    return _ask(rng, chosen, item.level, item.scenes, abouts[int(rng.integers(len(abouts)))], form, answers)


def _others(rng: np.random.Generator, item: Item) -> list[Item]:
    """Draw one question about an item's image for each other task that fits it."""
    drawn = (ask(rng, item, task.name, item.form) for task in IMAGE_TASKS if task.name != item.task)
    return [other for other in drawn if other]


def item_for(split: str, index: int) -> Item:
    """Return an item of a split, the same in every process.

    Tasks and levels take turns; every fifth item is a video. Calibration asks `QUESTIONS_PER_IMAGE` different tasks
    about each of its images, all multiple choice; the other splits ask one question a scene, half of them multiple
    choice.

    Args:
        split: one of `SPLIT_SIZES`.
        index: from 0.

    Raises:
        ValueError: no such split.
        IndexError: the split has no such item.
    """
    if not 0 <= index < SPLIT_SIZES.get(split, index + 1):
        raise IndexError(f"split {split} has items 0 to {SPLIT_SIZES[split] - 1}, got {index}")
    is_video = index % 5 == 4
    number = index // 5 if is_video else index // 5 * 4 + index % 5  # among the videos, or among the images
    num_questions = QUESTIONS_PER_IMAGE if split == "calibration" and not is_video else 1
    scene, question = divmod(number, num_questions)
    tasks = VIDEO_TASKS if is_video else IMAGE_TASKS + PAIR_TASKS
    task, level = tasks[scene % len(tasks)], 1 + scene // len(tasks) % len(LEVELS)
    key: tuple[int, ...] = (int(is_video), scene)
    scene_id = 2 * scene + int(is_video)
    if task.medium == "images" and question:
        key, scene_id = (*key, question), 2 * (scene + question * SPLIT_SIZES[split]) + int(is_video)
    rng = rng_for(split, *key)
    form = "choice" if split == "calibration" or rng.random() < 0.5 else "free"
    item = make_item(rng, task.name, level, form)
    others: list[Item] = []
    if num_questions > 1 and task.medium == "image":
        others = _others(rng, item)
        while len(others) < num_questions - 1:  # some scenes allow for few other questions
            item = make_item(rng, task.name, level, form)
            others = _others(rng, item)
    if question and others:
        item = others[rng.permutation(len(others))[question - 1]]
    is_hidden = level == len(LEVELS) and rng_for(split, *key, 97).random() < UNANSWERABLE_SHARE
    if is_hidden:
        item = replace(item, scenes=tuple(hide(rng_for(split, *key, 98), scene) for scene in item.scenes))
    return replace(item, scene_id=scene_id, answerable=not is_hidden)
