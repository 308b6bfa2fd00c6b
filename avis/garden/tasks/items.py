"""Items: scenes with one question about them, drawn for a task, a difficulty and a form."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from avis.garden.scenes import LEVELS, TOKEN, Level, Scene, level_for
from avis.garden.tasks.base import LETTERS, Extras, Task, draw_near_options
from avis.garden.tasks.layouts import draw_layout, lay_out
from avis.garden.tasks.registry import ALL_TASKS, TASKS

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
# The second garden's: tags stay readable on as many animals as a question may have.
SECOND_SIZES = {
    "image": (*((18, 16), (16, 18), (22, 14), (20, 16), (16, 22)), *((20, 20), (26, 16), (24, 20), (18, 28), (24, 24))),
    "images": ((14, 13), (13, 14), (16, 12), (14, 14), (13, 17)),
    "video": ((10, 9), (9, 10), (11, 9), (10, 10), (12, 8)),
}


@dataclass(frozen=True)
class Item:
    """One or two images or a video, and one question about them.

    Attributes:
        task: a name in `ALL_TASKS`.
        medium: "image", "images" (two) or "video".
        level: of difficulty in the first garden, 1 to 5; 0 in the second.
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
        stem: the question without options and layout.
        see: how hard it is to see in the second garden, 1 to 5; 0 in the first.
        think: how many steps it takes in the second garden, 1 to 5; 0 in the first.
        layout: of the question, a name in `layouts.LAYOUTS`; "" for the garden's own.
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
    stem: str = ""
    see: int = 0
    think: int = 0
    layout: str = ""

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
    level: Level,
    scenes: tuple[Scene, ...],
    about: tuple,
    form: str,
    among: Sequence[str],
    near: Sequence[str] = (),
) -> Item:
    """Draw one of the ways to ask a question about scenes.

    Args:
        rng: the item's generator.
        task: the question's.
        level: of the scenes.
        scenes: one, or two of a pair.
        about: the question's subject.
        form: "free" or "choice".
        among: the values that the answer was drawn from, evenly; () when there are too many to list.
        near: what one slip of reasoning leads to.
    """
    value = task.solve(scenes, about)
    if value is None:
        raise ValueError(f"a question about {about} of task {task.name} does not fit these scenes")
    wordings = task.wordings(about)
    stem = wordings[int(rng.integers(len(wordings)))]
    trace = f"{task.draw_trace(rng, scenes, about)}; {value}"
    options: tuple[str, ...] = ()
    answer = value
    if form == "choice":
        found = draw_near_options(rng, value, near, among) if near else []
        options = tuple(found or task.draw_options(rng, value, among))
        answer = LETTERS[options.index(value)]
        trace = f"{trace} {answer}"
    layout = draw_layout(rng, form) if level.see else ""
    return Item(
        task=task.name,
        medium=task.medium,
        level=0 if level.see else level.number,
        form=form,
        scenes=scenes,
        question=lay_out(stem, options, layout),
        options=options,
        answer=answer,
        value=value,
        trace=trace,
        about=about,
        stem=stem,
        see=level.see,
        think=level.think,
        layout=layout,
    )


def make_item(
    rng: np.random.Generator,
    task: str,
    level: int | Level,
    form: str = "free",
    size: tuple[int, int] | None = None,
    extras: Extras | None = None,
) -> Item:
    """Draw a new scene with a question of a task.

    Args:
        rng: the item's generator.
        task: a name in `ALL_TASKS`.
        level: 1 to 5 for the first garden; for the second a `scenes.level_for`.
        form: "free" or "choice".
        size: of the scene in merged visual tokens, (columns, rows); None: drawn from the garden's sizes.
        extras: tags and signs that the question does not need; None: drawn.

    Raises:
        ValueError: no such task, level or form.
    """
    tasks = TASKS if isinstance(level, int) or not level.see else ALL_TASKS
    if task not in tasks or form not in FORMS or (isinstance(level, int) and not 1 <= level <= len(LEVELS)):
        raise ValueError(f"no such item: task {task!r}, level {level!r}, form {form!r}")
    if isinstance(level, int):
        level = LEVELS[level - 1]
    chosen = tasks[task]
    sizes = (SECOND_SIZES if level.see else SIZES)[chosen.medium]
    columns, rows = size or sizes[int(rng.integers(len(sizes)))]
    if extras is None:
        extras = Extras(bool(rng.random() < 0.4), bool(rng.random() < 0.35))
    about = chosen.draw_subject_at(rng, level)
    among = chosen.answers(level, about)
    answer = chosen.draw_answer(rng, level, about)
    scenes = chosen.compose(rng, level, columns * TOKEN, rows * TOKEN, about, answer, extras)
    near = chosen.near_answers(scenes, about) if form == "choice" else []
    return _ask(rng, chosen, level, scenes, about, form, among, near)


def ask(rng: np.random.Generator, item: Item, task: str, form: str) -> Item | None:
    """Draw another question about an item's scenes.

    The answer is drawn evenly among those that questions of one shape (about a kind, a wear or both) have here, and so
    are the options: else the most common counts would be the likely ones (see `Task.shape`).

    Args:
        rng: a generator.
        item: the one whose scenes the question is about.
        task: of the question.
        form: "free" or "choice".

    Returns:
        An item; None when no question of this task fits the scenes.
    """
    chosen, level = (ALL_TASKS if item.see else TASKS)[task], level_of(item)
    shapes: dict[tuple, dict[str, list[tuple]]] = {}  # of each, the answers that fit, and their subjects
    for _ in range(40 if item.see else 12):  # the second garden's questions have more shapes
        about = chosen.draw_subject_at(rng, level, item.scenes)
        fitting = shapes.setdefault(chosen.shape(about), {})
        is_new = about != item.about or (item.see > 0 and task != item.task)
        value = chosen.solve(item.scenes, about) if is_new else None
        possible = chosen.answers(level, about)
        if value is None or (possible and value not in possible) or not chosen.fits_level(level, item.scenes, about):
            continue
        fitting.setdefault(value, []).append(about)
    least = 2 if form == "choice" and possible else 1
    # The first garden asks in the shape that was drawn first, or not at all.
    enough = [fitting for fitting in list(shapes.values())[: None if item.see else 1] if len(fitting) >= least]
    if not enough:
        return None
    fitting = enough[0]
    answers = sorted(fitting)
    abouts = fitting[answers[int(rng.integers(len(answers)))]]
    about = abouts[int(rng.integers(len(abouts)))]
    return _ask(rng, chosen, level, item.scenes, about, form, answers)


def level_of(item: Item) -> Level:
    """Return the level that an item was drawn at."""
    return level_for(item.see, item.think) if item.see else LEVELS[item.level - 1]
