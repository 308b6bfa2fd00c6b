"""Reasoning tasks: answers, traces, orders of steps and options, checked by a second reading and by blind readers."""

import re
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from itertools import permutations

import numpy as np
import pytest
from blind_readers import Asked, assert_blind_readers_fail, assert_even
from garden_reading import LETTERS, pixels, plain
from reasoning_reading import (
    WORDINGS,
    count_again,
    crossing,
    from_left,
    hops_of,
    is_meant,
    moves_of,
    read_question,
    replay,
)

from avis.garden.labels import LABEL_NAMES, dense_labels
from avis.garden.scenes import KINDS, MOVES, WEARS, Scene, level_for, rng_for, video_times
from avis.garden.tasks import ALL_TASKS, FORMS, PAGE_TASKS, SECOND_TASKS, Item, ask, make_item
from avis.garden.tasks.base import Extras

NAMES = tuple(dict.fromkeys(task for task, *_ in WORDINGS))
# How many more things the steps go through than the level's number of terms, (least, most).
BEYOND = {
    **dict.fromkeys(("total", "change", "dearer", "displacement"), (0, 0)),
    **dict.fromkeys(("afford", "third"), (1, 1)),
    **{"follow": (2, 3), "filter": (2, 2), "all_hops": (-2, 2), "fares": (-2, 0)},
}
COUNT = 200  # questions of a task in one form


def draw(name: str, index: int) -> Item:
    """A question of a task; form, see and think take turns."""
    level = level_for(1 + index // 2 % 5, 1 + index // 10 % 5)
    return make_item(rng_for("garden2:dev", 8000, NAMES.index(name), index), name, level, FORMS[index % 2])


@lru_cache(maxsize=None)
def drawn(name: str) -> tuple[Item, ...]:
    """Questions of one task over all levels, in both forms."""
    return tuple(draw(name, index) for index in range(2 * COUNT))


def body_of(item: Item) -> str:
    """The trace without the answer at its end."""
    tail = f"; {item.value}" + (f" {item.answer}" if item.form == "choice" else "")
    assert item.trace.endswith(tail)
    return item.trace.removesuffix(tail)


def order_of(item: Item, body: str) -> tuple:
    return replay(read_question(item.stem), item.scenes, body, item.value)


def asked(name: str) -> list[Asked]:
    """Questions with options, as blind readers see them."""
    return [Asked(q.stem, q.options, q.value, q.answer, q.think) for q in drawn(name) if q.form == "choice"]


def asked_freely(name: str) -> list[Asked]:
    """Free questions, as blind readers see them: no scene is needed, since it is drawn for subject and answer."""
    task, rows = ALL_TASKS[name], []
    for index in range(1200):
        rng, level = rng_for("garden2:dev", 8002, NAMES.index(name), index), level_for(1, 1 + index // 2 % 5)
        about = task.draw_subject(rng)
        value = task.draw_answer(rng, level, about)
        rows.append(Asked(str(rng.choice(task.wordings(about))), (), value, value, level.think))
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_what_the_record_says(name):
    """Guards against: an answer that its own scene contradicts, and a wording that means something else than its
    sisters."""
    readings = []
    for item in drawn(name):
        reading = read_question(item.stem)
        assert reading.task == name
        assert count_again(reading, item.scenes) == item.value, item
        if name == "follow":
            kinds = Counter(animal.kind for animal in item.scenes[0].animals)
            assert kinds[reading.subjects[1]] > 1, "the end shows without going there"
        readings.append(reading.wording)
    assert set(readings) == {number for number, row in enumerate(WORDINGS) if row[0] == name}


@pytest.mark.parametrize("name", NAMES)
def test_traces_are_true_step_by_step(name):
    """Guards against: reasoning that skips a step or makes one twice, reads what is not there, reckons wrongly, or ends
    on another answer; and a number of steps that is not the level's."""
    for item in drawn(name):
        least, most = level_for(item.see, item.think).terms
        assert least + BEYOND[name][0] <= len(order_of(item, body_of(item))) <= most + BEYOND[name][1]


@pytest.mark.parametrize("name", NAMES)
def test_all_orders_of_steps_occur(name):
    """Guards against: one and the same path for every rollout to take, and orders that training never shows."""
    few = [item for item in drawn(name) if item.think <= 2 and len(order_of(item, body_of(item))) > 2]
    item = min(few, key=lambda item: len(order_of(item, body_of(item))))
    every = tuple(permutations(sorted(order_of(item, body_of(item)))))
    rng, count = np.random.default_rng(0), 50 * len(every)
    orders = Counter(order_of(item, ALL_TASKS[name].draw_trace(rng, item.scenes, item.about)) for _ in range(count))
    assert len(every) in (6, 24)
    assert_even(orders, every, count)


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_even_and_possible(name):
    """Guards against: an answer that is likelier than others at its level, and one that no scene has."""
    task, groups = ALL_TASKS[name], {}
    rng = rng_for("garden2:dev", 8001, NAMES.index(name))
    for think in range(1, 6):
        level = level_for(1, think)
        for _ in range(100):
            about = task.draw_subject(rng)
            groups.setdefault((think, tuple(task.answers(level, about))), []).append(about)
    for (think, answers), abouts in groups.items():
        level = level_for(1, think)
        assert len(set(answers)) == len(answers) > 1 and set(answers) <= set(task.values)
        told = Counter(task.draw_answer(rng, level, abouts[n % len(abouts)]) for n in range(50 * len(answers)))
        assert_even(told, answers, told.total())
        for answer, about in zip(answers, rng.permutation(len(abouts))):
            about = abouts[about]
            size = (280, 252) if task.medium == "video" else (448, 392)
            scenes = task.compose(rng, level, *size, about, answer, Extras())
            assert task.solve(scenes, about) == answer


@pytest.mark.parametrize("name", NAMES)
def test_options_do_not_stand_out(name):
    """Guards against: options without, or with twice, the right one, and a right one that is mostly the least, the
    greatest or one in the middle, or that stands at one letter more often than at another."""
    rows = asked(name)
    for count in {len(row.options) for row in rows}:
        own = [row for row in rows if len(row.options) == count]
        assert all(len(set(row.options)) == count and row.options.count(row.value) == 1 for row in own)
        assert_even(Counter(row.answer for row in own), LETTERS[:count], len(own))
        ranked = [row for row in own if row.value.isdigit()]
        ranks = Counter(sorted(map(int, row.options)).index(int(row.value)) for row in ranked)
        assert not ranked or assert_even(ranks, tuple(range(count)), len(ranked)) is None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_questions_do_not_tell_their_answers(name, form):
    """Guards against: a wording, a subject or a set of options that goes with an answer, so that a model scores
    without looking. One half of the questions is learnt from, the other half tested."""
    rows = asked(name) if form == "choice" else asked_freely(name)
    assert_blind_readers_fail(rows[::2], rows[1::2])


@lru_cache(maxsize=1)
def asked_later() -> dict[str, list[Item]]:
    """Questions of image tasks about scenes that were drawn for other ones, by task."""
    names = [task.name for task in SECOND_TASKS["image"] if task not in PAGE_TASKS]
    found: dict[str, list[Item]] = {name: [] for name in NAMES}
    for index in range(200):
        rng = rng_for("garden2:dev", 8003, index)
        item = make_item(rng, names[index % len(names)], level_for(1, 1 + index // len(names) % 5))
        for name in NAMES:
            if ALL_TASKS[name].medium == "image" and name != item.task:
                later = ask(rng, item, name, "choice") or ask(rng, item, name, "free")
                found[name] += [later] if later else []
    return found


@pytest.mark.parametrize("name", [name for name in NAMES if ALL_TASKS[name].medium == "image"])
def test_later_questions_about_an_image_are_right_and_not_guessed(name):
    """Guards against: questions that do not fit the image of another task, and options that go with a question's words:
    the same animals cost the same, so that of what is left of 70, 80, 90 and 100, the most is left of 100."""
    items = asked_later()[name]
    assert len(items) > 20
    for item in items:
        reading = read_question(item.stem)
        assert (reading.task, count_again(reading, item.scenes)) == (name, item.value)
        order_of(item, body_of(item))
        assert item.form == "free" or item.options[LETTERS.index(item.answer)] == item.value
    rows = [Asked(q.stem, q.options, q.value, q.answer, q.think) for q in items if q.form == "choice"]
    if len(rows) > 40:
        assert_blind_readers_fail(rows[::2], rows[1::2])


@pytest.mark.parametrize("name", NAMES)
def test_questions_of_one_shape_differ_in_whom_they_ask_about_alone(name):
    """Guards against: a number or a rank in a question's words that tells which of the answers that a scene has is its
    own; kinds, things to wear, sides and letters are as likely to go with any answer."""
    task, names = (
        ALL_TASKS[name],
        r"rabbit|bear|cat|duck|s\b|glasses|a hat|a scarf|nothing|left|right|up|down|to the |\b[A-Z]\b",
    )
    rng, told = np.random.default_rng(1), {}
    for _ in range(500):
        about = task.draw_subject(rng)
        told.setdefault(task.shape(about), set()).add(re.sub(names, "", task.wordings(about)[0]))
    assert all(len(words) == 1 for words in told.values()), told


@pytest.mark.parametrize("name", NAMES)
def test_the_same_question_is_drawn_again(name):
    """Guards against: a global generator, or the order of a set, in scene, question or trace."""
    assert all(draw(name, index) == item for index, item in enumerate(drawn(name)[:20]))


def share_shown(scene: Scene, number: int, second: float, **other: object) -> float:
    """How many of the pixels in which an animal (or what of it is changed) shows are not covered by anything else."""
    animals, counts = scene.animals, []
    for company in (animals, animals[number : number + 1]):
        changed = [replace(a, **other) for a in company if a is animals[number] and other]
        rest = tuple(a for a in company if a is not animals[number])
        props = scene.props if company is animals else ()
        shown = [replace(scene, animals=a, props=props) for a in (company, (*rest, *changed))]
        counts.append((np.abs(pixels(shown[0], second) - pixels(shown[1], second)).max(axis=2) > 40).sum())
    return counts[0] / counts[1]


@pytest.mark.parametrize("name", NAMES)
def test_what_has_to_be_seen_can_be_seen(name):
    """Guards against: a tag behind a bush or another animal, or outside the image, where its number would have to be
    guessed; and an animal of a video that is hidden at the moment when it hops or moves."""
    for index in range(3):
        item = make_item(rng_for("garden2:dev", 8004, index), name, level_for(1 + index, 5 - 2 * index))
        scene, reading = plain(item.scenes[0]), read_question(item.stem)
        if name == "fares":
            looked = [(step, scene.animals.index(a), {}) for step, a in crossing(reading, scene).items()]
        elif name == "all_hops":
            looked = [(step, rank - 1, {}) for rank, step in hops_of(reading, scene)]
        elif name == "displacement":
            (mover,) = [n for n, animal in enumerate(scene.animals) if animal.kind == reading.subjects[0]]
            looked = [(step, mover, {}) for step in moves_of(scene, scene.animals[mover])]
        else:
            looked = [(1, n, {}) for n in range(len(scene.animals))]
        if name not in ("all_hops", "displacement"):
            looked = [
                (step, n, {"price": scene.animals[n].price % 9 + 1}) for step, n, _ in looked if scene.animals[n].price
            ]
        for step, number, other in looked[:4]:
            second = float(video_times(scene.seconds)[2 * step - 1]) if scene.seconds else 0.0
            assert share_shown(scene, number, second, **other) > (0.95 if other else 0.6), (item.question, step, number)


@pytest.mark.parametrize("name", NAMES)
def test_labels_show_what_a_trace_reads(name):
    """Guards against: reasoning that a language model trained on dense labels alone cannot follow, since two animals
    share a token, or a move or a tag is not labelled at the time step that the trace names."""
    for index in range(10):
        item = make_item(rng_for("garden2:dev", 8005, index), name, level_for(1 + index % 3, 1 + index // 2))
        scene, reading = item.scenes[0], read_question(item.stem)
        steps = [[dict(zip(LABEL_NAMES, row, strict=True)) for row in step.reshape(-1, len(LABEL_NAMES)).tolist()]
                 for step in dense_labels(scene)]  # fmt: skip
        if name == "all_hops":
            asked = {rank for rank, a in from_left(scene).items() if is_meant(a, *reading.subjects)}
            up = {(t["from_left"], n) for n, step in enumerate(steps, start=1) for t in step if t["move"] == 3}
            assert {(rank, n) for rank, n in up if rank in asked} == set(hops_of(reading, scene))
        elif name == "displacement":
            (mover,) = [animal for animal in scene.animals if animal.kind == reading.subjects[0]]
            own = [
                [t["move"] for t in step if t["kind"] == KINDS.index(mover.kind) + 1 and t["move"]] for step in steps
            ]
            moves = {n: {MOVES[move - 1] for move in step} for n, step in enumerate(own, start=1) if step}
            assert moves == {n: {move} for n, move in moves_of(scene, mover).items()}
        elif name == "fares":
            for n, animal in crossing(reading, scene).items():
                assert {t["price"] for t in steps[n - 1] if t["price"] and not t["move"]} == {animal.price}
        else:
            for rank, a in from_left(scene).items():
                own = [token for token in steps[0] if token["from_left"] == rank]
                assert {(KINDS[t["kind"] - 1], WEARS[t["wears"] - 1]) for t in own} == {(a.kind, a.wears)}
                assert {token["price"] for token in own} - {0} == {a.price} - {0}
