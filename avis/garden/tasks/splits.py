"""The items that the splits of both gardens are made of.

The first garden's splits are named `dev`, the second's `garden2:dev`.
"""

from dataclasses import replace

import numpy as np

from avis.garden.placement import hide
from avis.garden.scenes import LEVELS, SECOND, SEE, THINK, level_for, rng_for
from avis.garden.tasks.items import FORMS, Item, ask, make_item
from avis.garden.tasks.registry import IMAGE_TASKS, PAIR_TASKS, SECOND_TASKS, VIDEO_TASKS, companions

_SIZES = {"train": 100_000, "calibration": 5000, "dev": 1000, "test": 2500}  # one item in five shows a video
SPLIT_SIZES = _SIZES | {SECOND + name: size for name, size in (_SIZES | {"test2": 2500}).items()}
QUESTIONS_PER_IMAGE = 4  # in calibration
UNANSWERABLE_SHARE = 0.15  # of what is hardest to see: what cannot be answered from the pixels


def item_for(split: str, index: int) -> Item:
    """Return an item of a split, the same in every process.

    Tasks and levels take turns; every fifth item is a video. In the second garden see, think and form take turns for
    each task, independently of each other. Calibration asks `QUESTIONS_PER_IMAGE` different questions about each of
    its images; the other splits ask one question a scene. Half of the questions are multiple choice; in the first
    garden's calibration all are.

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
    num_questions = QUESTIONS_PER_IMAGE if split.endswith("calibration") and not is_video else 1
    scene, question = divmod(number, num_questions)
    if split.startswith(SECOND):
        return _second_item(split, is_video, scene, question, num_questions)
    return _first_item(split, is_video, scene, question, num_questions)


def turn_of(number: int, num_tasks: int) -> tuple[int, int, int, int]:
    """Return whose turn it is in the second garden.

    Over 50 turns, a task has every see with every think in each form once; and over any five turns in a row nearly
    every see and every think once.

    Args:
        number: of the scene among the images, or among the videos.
        num_tasks: that take turns.

    Returns:
        The task's number, see and think (1 to 5), and the number of the form.
    """
    task = number % num_tasks
    turn = number // num_tasks + 7 * task  # neighbours begin elsewhere, so that a part of a split is balanced, too
    see, row = turn % len(SEE), turn // len(SEE) % len(THINK)
    return task, 1 + see, 1 + (row + see) % len(THINK), turn % len(FORMS)


def _second_item(split: str, is_video: bool, scene: int, question: int, num_questions: int) -> Item:
    """Return an item of the second garden: a question about a scene by their numbers."""
    tasks = SECOND_TASKS["video"] if is_video else SECOND_TASKS["image"] + SECOND_TASKS["images"]
    number, see, think, form = turn_of(scene, len(tasks))
    task, level = tasks[number], level_for(see, think)
    key, scene_id = _place_of(split, task.medium, is_video, scene, question)
    rng = rng_for(split, *key)
    forms = [FORMS[(form + n) % len(FORMS)] for n in range(num_questions)]
    if task.medium == "image":
        group: list[Item] = []
        least = 1 if task.is_alone or num_questions == 1 else 2  # tasks in a group
        # Some scenes allow for few other questions.
        while len(group) < num_questions or len({item.task for item in group}) < least:
            group = _group(rng, make_item(rng, task.name, level, forms[0]), forms)
        item = group[question]
    else:
        item = make_item(rng, task.name, level, forms[question])
    return _hidden_or_not(split, key, replace(item, scene_id=scene_id), see == len(SEE))


def _group(rng: np.random.Generator, first: Item, forms: list[str]) -> list[Item]:
    """Return an item with others about its image, of other tasks as far as possible: one of each form in `forms`."""
    group, tasks = [first], companions(first.task)
    others = [tasks[i].name for i in rng.permutation(len(tasks)) if tasks[i].name != first.task]
    for name in [*others, *others, *[first.task] * len(forms)]:
        if len(group) == len(forms):
            break
        other = ask(rng, first, name, forms[len(group)])
        if other and other.stem not in {item.stem for item in group}:
            group.append(other)
    return group


def _place_of(split: str, medium: str, is_video: bool, scene: int, question: int) -> tuple[tuple[int, ...], int]:
    """Return the key of a scene's generator and its id; each question about a pair of images has a pair of its own."""
    key: tuple[int, ...] = (int(is_video), scene)
    if medium == "images" and question:
        return (*key, question), 2 * (scene + question * SPLIT_SIZES[split]) + int(is_video)
    return key, 2 * scene + int(is_video)


def _hidden_or_not(split: str, key: tuple[int, ...], item: Item, is_hardest: bool) -> Item:
    """Return the item, or, for some of those that are hardest to see, the same with everything out of sight."""
    if not is_hardest or rng_for(split, *key, 97).random() >= UNANSWERABLE_SHARE:
        return item
    scenes = tuple(hide(rng_for(split, *key, 98), scene) for scene in item.scenes)
    return replace(item, scenes=scenes, answerable=False)


# ------------------------------------------------------------------------------------------------- the first garden


def _first_item(split: str, is_video: bool, scene: int, question: int, num_questions: int) -> Item:
    """Return an item of the first garden: a question about a scene by their numbers."""
    tasks = VIDEO_TASKS if is_video else IMAGE_TASKS + PAIR_TASKS
    task, level = tasks[scene % len(tasks)], 1 + scene // len(tasks) % len(LEVELS)
    key, scene_id = _place_of(split, task.medium, is_video, scene, question)
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
    return _hidden_or_not(split, key, replace(item, scene_id=scene_id), level == len(LEVELS))


def _others(rng: np.random.Generator, item: Item) -> list[Item]:
    """Draw one question about an item's image for each other task that fits it."""
    drawn = (ask(rng, item, task.name, item.form) for task in IMAGE_TASKS if task.name != item.task)
    return [other for other in drawn if other]
