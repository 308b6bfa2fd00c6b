"""A second reading of the garden's questions: their own words are parsed here, and everything is counted again from
the scene's record without the tasks' code.
"""

import hashlib
import math
import re
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from avis.garden.render import render
from avis.garden.scenes import (
    Animal,
    Scene,
    video_times,
)
from avis.garden.tasks import Item

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
IMAGE_TASKS = ("count", "exist", "attribute", "compare", "relation", "odd", "read", "price")
PAIR_TASKS = ("more", "differ")
VIDEO_TASKS = ("motion", "hops", "appear", "passed", "changed")


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


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
    """Seconds of a video, and where the animal's feet are at each."""
    times = np.arange(0, scene.seconds, step)
    points = animal.track or ((0.0, animal.x, animal.y),)
    seconds, xs, ys = (np.array(values) for values in zip(*points, strict=True))
    return times, np.interp(times, seconds, xs), np.interp(times, seconds, ys)


def in_view(scene: Scene, animal: Animal) -> np.ndarray:
    """At which moments some of the animal is inside the image."""
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

        times = video_times(scene.seconds).tolist()
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


def pixels(scene: Scene, second: float = 0.0) -> np.ndarray:
    return np.asarray(render(scene, second)).astype(int)


def plain(scene: Scene) -> Scene:
    """The scene in even light without noise, all animals of one wood: no pixel changes but by what is there."""
    return replace(scene, light=1.0, noise=0.0, animals=tuple(replace(a, tone="oak", colour=0) for a in scene.animals))
