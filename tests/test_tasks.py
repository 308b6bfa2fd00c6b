"""The garden's world: scenes and their labels, pictures, the fifteen tasks, and the items that splits are made of.

Answers and reasoning are checked by a second reading: the question's own words are parsed here, and everything is
counted again from the scene's record without the tasks' code.
"""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, kruskal

from avis.answers import extract_answer
from avis.garden.render import frames, render
from avis.garden.scenes import (
    BACKGROUNDS,
    FILE_RATE,
    GLYPHS,
    KINDS,
    LABELS,
    LEVELS,
    MAX_ANIMALS,
    MOVES,
    RATE,
    SPLITS,
    TOKEN,
    WEARS,
    Animal,
    Scene,
    cast,
    clip_times,
    dense_labels,
    hide,
    place,
    rng_for,
)
from avis.garden.tasks import FORMS, HOPELESS, SIZES, SPLIT_SIZES, Item, item_for, make_item
from avis.video import Video, sample_frame_indices

LETTERS = "ABCD"
# Every answer of each task; those of `read` are too many to list.
VALUES = {
    "count": "01234",
    "exist": ("yes", "no"),
    "attribute": ("glasses", "hat", "scarf", "nothing"),
    "compare": "0123",
    "relation": ("left", "right", "above", "below"),
    "odd": ("rabbit", "bear", "cat", "duck"),
    "read": (),
    "price": tuple(map(str, range(6, 19))),
    "more": ("first", "second"),
    "differ": ("rabbit", "bear", "cat", "duck"),
    "motion": ("left", "right", "up", "down"),
    "hops": "1234",
    "appear": ("rabbit", "bear", "cat", "duck"),
    "passed": "12345",
    "changed": ("rabbit", "bear", "cat", "duck"),
}
PICTURE_TASKS = ("count", "exist", "attribute", "compare", "relation", "odd", "read", "price")
PAIR_TASKS = ("more", "differ")
CLIP_TASKS = ("motion", "hops", "appear", "passed", "changed")


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


# ------------------------------------------------------------------------------------- reading a question's own words

ANIMAL = r"(rabbit|bear|cat|duck|animal)"
KIND = r"(rabbit|bear|cat|duck)"
WORN = r"(glasses|a hat|a scarf|nothing)"
WHO = r"(leftmost|rightmost|topmost|lowest|(?:second|third) animal from the (?:left|top))(?: animal)?"
# Task, what is asked, the wording; the groups are the question's subjects in the order of `order`.
WORDINGS: tuple[tuple[str, str, str], ...] = (
    ("count", "", f"How many wooden {ANIMAL}s are there\\?"),
    ("count", "", f"Count the {ANIMAL}s\\."),
    ("count", "", f"What is the number of {ANIMAL}s\\?"),
    ("count", "", f"How many wooden {ANIMAL}s are wearing {WORN}\\?"),
    ("count", "", f"How many {ANIMAL}s wear {WORN}\\?"),
    ("count", "", f"Count the {ANIMAL}s that wear {WORN}\\."),
    ("exist", "", f"Is there a {KIND} wearing {WORN}\\?"),
    ("exist", "", f"Does any {KIND} wear {WORN}\\?"),
    ("exist", "", f"Can you see a wooden {KIND} that wears {WORN}\\?"),
    ("attribute", "", f"What does the {WHO} wear\\?"),
    ("attribute", "", f"What is the {WHO} wearing\\?"),
    ("attribute", "", f"Look at the {WHO}: what does it wear\\?"),
    ("compare", "", f"How many more {KIND}s than {KIND}s are there\\?"),
    ("compare", "", f"By how many do the {KIND}s outnumber the {KIND}s\\?"),
    ("compare", "", f"Count {KIND}s and {KIND}s: how many more \\1s are there\\?"),
    ("relation", "", f"Where is the {KIND}, seen from the {KIND}\\?"),
    ("relation", "reversed", f"On which side of the {KIND} is the {KIND}\\?"),
    ("relation", "", f"Is the {KIND} left, right, above or below the {KIND}\\?"),
    ("odd", "kind", r"All animals but one are of the same kind\. Which kind is the other\?"),
    ("odd", "kind", r"Which kind of animal is the odd one out\?"),
    ("odd", "kind", r"One animal is of another kind than the rest\. What is it\?"),
    ("odd", "wears", r"All animals but one wear the same\. Which animal is the other\?"),
    ("odd", "wears", r"Going by what they wear, which animal is the odd one out\?"),
    ("odd", "wears", r"One animal does not wear the same as the rest\. What is it\?"),
    ("read", "", r"What is written on the sign\?"),
    ("read", "", r"What does the sign say\?"),
    ("read", "", r"Read the sign\."),
    ("price", "", f"What do the {KIND} and the {KIND} cost together\\?"),
    ("price", "", f"What is the price of the {KIND} and the {KIND}\\?"),
    ("price", "", f"Add up the tags of the {KIND} and the {KIND}\\."),
    ("price", "", r"What do all animals cost together\?"),
    ("price", "", r"What is the price of all animals\?"),
    ("price", "", r"Add up the tags of all animals\."),
    ("more", "", f"Which picture has more {KIND}s, the first or the second\\?"),
    ("more", "", f"Are there more {KIND}s in the first or in the second picture\\?"),
    ("more", "", f"Count the {KIND}s of each picture\\. Which has more\\?"),
    ("differ", "", r"Which animal wears something else in the second picture\?"),
    ("differ", "", r"What differs between the pictures\? Name the animal\."),
    ("differ", "", r"One animal is not dressed the same in both pictures\. Which one\?"),
    ("motion", "", f"In which direction does the {KIND} move\\?"),
    ("motion", "", f"Which way does the {KIND} go\\?"),
    ("motion", "", f"Where is the {KIND} going: left, right, up or down\\?"),
    ("hops", "", f"How many times does the {KIND} hop\\?"),
    ("hops", "", f"Count the hops of the {KIND}\\."),
    ("hops", "", f"How often does the {KIND} jump\\?"),
    ("appear", "", r"Which animal comes (first|second|last)\?"),
    ("appear", "", r"Which kind of animal appears (first|second|last)\?"),
    ("appear", "", r"Name the animal that walks in (first|second|last)\."),
    ("passed", "", r"How many animals pass by\?"),
    ("passed", "", r"How many different animals walk through the picture\?"),
    ("passed", "", r"Count the animals that cross the picture\."),
    ("changed", "", r"Which animal changes what it wears\?"),
    ("changed", "", r"Whose clothes are not the same at the end\?"),
    ("changed", "", r"One animal wears something else at the end\. Which one\?"),
)
COMPILED = tuple((task, how, re.compile(wording)) for task, how, wording in WORDINGS)


class Reading(NamedTuple):
    """What a question's words ask: the task, its subjects, and which of `WORDINGS` it is."""

    task: str
    subjects: tuple[str, ...]
    wording: int


def read_question(question: str) -> Reading:
    """The one way in which a question (without options) can be read."""
    found = []
    for number, (task, how, wording) in enumerate(COMPILED):
        if match := wording.fullmatch(question):
            subjects = match.groups()[::-1] if how == "reversed" else match.groups()
            found.append(Reading(task, (how,) if task == "odd" else subjects, number))
    assert len(found) == 1, f"{len(found)} readings of {question!r}"
    return found[0]


# ------------------------------------------------------------------------------------ counting again from the record


def right_of_way(scene: Scene, axis: str) -> list[Animal]:
    """The animals in the order of their place from the left or from the top."""
    return sorted(scene.animals, key=lambda a: {"left": a.x, "top": a.y}[axis])


def fits(animal: Animal, kind: str, worn: str | None) -> bool:
    """Whether an animal is what a question's words name, as `cat` and `a hat`."""
    return kind in ("animal", animal.kind) and (worn is None or worn.removeprefix("a ") == animal.wears)


def the_only(scene: Scene, kind: str) -> Animal:
    """The animal that "the cat" names: a question must not leave open which."""
    named = [animal for animal in scene.animals if animal.kind == kind]
    assert len(named) == 1, f"the {kind}: {len(named)} of them"
    return named[0]


def path_of(scene: Scene, animal: Animal, step: float = 0.01) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds of a clip, and where the animal's feet are at each."""
    times = np.arange(0, scene.seconds, step)
    points = animal.track or ((0.0, animal.x, animal.y),)
    seconds, xs, ys = (np.array(values) for values in zip(*points, strict=True))
    return times, np.interp(times, seconds, xs), np.interp(times, seconds, ys)


def in_view(scene: Scene, animal: Animal) -> np.ndarray:
    """At which moments some of the animal is inside the picture."""
    _, x, _ = path_of(scene, animal)
    return (x > -0.375 * animal.size) & (x < scene.width + 0.375 * animal.size)


def where_chosen(scene: Scene, who: str) -> tuple[str, int]:
    """The side that "the third animal from the left" counts from, and how many come before it."""
    edges = {"leftmost": ("left", 0), "topmost": ("top", 0), "rightmost": ("left", -1), "lowest": ("top", -1)}
    if who in edges:
        return edges[who]
    number, *_, side = who.split()
    return side, {"second": 1, "third": 2}[number]


def count_again(reading: Reading, scenes: tuple[Scene, ...]) -> str:
    """The answer to a question, from its words and the scenes' record alone."""
    task, subjects, _ = reading
    scene = scenes[0]
    if task == "count":
        return str(len([a for a in scene.animals if fits(a, subjects[0], (*subjects, None)[1])]))
    if task == "exist":
        return "yes" if [a for a in scene.animals if fits(a, *subjects)] else "no"
    if task == "attribute":
        side, number = where_chosen(scene, subjects[0])
        return right_of_way(scene, side)[number].wears
    if task == "compare":
        kinds = Counter(a.kind for a in scene.animals)
        return str(kinds[subjects[0]] - kinds[subjects[1]])
    if task == "relation":
        one, other = the_only(scene, subjects[0]), the_only(scene, subjects[1])
        dx, dy = one.x - other.x, one.y - other.y
        assert max(abs(dx), abs(dy)) > 1.5 * min(abs(dx), abs(dy)), "diagonal: two answers would do"
        return ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("above" if dy < 0 else "below")
    if task == "odd":
        told = [(a.kind, getattr(a, subjects[0])) for a in scene.animals]
        assert len(told) > 2
        rest = [{other for m, (_, other) in enumerate(told) if m != n} for n in range(len(told))]
        odd = [kind for n, (kind, own) in enumerate(told) if len(rest[n]) == 1 and own not in rest[n]]
        assert len(odd) == 1, f"{len(odd)} odd ones"
        return odd[0]
    if task == "read":
        return scene.sign.text
    if task == "price":
        animals = [the_only(scene, kind) for kind in subjects] or scene.animals
        assert all(1 <= animal.price <= 9 for animal in animals), "a tag is missing"
        return str(sum(animal.price for animal in animals))
    if task == "more":
        first, second = (sum(a.kind == subjects[0] for a in s.animals) for s in scenes)
        assert first != second
        return "first" if first > second else "second"
    if task == "differ":
        first, second = ({(a.x, a.y, a.kind): a.wears for a in s.animals} for s in scenes)
        assert first.keys() == second.keys()
        (changed,) = [kind for (x, y, kind), wears in first.items() if second[x, y, kind] != wears]
        return changed
    if task == "motion":
        _, x, y = path_of(scene, the_only(scene, subjects[0]))
        dx, dy = x[-1] - x[0], y[-1] - y[0]
        assert max(abs(dx), abs(dy)) > 0.1 * scene.height and min(abs(dx), abs(dy)) == 0
        return ("left" if dx < 0 else "right") if dx else ("up" if dy < 0 else "down")
    if task == "hops":
        animal = the_only(scene, subjects[0])
        times, _, _ = path_of(scene, animal)
        flies = np.array([any(s < t < s + animal.airtime for s in animal.hops) for t in times])
        assert not flies[0] and not flies[-1], "a hop is cut off"
        return str(int((flies[1:] & ~flies[:-1]).sum()))
    if task == "appear":
        seen = {animal.kind: int(in_view(scene, animal).argmax()) for animal in scene.animals}
        assert 0 < min(seen.values()) and len(set(seen.values())) == len(seen) == len(scene.animals)
        return sorted(seen, key=seen.get)[{"first": 0, "second": 1, "last": -1}[subjects[0]]]
    if task == "passed":
        whole = [in_view(scene, animal) for animal in scene.animals]
        assert all(seen.any() and not seen[0] and not seen[-1] for seen in whole), "somebody stays"
        assert all(len({point[1] > 0 for point in animal.track}) == 2 for animal in scene.animals), "somebody turns"
        return str(len(whole))
    if task == "changed":
        (changed,) = [a.kind for a in scene.animals if a.later not in ("", a.wears) and 0 < a.changes < scene.seconds]
        return changed
    raise AssertionError(task)


# ------------------------------------------------------------------------------------------------- reading a trace


def numbered(steps: list[str], width: int) -> list[tuple[str, ...]]:
    """Steps of `width` words, the first a running number from 1."""
    words = [tuple(step.split(" ")) for step in steps]
    assert all(len(step) == width for step in words), steps
    assert [step[0] for step in words] == [str(n) for n in range(1, len(words) + 1)], steps
    return [step[1:] for step in words]


def trace_style(item: Item, reading: Reading) -> str:
    """Check every step of an item's trace against the record; which of the task's ways of reasoning it is."""
    tail = f"; {item.value}" + (f" {item.answer}" if item.form == "choice" else "")
    assert item.trace.endswith(tail)
    body, scene, subjects = item.trace[: -len(tail)], item.scenes[0], reading.subjects
    word, found, rest = body.partition(": ")
    if not found or word not in ("left", "top"):
        word, rest = "", body
    checked = None
    if "; check: " in rest:
        rest, checked = rest.split("; check: ")
    steps = rest.split(", ")
    animals = right_of_way(scene, word) if word else list(scene.animals)
    task, style = reading.task, word
    if task == "count":
        told = numbered(steps, 4)
        hits = [fits(a, subjects[0], (*subjects, None)[1]) for a in animals]
        assert [t[:2] for t in told] == [(a.kind, a.wears) for a in animals]
        assert [t[2] for t in told] == [str(n) for n in np.cumsum(hits)]
        if checked is not None:
            style += " checked"
            assert checked == (", ".join(str(n) for n, hit in enumerate(hits, start=1) if hit) or "nothing")
    elif task == "exist":
        told = numbered(steps, 4)
        hits = [fits(a, *subjects) for a in animals]
        seen = animals[: hits.index(True) + 1] if True in hits else animals
        assert [t[:2] for t in told] == [(a.kind, a.wears) for a in seen]
        assert [t[2] == "yes" for t in told] == hits[: len(seen)] and {t[2] for t in told} <= {"yes", "no"}
    elif task == "attribute":
        side, number = where_chosen(scene, subjects[0])
        number %= len(animals)
        assert word == side
        expected = [f"{n} {a.kind} {a.wears}" for n, a in enumerate(animals, start=1)][: number + 1]
        assert steps in (expected, expected[-1:])
        style = "only" if number and len(steps) == 1 else "all"
    elif task == "compare":
        told = numbered(steps, 4)
        assert [t[0] for t in told] == [a.kind for a in animals]
        for column, kind in enumerate(subjects, start=1):
            assert [t[column] for t in told] == [str(n) for n in np.cumsum([a.kind == kind for a in animals])]
    elif task == "relation":
        places = [{a.kind: n for n, a in enumerate(right_of_way(scene, side), start=1)} for side in ("left", "top")]
        expected = [f"{kind} {places[0][kind]} {places[1][kind]}" for kind in subjects]
        style = "forward" if steps == expected else "backward"
        assert steps in (expected, expected[::-1])
    elif task == "odd":
        told = numbered(steps, 2 if subjects[0] == "kind" else 3)
        assert told == [(a.kind,) if subjects[0] == "kind" else (a.kind, a.wears) for a in animals]
    elif task == "read":
        style = "numbered" if ", " in body else "plain"
        letters = numbered(steps, 2) if style == "numbered" else [(letter,) for letter in body.split(" ")]
        assert "".join(letter for (letter,) in letters) == scene.sign.text
    elif task == "price":
        told = [step.split(" ") for step in steps]
        if subjects:
            style = "forward" if [t[0] for t in told] == list(subjects) else "backward"
            assert sorted(t[0] for t in told) == sorted(subjects)
            prices = [the_only(scene, t[0]).price for t in told]
        else:
            told = [["", *t] for t in numbered(steps, 3)]
            prices = [a.price for a in animals]
            assert word
        assert [t[1:] for t in told] == [[str(p), str(s)] for p, s in zip(prices, np.cumsum(prices), strict=True)]
    elif task == "more":
        parts = re.fullmatch("first (.*), second (.*)", rest).groups()
        for part, shown in zip(parts, item.scenes, strict=True):
            told, ordered = numbered(part.split(", "), 3), right_of_way(shown, word)
            assert [t[0] for t in told] == [a.kind for a in ordered]
            assert [t[1] for t in told] == [str(n) for n in np.cumsum([a.kind == subjects[0] for a in ordered])]
    elif task in ("differ", "changed"):
        told = numbered(steps, 4)
        later = {(a.x, a.y): a.wears for a in item.scenes[1].animals} if task == "differ" else {}
        pairs = [(a.kind, a.wears, later.get((a.x, a.y), a.later or a.wears)) for a in animals]
        assert told == pairs[: len(told)]
        assert [before != after for _, before, after in told] == [False] * (len(told) - 1) + [True]
    elif task == "motion":
        starts = {a.kind: float(path_of(scene, a)[1][0]) for a in scene.animals}
        number = 1 + sum(path_of(scene, a)[1][0] < starts[subjects[0]] for a in scene.animals)
        assert steps == [f"{number} {subjects[0]} {item.value}" if word else f"{subjects[0]} {item.value}"]
    elif task == "hops":
        told, animal = numbered(steps, 3), the_only(scene, subjects[0])

        def height(second: float) -> float:
            since = [(second - s) / animal.airtime for s in animal.hops if s < second < s + animal.airtime]
            return math.sin(math.pi * since[0]) * 0.45 if since else 0.0

        times = clip_times(scene.seconds).tolist()
        assert len(told) == len(times) / 2
        for (going, begun), first, last in zip(told, times[::2], times[1::2], strict=True):
            risen = height(last) - height(first)
            assert going == ("still" if abs(risen) <= 0.02 else "up" if risen > 0 else "down")
            assert begun == str(sum(s < last for s in animal.hops))
    elif task == "appear":
        seen = sorted(scene.animals, key=lambda a: int(in_view(scene, a).argmax()))
        assert numbered(steps, 2) == [(a.kind,) for a in seen[: len(steps)]]
        least = {"first": 1, "second": 2, "last": len(seen)}[subjects[0]]
        assert len(steps) in (least, len(seen))
        style = "all" if len(steps) == len(seen) else "so far"
    elif task == "passed":
        seen = sorted(scene.animals, key=lambda a: a.track[0][0])
        assert numbered(steps, 2) == [(a.kind,) for a in seen]
    return style


STYLES = {
    "count": {"left", "top", "left checked", "top checked"},
    "attribute": {"all", "only"},
    "relation": {"forward", "backward"},
    "read": {"numbered", "plain"},
    "price": {"forward", "backward", "left", "top"},
    "motion": {"", "left"},
    "hops": {""},
    "appear": {"all", "so far"},
    "passed": {""},
}  # the others: read from the left and from the top


@pytest.fixture(scope="module", params=tuple(VALUES))
def items(request) -> list[Item]:
    """Sixty items of one task at each level and in each form."""
    number = list(VALUES).index(request.param)
    return [
        make_item(rng_for("dev", 7000, number, level, FORMS.index(form), index), request.param, level, form)
        for level in range(1, 6)
        for form in FORMS
        for index in range(60)
    ]


def stem(item: Item) -> str:
    return item.question.split("\n")[0]


def assert_answer_is_right(item: Item, reading: Reading):
    assert reading.task == item.task
    value = count_again(reading, item.scenes)
    assert item.value == value, f"{item.question!r} is {value}, not {item.value}: {item.scenes}"
    if VALUES[item.task]:
        assert value in VALUES[item.task]
    if item.form == "free":
        assert (item.answer, item.options, item.question) == (value, (), stem(item))
        return
    assert 2 <= len(item.options) <= 4 and len(set(item.options)) == len(item.options)
    assert item.question == stem(item) + "\n" + " ".join(
        f"{letter}. {option}" for letter, option in zip(LETTERS, item.options, strict=False)
    )
    assert item.options[LETTERS.index(item.answer)] == value
    assert not VALUES[item.task] or set(item.options) <= set(VALUES[item.task])


def test_answers_are_what_the_record_says(items):
    """Guards against: an answer that its own picture contradicts, a question with two right answers, a wording that
    means something else than its sisters, and multiple choice without, or with twice, the right option."""
    readings = [read_question(stem(item)) for item in items]
    for item, reading in zip(items, readings, strict=True):
        assert_answer_is_right(item, reading)
    task = items[0].task
    assert {reading.wording for reading in readings} == {n for n, row in enumerate(WORDINGS) if row[0] == task}
    assert len({item.value for item in items}) >= max(2, len(VALUES[task]))


def test_traces_are_true_step_by_step(items):
    """Guards against: reasoning that skips an animal, leaves the reading order, counts or adds wrongly, or ends on
    another answer; and one and the same path for every rollout to take."""
    styles = {trace_style(item, read_question(stem(item))) for item in items}
    assert styles == STYLES.get(items[0].task, {"left", "top"})


def test_responses_are_what_the_vote_reads(items):
    """Guards against: a target that the vote cannot read, or thinking in the form that is asked not to think."""
    for item in items[::10]:
        assert item.trace in item.response() and "think" not in item.response(enable_thinking=False)
        assert extract_answer(item.response(True)) == extract_answer(item.response(False)) == item.answer


def test_unknown_items_are_refused():
    """Guards against: a misspelt task, level or form answered with items of another one."""
    for wrong in (("counting", 1, "free"), ("count", 0, "free"), ("count", 6, "free"), ("count", 1, "open")):
        with pytest.raises(ValueError, match="no such item"):
            make_item(rng_for("dev", 1), *wrong)


# ------------------------------------------------------------------------------------ what can be had without looking


@dataclass(frozen=True)
class Asked:
    """A question with its answer, and what a glance at its picture tells."""

    stem: str
    options: tuple[str, ...]
    value: str
    answer: str
    level: int
    size: tuple[int, int] = (0, 0)
    background: str = ""
    fullness: float = 0.0


ASKED = 1250  # of a task in each form


def what_is_asked(item: Item) -> tuple:
    """The first fields of `Asked`."""
    return stem(item), item.options, item.value, item.answer, item.level


@lru_cache(maxsize=None)
def asked(task: str, form: str) -> tuple[Asked, ...]:
    """Questions of a task in one form, over all levels; the scenes themselves are not kept."""
    found = []
    for index in range(ASKED):
        rng = rng_for("dev", 7100 + FORMS.index(form), list(VALUES).index(task), index)
        item = make_item(rng, task, 1 + index % len(LEVELS), form)
        scene = item.scenes[0]
        strewn = sum(prop.look in ("flower", "tuft", "stone") for prop in scene.props)
        size = (scene.width // TOKEN, scene.height // TOKEN)
        found.append(Asked(*what_is_asked(item), size, scene.background, strewn / (size[0] * size[1])))
    return tuple(found)


def assert_even(seen: Counter, expected: tuple | str, total: int):
    """Each share lies within five standard errors of an even draw: odds of 6e-7 against a fair one."""
    even = 1 / len(expected)
    allowed = 5 * (total * even * (1 - even)) ** 0.5
    assert set(seen) == set(expected)
    assert all(abs(n - total * even) < allowed for n in seen.values()), seen


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", VALUES)
def test_answers_are_balanced(task, form):
    """Guards against: scenes drawn before answers (73% "0"), answers that follow the level, and an option that stands
    at one letter more often than at another: a blind guess would look like skill."""
    rows = asked(task, form)
    if VALUES[task]:
        assert_even(Counter(row.value for row in rows), VALUES[task], len(rows))
        for level in range(1, 6):
            own = [row.value for row in rows if row.level == level]
            assert_even(Counter(own), VALUES[task], len(own))
    else:
        glyphs = Counter(letter for row in rows for letter in row.value)
        assert_even(glyphs, GLYPHS, glyphs.total())
    if form == "choice":
        assert len({len(row.options) for row in rows}) == 1
        assert_even(Counter(row.answer for row in rows), LETTERS[: len(rows[0].options)], len(rows))


def words_of(row: Asked) -> set[str]:
    """What a blind reader of a free question goes by: its words, its pairs of words, and the whole of it."""
    words = re.findall(r"\w+", row.stem.lower())
    return {*words, *zip(words, words[1:], strict=False), row.stem}


def option_marks(row: Asked) -> list[set]:
    """What tells a blind reader one option from the others: words, letter, rank among them, and likeness to them."""
    words = words_of(row)
    key = (lambda o: int(o)) if all(o.isdigit() for o in row.options) else str
    ranks = sorted(row.options, key=key)
    alike = [
        sum(a == b for other in row.options for a, b in zip(option, other, strict=False)) for option in row.options
    ]
    marks = []
    for letter, option, like in zip(LETTERS, row.options, alike, strict=False):
        own = {("letter", letter), ("value", option), ("rank", ranks.index(option)), ("like", like == max(alike))}
        marks.append(own | {(option, word) for word in words} | {(option, other) for other in row.options})
    return marks


def log_odds(bags: list[set], right: list[bool]) -> tuple[dict, float]:
    """Naive Bayes of two classes: what each mark adds for the class `right`, and what its absence leaves."""
    yes, no = Counter(), Counter()
    for bag, is_right in zip(bags, right, strict=True):
        (yes if is_right else no).update(bag)
    count, total = sum(right), len(right)
    weights = {m: math.log((yes[m] + 1) / (count + 2)) - math.log((no[m] + 1) / (total - count + 2)) for m in yes | no}
    return weights, math.log((count + 1) / (total - count + 1))


def score(bag: set, weights: dict, prior: float) -> float:
    return prior + sum(weights.get(mark, 0.0) for mark in bag)


def commonest(rows: Sequence[Asked], key) -> dict:
    """The most common answer to each question text, or whatever `key` makes of a question."""
    answers = defaultdict(Counter)
    for row in rows:
        answers[key(row)][row.answer] += 1
    return {text: seen.most_common(1)[0][0] for text, seen in answers.items()}


def assert_blind_readers_fail(learnt: Sequence[Asked], tested: Sequence[Asked]):
    """Blind readers learn from some questions and are tested on others: a naive Bayes over the question's words (for
    multiple choice: over each option's marks), and the most common answer to each text. None may beat the best
    constant guess by more than 2 points and three standard errors of a share of the tested questions."""
    choice = bool(tested[0].options)
    constant = Counter(row.answer for row in tested).most_common(1)[0][1] / len(tested)
    if choice:
        marks = [(mark, row.options[n] == row.value) for row in learnt for n, mark in enumerate(option_marks(row))]
        model = log_odds([mark for mark, _ in marks], [right for _, right in marks])
        guesses = []
        for row in tested:
            scores = [score(mark, *model) for mark in option_marks(row)]
            guesses.append(LETTERS[scores.index(max(scores))])
    else:
        bags = [words_of(row) for row in learnt]
        values = Counter(row.value for row in learnt).most_common(50)  # of signs hardly one comes twice
        models = {value: log_odds(bags, [row.value == value for row in learnt]) for value, _ in values}
        guesses = [max(models, key=lambda v: score(words_of(row), *models[v])) for row in tested]
    readers = {"bayes": guesses}
    for name, key in (("stem", lambda row: row.stem), ("text", lambda row: (row.stem, row.options))):
        answers = commonest(learnt, key)
        readers[name] = [answers.get(key(row), "") for row in tested]
    allowed = constant + 0.02 + 3 * (max(constant, 0.01) * (1 - constant) / len(tested)) ** 0.5
    for name, answers in readers.items():
        blind = sum(guess == row.answer for guess, row in zip(answers, tested, strict=True)) / len(tested)
        assert blind <= allowed, f"{name}: {blind:.3f} blind, {constant:.3f} constant, {allowed:.3f} allowed"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", VALUES)
def test_questions_do_not_tell_their_answers(task, form):
    """Guards against: a wording, a subject or a set of options that goes with an answer, so that a model scores
    without looking. One half of a task's 2,500 questions is learnt from, the other half tested, each form apart."""
    rows = asked(task, form)
    assert_blind_readers_fail(rows[: ASKED // 2], rows[ASKED // 2 :])


@pytest.mark.parametrize("by", ["level", "task"])
@pytest.mark.parametrize("tasks", [PICTURE_TASKS, PAIR_TASKS, CLIP_TASKS], ids=["image", "images", "video"])
def test_level_and_task_cannot_be_read_off_the_ground(tasks, by):
    """Guards against: large or full pictures at hard levels, or one ground for one task, by which predicting
    difficulty would be reading off the paper. The p-value of an even draw is below 1e-6 once in a million."""
    made = [(task, row) for task in tasks for form in FORMS for row in asked(task, form)]
    rows = [(row, row.level if by == "level" else task) for task, row in made]
    groups = sorted({group for _, group in rows})
    size = SIZES[{PICTURE_TASKS: "image", PAIR_TASKS: "images", CLIP_TASKS: "video"}[tasks]]
    for what, values in (("size", size), ("background", BACKGROUNDS)):
        table = Counter((getattr(row, what), group) for row, group in rows)
        assert {value for value, _ in table} == set(values)
        found = chi2_contingency([[table[value, group] for value in values] for group in groups])
        assert found.pvalue > 1e-6, f"{what} follows the {by}"
    full = kruskal(*([row.fullness for row, group in rows if group == own] for own in groups))
    assert full.pvalue > 1e-6, f"fullness follows the {by}"
    # And they vary: from lawns that are mostly empty to full ones.
    assert np.quantile([row.fullness for row, _ in rows], 0.3) < 0.02
    assert np.quantile([row.fullness for row, _ in rows], 0.9) > 0.05


# ----------------------------------------------------------------------------------------------- the same everywhere


def fingerprints() -> dict[str, str]:
    """Hashes of what must be the same in every process; this file is also the program of the other process."""
    made = [item_for(split, index) for split in SPLITS for index in range(40)]
    scenes = [scene for item in made[:20] for scene in item.scenes]
    stills = [scene for scene in scenes if not scene.seconds][:10]
    clips = [scene for scene in scenes if scene.seconds][:2]
    return {
        "items": digest(repr(made).encode()),
        "scenes": digest(repr(scenes).encode()),
        "labels": digest(*(dense_labels(scene).tobytes() for scene in scenes)),
        "pictures": digest(*(render(scene).tobytes() for scene in stills)),
        "clips": digest(*(next(frames(scene, [1.5])).tobytes() for scene in clips)),
    }


def test_another_process_makes_the_same():
    """Guards against: `hash()` of a string, the order of a set, or a global generator in scene, picture, question or
    answer, by which training could not be resumed and a split would be another one in every process."""
    environment = os.environ | {"PYTHONHASHSEED": "4711"}
    run = subprocess.run([sys.executable, __file__], check=True, capture_output=True, text=True, env=environment)
    assert json.loads(run.stdout) == fingerprints()


# ------------------------------------------------------------------------------------------------------------ splits


@lru_cache(maxsize=1)
def calibration() -> tuple[Item, ...]:
    """The whole calibration split (about ten seconds)."""
    return tuple(item_for("calibration", index) for index in range(SPLIT_SIZES["calibration"]))


def test_sizes_and_turns_of_splits():
    """Guards against: a split that is smaller than promised, runs on beyond its end into unplanned items, or leaves
    out a task or a level."""
    assert SPLIT_SIZES == {"train": 100_000, "calibration": 5000, "dev": 1000, "test": 2500}
    for split, size in SPLIT_SIZES.items():
        for index in (-1, size):
            with pytest.raises(IndexError):
                item_for(split, index)
        item_for(split, size - 1)
    items = [item_for("dev", index) for index in range(SPLIT_SIZES["dev"])]
    assert sum(item.medium == "video" for item in items) == 200
    cells = Counter((item.task, item.level) for item in items)
    assert len(cells) == 15 * 5
    assert {cells[task, level] for task in PICTURE_TASKS + PAIR_TASKS for level in range(1, 6)} == {16}
    assert {cells[task, level] for task in CLIP_TASKS for level in range(1, 6)} == {8}
    assert abs(sum(item.form == "choice" for item in items) - 500) < 5 * 250**0.5
    assert len({item.scene_id for item in items}) == len(items)
    for item in items:
        assert_answer_is_right(item, read_question(stem(item)))
        trace_style(item, read_question(stem(item)))
    with pytest.raises(ValueError, match="one of train, calibration, dev, test"):
        item_for("validation", 3)


def test_calibration_asks_several_tasks_about_each_picture():
    """Guards against: calibration questions that are all of one task a picture, so that difficulty is the task's;
    free answers among them; a question asked twice; scene ids that join pictures which differ."""
    items = calibration()
    assert Counter(item.medium == "video" for item in items) == {False: 4000, True: 1000}
    assert all(item.form == "choice" for item in items)
    shown = defaultdict(list)
    for item in items:
        shown[item.scene_id].append(item)
    for group in shown.values():
        assert len({repr(item.scenes) for item in group}) == 1
        assert len({item.answerable for item in group}) == len({item.level for item in group}) == 1
        if group[0].medium == "image":
            assert len(group) == 4 and len({item.task for item in group}) >= 3
            assert len({stem(item) for item in group}) == 4
        else:
            assert len(group) == 1
    assert len({repr(group[0].scenes) for group in shown.values()}) == len(shown)


def test_later_questions_about_a_picture_are_right():
    """Guards against: questions that do not fit the picture of another task (two animals where one is asked for, a tag
    or a sign that is missing), and a right option that stands out because no such question has that answer."""
    for item in calibration():
        reading = read_question(stem(item))
        assert_answer_is_right(item, reading)
        trace_style(item, reading)


@pytest.mark.parametrize("task", PICTURE_TASKS + PAIR_TASKS)
def test_calibration_questions_do_not_tell_their_answers(task):
    """Guards against: later questions about a picture whose answers are what most pictures have (none, or one, of most
    things), so that what is fitted on calibration takes a good guess for an easy picture."""
    rows = [Asked(*what_is_asked(item)) for item in calibration() if item.task == task]
    assert_blind_readers_fail(rows[::2], rows[1::2])


def test_splits_share_nothing():
    """Guards against: splits that are shifted windows of one stream, so that test pictures were trained on."""
    items = {split: [item_for(split, index) for index in range(150)] for split in SPLITS}
    bare = [repr(tuple(replace(scene, seed=0) for scene in item.scenes)) for made in items.values() for item in made]
    of_pictures = {item.scene_id for item in items["calibration"] if item.medium != "video"}
    # Calibration alone shows a picture several times.
    repeated = sum(item.medium != "video" for item in items["calibration"]) - len(of_pictures)
    assert repeated > 50 and len(set(bare)) == len(bare) - repeated
    first = [made[index].scenes[0] for made in items.values() for index in (0, 4, 9, 20)]
    assert len({render(scene, 0.5).tobytes() for scene in first}) == len(first)


def test_hopeless_items_are_few_and_labelled():
    """Guards against: an unanswerable question that counts as answerable (or the other way round), hopeless items
    among easy levels, and none or too many of them at the hardest."""
    shown = {}
    for split, made in (("calibration", calibration()), ("test", (item_for("test", n) for n in range(2500)))):
        for item in made:
            hidden = {scene.hidden for scene in item.scenes}
            assert item.answerable == (hidden == {""}) and len(hidden) == 1
            assert item.answerable or item.level == 5
            if item.level == 5:
                shown[split, item.scene_id] = (hidden.pop(), item.medium)
    count = len(shown)
    hopeless = [(hidden, medium) for hidden, medium in shown.values() if hidden]
    assert abs(len(hopeless) - HOPELESS * count) < 5 * (count * HOPELESS * (1 - HOPELESS)) ** 0.5
    pictures = [hidden for hidden, medium in hopeless if medium != "video"]
    assert_even(Counter(pictures), ("bushes", "far"), len(pictures))


def disguised(scene: Scene) -> Scene:
    """The scene with every animal another one, that wears and costs something else, and another text on the sign."""

    def turned(values, value):
        return values[(values.index(value) + 1) % len(values)]

    animals = tuple(
        replace(a, kind=turned(KINDS, a.kind), wears=turned(WEARS, a.wears), price=a.price % 9 + 1 if a.price else 0)
        for a in scene.animals
    )
    sign = scene.sign and replace(scene.sign, text="".join(turned(GLYPHS, letter) for letter in scene.sign.text))
    return replace(scene, animals=animals, sign=sign)


def pixels(scene: Scene, second: float = 0.0) -> np.ndarray:
    return np.asarray(render(scene, second)).astype(int)


def plain(scene: Scene) -> Scene:
    """The scene in even light without noise, all animals of one wood: no pixel changes but by what is there."""
    return replace(scene, light=1.0, noise=0.0, animals=tuple(replace(a, tone="oak", colour=0) for a in scene.animals))


HIDDEN_TASKS = ("count", "price", "read", "attribute", "odd", "relation")


@pytest.mark.parametrize("hidden", ["bushes", "far"])
def test_hidden_pictures_tell_nothing(hidden):
    """Guards against: an item labelled unanswerable whose animals, tags or letters still show: behind a gap in a
    hedge or beside it, or as a coloured pixel far away."""
    for number, task in enumerate(HIDDEN_TASKS * 2):
        scene = plain(make_item(rng_for("dev", 7200, number), task, 5).scenes[0])
        other = disguised(scene)
        assert (pixels(scene) != pixels(other)).any(axis=2).sum() > 1000, "nothing is to be hidden here"
        differ = (pixels(replace(scene, hidden=hidden)) != pixels(replace(other, hidden=hidden))).any(axis=2).sum()
        assert differ == 0, f"{task}: {differ} pixels"
        assert not dense_labels(replace(scene, hidden=hidden)).any()


def with_another_answer(task: str, scene: Scene) -> Scene:
    """A clip that only its answer tells from this one: the others' ways, or hops, or number, or kinds, or clothes."""
    animals = list(scene.animals)
    if task == "motion":
        back = [tuple((t, x, y) for (t, *_), (_, x, y) in zip(a.track, a.track[::-1], strict=True)) for a in animals]
        animals = [replace(animal, track=track) for animal, track in zip(animals, back, strict=True)]
    elif task == "hops":
        animals = [replace(animal, hops=animal.hops[:-1]) for animal in animals]
    elif task == "passed":
        animals = animals[:-1]
    elif task == "appear":
        animals = [replace(a, kind=b.kind) for a, b in zip(animals, animals[1:] + animals[:1], strict=True)]
    elif task == "changed":
        changes = [(animal.later, animal.changes) for animal in animals]
        turned = zip(animals, changes[1:] + changes[:1], strict=True)
        animals = [replace(animal, later=later, changes=when) for animal, (later, when) in turned]
    return replace(scene, animals=tuple(animals))


@pytest.mark.parametrize("task", CLIP_TASKS)
def test_hidden_clips_tell_nothing(task):
    """Guards against: a clip labelled unanswerable in which hedges walk and hop, so that motion, hops and how many
    pass can be seen as well as without them."""
    scene = plain(make_item(rng_for("dev", 7300, 1), task, 5).scenes[0])
    other = with_another_answer(task, scene)
    times = clip_times(scene.seconds)[1::2]

    def most(hidden: str) -> int:
        pairs = ((replace(scene, hidden=hidden), replace(other, hidden=hidden), second) for second in times)
        return max(int((pixels(one, at) != pixels(two, at)).any(axis=2).sum()) for one, two, at in pairs)

    assert most("") > 50, "nothing is to be hidden here"
    hidden = {hide(rng_for("dev", 7301, n), scene).hidden for n in range(20)}
    assert all(most(name) == 0 for name in hidden), f"{hidden} lets the answer through"


def test_hiding_keeps_the_record():
    """Guards against: an unanswerable item whose recorded answer is not that of its scene any more."""
    rng = rng_for("dev", 7400)
    scene = place(rng, LEVELS[4], 448, 448, cast(rng, 5))
    seen = {hide(rng, scene).hidden for _ in range(20)}
    assert seen == {"bushes", "far"} and replace(hide(rng, scene), hidden="") == scene


# ------------------------------------------------------------------------------------------------- scenes and labels


def overlap_of(one: Animal, other: Animal) -> float:
    """How deep two animals' boxes stand into each other, as a share of what lies between their centres when they touch;
    below 0: they stand apart."""
    across = abs(one.x - other.x) / (0.375 * (one.size + other.size))
    along = abs(one.y - other.y) / (0.5 * (one.size + other.size))
    return 1 - max(across, along)


def assert_well_placed(scene: Scene, overlap: float):
    for animal in scene.animals:
        assert 0.375 * animal.size - 1e-6 <= animal.x <= scene.width - 0.375 * animal.size + 1e-6
        assert 0.5 * animal.size - 1e-6 <= animal.y <= scene.height - 0.5 * animal.size + 1e-6
    for one, other in combinations(scene.animals, 2):
        assert overlap_of(one, other) <= overlap + 1e-9
        # Level with each other would leave open who comes first.
        assert min(abs(one.x - other.x), abs(one.y - other.y)) > 2
    if scene.sign:
        half_w, half_h = scene.sign.box
        assert half_w - 1e-6 <= scene.sign.x <= scene.width - half_w + 1e-6
        assert half_h - 1e-6 <= scene.sign.y <= scene.height - half_h + 1e-6
        for animal in scene.animals:
            apart = abs(animal.x - scene.sign.x) >= 0.375 * animal.size + half_w - 1e-6
            assert apart or abs(animal.y - scene.sign.y) >= 0.5 * animal.size + half_h - 1e-6, "a sign is covered"


def test_animals_of_items_have_places_of_their_own():
    """Guards against: animals level with each other, of which either could be "the second from the left"; animals cut
    off by the picture's edge; and animals or signs that hide each other deeper than their level says."""
    for number, task in enumerate((*PICTURE_TASKS, *PAIR_TASKS, "appear", "changed")):
        for index in range(50):
            level = 1 + index % 5
            for scene in make_item(rng_for("dev", 7500, number, index), task, level).scenes:
                assert_well_placed(scene, LEVELS[level - 1].overlap)


@settings(max_examples=60, deadline=None)
@given(
    columns=st.integers(5, 28),
    rows=st.integers(5, 28),
    count=st.integers(1, MAX_ANIMALS),
    level=st.sampled_from(LEVELS),
    text=st.text(GLYPHS, max_size=6),
    seed=st.integers(0, 2**20),
)
def test_any_number_of_animals_finds_room(columns, rows, count, level, text, seed):
    """Guards against: animals silently dropped where room is scarce, so that question and picture disagree, and a
    scene that is never finished."""
    rng = rng_for("dev", 7501, seed)
    pairs = cast(rng, count)
    scene = place(rng, level, columns * TOKEN, rows * TOKEN, pairs, [1 + n % 9 for n in range(count)], text)
    assert sorted((a.kind, a.wears) for a in scene.animals) == sorted(pairs)
    assert sorted(a.price for a in scene.animals) == sorted(1 + n % 9 for n in range(count))
    assert scene.animals == tuple(scene.from_left()) == tuple(right_of_way(scene, "left"))
    assert scene.from_top() == right_of_way(scene, "top")
    assert (scene.sign.text if scene.sign else "") == text
    for one, other in combinations(scene.animals, 2):
        assert one.x != other.x and one.y != other.y
        assert overlap_of(one, other) <= level.overlap + 1e-9


def test_too_many_animals_are_refused():
    """Guards against: animals for which the labels have no rank."""
    rng = rng_for("dev", 7502)
    with pytest.raises(ValueError, match="at most"):
        place(rng, LEVELS[0], 560, 560, cast(rng, MAX_ANIMALS + 1))


def assert_label_is_near(scene: Scene, animal: Animal, row: int, column: int):
    """A token that is labelled with an animal touches the animal's box."""
    assert abs((column + 0.5) * TOKEN - animal.x) <= 0.375 * animal.size + TOKEN / 2
    assert abs((row + 0.5) * TOKEN - animal.y) <= 0.5 * animal.size + TOKEN / 2


def test_every_animal_has_labels_of_its_own():
    """Guards against: small animals between token centres, or overwritten by a neighbour, that the first training
    stage would teach the tower not to see; and labels of another animal than the one that stands there.

    At level 5 animals are as small as a token and stand into each other: one of a hundred may share all its tokens.
    """
    animals, missing = Counter(), Counter()
    for number, task in enumerate(PICTURE_TASKS + PAIR_TASKS):
        for index in range(60):
            level = 1 + index % 5
            for scene in make_item(rng_for("dev", 7600, number, index), task, level).scenes:
                labels = dense_labels(scene)
                assert labels.shape == (1, scene.height // TOKEN, scene.width // TOKEN, len(LABELS))
                top = right_of_way(scene, "top")
                seen = set()
                for row, column in zip(*labels[0, ..., 0].nonzero(), strict=True):
                    kind, wears, from_left, from_top, price, *rest = labels[0, row, column].tolist()
                    animal = right_of_way(scene, "left")[from_left - 1]
                    assert top[from_top - 1] is animal
                    assert (KINDS[kind - 1], WEARS[wears - 1], price) == (animal.kind, animal.wears, animal.price)
                    assert rest == [0, 0, 0]
                    assert_label_is_near(scene, animal, row, column)
                    seen.add(from_left)
                nothing = (labels[0, ..., 0] == 0) & (labels[0, ..., 6] == 0)
                assert not labels[0][nothing].any()
                animals[level] += len(scene.animals)
                missing[level] += len(scene.animals) - len(seen)
    assert all(missing[level] <= (0.01 if level == 5 else 0) * animals[level] for level in animals), missing


def test_letters_of_signs_are_labelled_in_place():
    """Guards against: letters taught at another place or in another order than they are painted. Letters narrower
    than a token may share one, which then is the later one's."""
    whole = 0
    for index in range(100):
        scene = make_item(rng_for("dev", 7601, index), "read", 1 + index % 5).scenes[0]
        sign, labels = scene.sign, dense_labels(scene)[0]
        left = sign.x - len(sign.text) * sign.pitch / 2
        seen = {}
        for row, column in zip(*labels[..., 6].nonzero(), strict=True):
            *animal, letter, place_on_sign = labels[row, column].tolist()
            assert not any(animal) and GLYPHS[letter - 1] == sign.text[place_on_sign - 1]
            middle = left + (place_on_sign - 0.5) * sign.pitch
            assert abs((column + 0.5) * TOKEN - middle) <= TOKEN / 2 + 1e-6
            assert abs((row + 0.5) * TOKEN - sign.y) <= TOKEN / 2 + 1e-6
            seen[place_on_sign] = column
        assert list(dict(sorted(seen.items())).values()) == sorted(seen.values())
        if sign.pitch >= TOKEN:
            whole += 1
            assert set(seen) == set(range(1, len(sign.text) + 1))
    assert whole > 30


def test_labels_of_clips_follow_the_animals():
    """Guards against: labels of a clip's first moment at all of its steps; directions turned round; an animal that is
    labelled before it comes; clothes that are labelled before they are put on."""
    moves = Counter()
    for number, task in enumerate(CLIP_TASKS):
        for index in range(15):
            scene = make_item(rng_for("dev", 7602, number, index), task, 1 + index % 5).scenes[0]
            times = clip_times(scene.seconds)
            labels = dense_labels(scene)
            assert labels.shape == (len(times) // 2, scene.height // TOKEN, scene.width // TOKEN, len(LABELS))
            for step, (first, last) in enumerate(zip(times[::2], times[1::2], strict=True)):
                seen = []
                for animal in scene.animals:
                    before, after = animal.at(first), animal.at(last)
                    x, y = (before.x + after.x) / 2, (before.y + after.y) / 2
                    dx, dy = after.x - before.x, after.y - before.y
                    move = 0
                    if max(abs(dx), abs(dy)) > 0.02 * animal.size:
                        word = ("left", "right")[int(dx > 0)] if abs(dx) > abs(dy) else ("up", "down")[int(dy > 0)]
                        move = 1 + MOVES.index(word)
                    if 0 <= x < scene.width and 0 <= y < scene.height:
                        seen.append((x, y, KINDS.index(animal.kind) + 1, WEARS.index(after.wears) + 1, move, animal))
                by_x, by_y = sorted(s[0] for s in seen), sorted(s[1] for s in seen)
                expected = {(k, w, by_x.index(x) + 1, by_y.index(y) + 1, 0, m, 0, 0): (x, y, a)
                            for x, y, k, w, m, a in seen}  # fmt: skip
                for row, column in zip(*labels[step, ..., 0].nonzero(), strict=True):
                    x, y, animal = expected[tuple(labels[step, row, column].tolist())]
                    assert_label_is_near(scene, replace(animal, x=x, y=y), row, column)
                found = {tuple(label) for label in labels[step][labels[step, ..., 0] > 0].tolist()}
                assert len(found) >= len(seen) - 1 and bool(found) == bool(seen)
                moves.update(MOVES[label[5] - 1] for label in found if label[5])
    assert set(moves) == set(MOVES)


# ---------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("size", [(140, 140), (196, 140), (280, 364), (392, 784)])
def test_pictures_have_the_declared_size(size):
    """Guards against: width and height swapped, which square pictures hide."""
    rng = rng_for("dev", 7700)
    picture = render(place(rng, LEVELS[1], *size, cast(rng, 2)))
    assert (picture.size, picture.mode) == (size, "RGB")


def test_pictures_show_what_the_record_says():
    """Guards against: an animal drawn elsewhere than its record and labels say, or with its accessory, its tag or the
    number on it not to be seen; and a letter of a sign that is not where its label is."""
    for index in range(6):
        rng = rng_for("dev", 7701, index)
        scene = plain(place(rng, LEVELS[index % 2], 448, 392, cast(rng, 3), [3, 5, 8], "A7KX"))
        scene = replace(scene, props=tuple(prop for prop in scene.props if not prop.front))
        shown, labels = pixels(scene), dense_labels(scene)[0]
        for order, animal in enumerate(scene.animals, start=1):
            others = tuple(a for a in scene.animals if a is not animal)

            def changed(**other):
                instead = (replace(animal, **other),) if other else ()
                return np.abs(shown - pixels(replace(scene, animals=others + instead))).max(axis=2)

            gone = changed() > 12
            y, x = gone.nonzero()
            assert abs(x.mean() - animal.x) < 0.3 * animal.size and abs(y.mean() - animal.y) < 0.3 * animal.size
            # Its picture may stick out of its box by its shadow and by its tilt, no further.
            assert x.min() > animal.x - 0.375 * animal.size - 12 and x.max() < animal.x + 0.375 * animal.size + 12
            assert y.min() > animal.y - 0.5 * animal.size - 12 and y.max() < animal.y + 0.5 * animal.size + 12
            labelled = np.kron(labels[..., 2] == order, np.ones((TOKEN, TOKEN), dtype=bool))
            assert gone[labelled].mean() > 0.4, "its labelled tokens show little of the animal"
            if animal.wears != "nothing":
                assert (changed(wears="nothing") > 40).sum() > 0.02 * animal.size**2, "hardly to be seen"
            y, x = (changed(price=1) > 40).nonzero()
            assert len(x) > 0.001 * animal.size**2
            assert max(abs(x - animal.x)) < 0.25 * animal.size and min(y) > animal.y, "the number is not on the tag"
        other = replace(scene, sign=replace(scene.sign, text="A7LX"))
        y, x = (np.abs(shown - pixels(other)).max(axis=2) > 40).nonzero()
        at = scene.sign.x + 0.5 * scene.sign.pitch
        assert len(x) > 10 and max(abs(x - at)) < scene.sign.pitch and max(abs(y - scene.sign.y)) < scene.sign.pitch


def test_light_and_noise_are_those_of_the_record():
    """Guards against: levels that are hard in the record alone."""
    rng = rng_for("dev", 7702)
    scene = plain(place(rng, LEVELS[0], 280, 280, cast(rng, 2)))
    bright, dark = pixels(scene), pixels(replace(scene, light=0.5))
    assert abs(dark.mean() / bright.mean() - 0.5) < 0.02
    grain = pixels(replace(scene, light=0.7, noise=12.0)) - pixels(replace(scene, light=0.7))
    assert abs(grain.std() - 12) < 1


def test_clips_show_each_second_of_the_record():
    """Guards against: a clip of one picture repeated, frames of another size or number, and animals that are not where
    the record has them at that second, up in the air or not there yet."""
    for number, task in enumerate(CLIP_TASKS):
        scene = plain(make_item(rng_for("dev", 7703, number), task, 1).scenes[0])
        times = clip_times(scene.seconds)
        clip = list(frames(scene, times[:4]))
        assert [picture.size for picture in clip] == [(scene.width, scene.height)] * 4
        assert [picture.tobytes() for picture in frames(scene)][:4] == [picture.tobytes() for picture in clip]
        mover = max(scene.animals, key=lambda a: (len(a.track), len(a.hops), bool(a.later)))
        without = replace(scene, animals=tuple(a for a in scene.animals if a is not mover))
        shots = set()
        for second in times[1::3]:
            gone = np.abs(pixels(scene, second) - pixels(without, second)).max(axis=2) > 12
            now = mover.at(second)
            inside = (
                0.375 * now.size <= now.x <= scene.width - 0.375 * now.size
                and 0.5 * now.size <= now.y <= scene.height - 0.5 * now.size
            )
            # Others may stand before it: its middle is looked at only where it is alone.
            if inside and all(overlap_of(now, other.at(second)) < 0 for other in without.animals):
                y, x = gone.nonzero()
                assert abs(x.mean() - now.x) < 0.3 * now.size and abs(y.mean() - now.y) < 0.35 * now.size
            shots.add(pixels(scene, second).tobytes())
        assert len(shots) > 1, f"{task}: nothing happens"


@pytest.mark.parametrize("seconds", range(2, 10))
def test_clips_are_seen_where_their_files_are_sampled(seconds):
    """Guards against: training on other moments of a clip than those that are read from its file, an odd number of
    frames, and a clip whose end is never seen."""
    times = clip_times(float(seconds))
    assert len(times) == RATE * seconds and len(times) % 2 == 0
    assert times[0] == 0 and times[-1] == pytest.approx(seconds - 1 / FILE_RATE)
    assert np.allclose(np.diff(times), times[1])
    indices, rate = sample_frame_indices(
        Video(Path("clip.mp4"), tuple(range(FILE_RATE * seconds)), (), float(FILE_RATE))
    )
    assert rate == RATE and np.abs(np.array(indices) / FILE_RATE - times).max() <= 0.5 / FILE_RATE + 1e-9


if __name__ == "__main__":
    print(json.dumps(fingerprints()))
