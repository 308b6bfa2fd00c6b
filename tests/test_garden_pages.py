"""Pages: what they show and what labels say of them, and their tasks, checked by a second reading and blind readers."""

from collections import Counter
from dataclasses import replace
from functools import lru_cache
from itertools import combinations, permutations

import numpy as np
import pytest
from blind_readers import Asked, assert_blind_readers_fail, assert_even
from page_reading import (
    PAGE_TASKS,
    TERMS,
    WORDINGS,
    answer_on,
    order_of_trace,
    read_page_question,
    sheet_of_labels,
    sheet_of_record,
    values_of,
)
from scipy.stats import chisquare

from avis.answers import extract_answer
from avis.garden import paper
from avis.garden.hashes import pixels_sha256
from avis.garden.labels import dense_labels
from avis.garden.pages import NAME_LETTERS, PAPERS
from avis.garden.placement import hide
from avis.garden.render import render
from avis.garden.scenes import GLYPHS, KINDS, TOKEN, Scene, level_for, rng_for
from avis.garden.tasks import Item
from avis.garden.tasks.items import FORMS, ask, make_item
from avis.garden.tasks.registry import ALL_TASKS, companions

DRAWN = 320  # of a task in each form


@lru_cache(maxsize=None)
def drawn(task: str, form: str) -> tuple[Item, ...]:
    """Items of a task in one form, over all levels of seeing and thinking."""
    number = PAGE_TASKS.index(task)
    levels = [level_for(see, think) for think in range(1, 6) for see in range(1, 6)]
    return tuple(
        make_item(rng_for("garden2:dev", 7800, number, FORMS.index(form), index), task, levels[index % 25], form)
        for index in range(DRAWN)
    )


@pytest.mark.parametrize("task", PAGE_TASKS)
def test_answers_and_traces_are_what_the_page_says(task):
    """Guards against: an answer that its own page contradicts, a name that two rows have, a question with the words of
    another look, a wording that means something else than its sisters, reasoning that reads, adds or remembers wrongly,
    and a number of steps that does not follow `think`."""
    wordings = set()
    for item in (*drawn(task, "free")[:100], *drawn(task, "choice")[:50]):
        sheet = sheet_of_record(item.scenes[0].page)
        asked = read_page_question(task, item.stem, sheet)
        assert answer_on(sheet, asked) == item.value
        steps = len(order_of_trace(item, sheet, asked))
        least, most = TERMS[item.think - 1]
        if task in ("sum", "bars", "gap", "taller", "order"):
            assert least <= steps <= most
        elif task in ("ranked", "above"):
            assert least <= steps - 1 <= most
        if item.form == "choice":
            assert len(set(item.options)) == 4 and item.options["ABCD".index(item.answer)] == item.value
        assert extract_answer(item.response()) == extract_answer(item.response(False)) == item.answer
        wordings.add(asked.wording)
    assert wordings == set(range(len(WORDINGS[task])))


def test_every_order_of_steps_occurs():
    """Guards against: one path that all rollouts take, of which a vote gains nothing."""
    for task in ("sum", "bars", "gap", "taller", "ranked", "above", "order"):
        number = PAGE_TASKS.index(task)
        item = make_item(rng_for("garden2:dev", 7801, number), task, level_for(1, 2))
        sheet = sheet_of_record(item.scenes[0].page)
        asked = read_page_question(task, item.stem, sheet)
        rng, orders = rng_for("garden2:dev", 7802, number), set()
        for _ in range(250):
            trace = ALL_TASKS[task].draw_trace(rng, item.scenes, item.about)
            orders.add(order_of_trace(replace(item, trace=f"{trace}; {item.value}"), sheet, asked))
        assert orders == set(permutations(asked.weights))


@pytest.mark.parametrize("task", PAGE_TASKS)
def test_labels_alone_answer_every_question(task):
    """Guards against: a language model that is trained on labels which do not hold the answer: a glyph that shares a
    token with another one, rows or columns that are numbered otherwise than traces number them."""
    for item in (*drawn(task, "free")[:75], *drawn(task, "choice")[:75]):
        scene = item.scenes[0]
        sheet = sheet_of_labels(dense_labels(scene))
        assert sheet == sheet_of_record(scene.page)
        assert answer_on(sheet, read_page_question(task, item.stem, sheet)) == item.value


@pytest.mark.parametrize("task", PAGE_TASKS)
def test_answers_are_balanced(task):
    """Guards against: pages drawn before answers, answers that follow how hard it is to see, and letters that are right
    more often than others."""
    items = drawn(task, "free") + drawn(task, "choice")
    for think in range(1, 6):
        values = values_of(task, think)
        own = Counter(item.value for item in items if item.think == think)
        if values:
            assert set(own) <= set(values)
            assert chisquare([own[value] for value in values]).pvalue > 1e-6
    if task == "word":
        glyphs = Counter(letter for item in items for letter in item.value)
        assert_even(glyphs, GLYPHS, glyphs.total())
    if task == "whose":
        named = Counter(item.value for item in items)
        assert_even(Counter({kind: named[kind] for kind in KINDS}), KINDS, sum(named[kind] for kind in KINDS))
        assert set(named) == {*KINDS, *NAME_LETTERS} and max(named[a] for a in NAME_LETTERS) < 60
    assert_even(Counter(item.answer for item in drawn(task, "choice")), "ABCD", DRAWN)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", PAGE_TASKS)
def test_questions_do_not_tell_their_answers(task, form):
    """Guards against: names, limits, quantities or options that go with an answer, so that a model scores without
    looking."""
    items = drawn(task, form)
    rows = [Asked(item.stem, item.options, item.value, item.answer, item.think) for item in items]
    assert_blind_readers_fail(rows[: DRAWN // 2], rows[DRAWN // 2 :])
    if form == "choice" and task not in ("word", "whose"):
        ranks = Counter(sorted(map(int, item.options)).index(int(item.value)) for item in items)
        assert_even(ranks, range(4), DRAWN)


def test_options_do_not_tell_the_answer_at_the_ends():
    """Guards against: the smallest option that is right more often where the answer is small, since the others may not
    be below 0, and options that no answer of the level can have."""
    for task, think in (("above", 1), ("above", 3), ("sum", 1), ("taller", 1)):
        rng, right = rng_for("garden2:dev", 7803, think), Counter()
        values = values_of(task, think)
        for _ in range(200):
            item = make_item(rng, task, level_for(1, think), "choice")
            assert set(item.options) <= set(values)
            if values[0] in item.options:
                right[item.value == values[0]] += 1
        share, total = right[True] / right.total(), right.total()
        assert abs(share - 0.25) < 5 * (0.25 * 0.75 / total) ** 0.5


def test_other_questions_are_asked_about_a_page():
    """Guards against: pages of which only one thing can be asked, companions that have another answer than the page,
    animals asked about on pages, where there are none, and options of which the likely ones can be told."""
    asked_of, ranks = Counter(), Counter()
    for number, task in enumerate(PAGE_TASKS):
        for index in range(10):
            rng = rng_for("garden2:dev", 7804, number, index)
            first = make_item(rng, task, level_for(1, 1 + index // 2))
            for other in companions(task):
                assert other.name in PAGE_TASKS
                item = ask(rng, first, other.name, FORMS[index % 2])
                if item:
                    sheet = sheet_of_record(first.scenes[0].page)
                    asked = read_page_question(other.name, item.stem, sheet)
                    assert answer_on(sheet, asked) == item.value
                    order_of_trace(item, sheet, asked)
                    asked_of[task] += other.name != task
                    if len(item.options) == 4 and item.value.isdigit():
                        ranks[sorted(map(int, item.options)).index(int(item.value))] += 1
    assert all(asked_of[task] >= 3 for task in PAGE_TASKS if task != "word"), asked_of
    assert_even(ranks, range(4), ranks.total())


def boxes_of(scene: Scene) -> list[tuple[float, float, float, float]]:
    """The box of every text, icon and bar: left, top, right, bottom."""
    page = scene.page
    texts = [
        (cell.glyph_x(n), cell.y, 0.8 * cell.height, cell.height) for cell in page.cells for n in range(len(cell.text))
    ]
    icons = [(icon.x, icon.y, 0.75 * icon.size, icon.size) for icon in page.icons]
    bars = [(bar.x, (bar.top + bar.base) / 2, bar.width, bar.base - bar.top) for bar in page.bars]
    return [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (*texts, *icons, *bars)]


@pytest.mark.parametrize("task", PAGE_TASKS)
def test_pages_are_tidy(task):
    """Guards against: text over text, over an icon or a bar; anything cut off by the page's edge; digits too small to
    be read where they have to be readable; and digits that lie in two columns of tokens."""
    for item in drawn(task, "free")[:100]:
        scene = item.scenes[0]
        boxes = boxes_of(scene)
        for left, top, right, bottom in boxes:
            assert 0 <= left and right <= scene.width and 0 <= top and bottom <= scene.height
        for one, two in combinations(boxes, 2):
            apart = one[2] <= two[0] + 1.5 or two[2] <= one[0] + 1.5 or one[3] <= two[1] + 1.5 or two[3] <= one[1] + 1.5
            assert apart, f"{one} and {two} of {item.stem!r}"
        if item.see <= 3:
            assert min(cell.height for cell in scene.page.cells) >= 22
        numbers = [cell for cell in scene.page.cells if cell.text.isdigit() and cell.pitch < TOKEN]
        for x, half in ((cell.glyph_x(n), 0.4 * cell.height) for cell in numbers for n in range(len(cell.text))):
            assert (x - half) // TOKEN == (x + half) // TOKEN, "a digit in two columns of tokens"


def test_pages_show_what_the_record_says():
    """Guards against: a number, an icon or a bar that is drawn elsewhere than its label, or not at all; texture on
    paper that has to be plain; light and noise that are not the record's; a hidden page on which something is left."""
    for number, task in enumerate(("cell", "word", "sum", "order", "bar", "bars")):
        item = drawn(task, "free")[number]
        scene = replace(item.scenes[0], light=1.0, noise=0.0)
        page, labels = scene.page, dense_labels(scene)[0]
        shown = np.asarray(render(scene)).astype(int)
        empty = np.asarray(render(replace(scene, page=replace(page, cells=(), icons=(), bars=())))).astype(int)
        gone = np.abs(shown - empty).max(axis=2) > 40
        parts = gone.reshape(scene.height // TOKEN, TOKEN, scene.width // TOKEN, TOKEN).sum(axis=(1, 3))
        assert (parts[labels[..., :8].any(axis=-1) | (labels[..., 11] > 0)] > 3).all(), "a label where nothing is"
        hidden = hide(rng_for("garden2:dev", 7805), scene)
        assert hidden.hidden == "far" and not dense_labels(hidden).any()
        blank = np.asarray(render(hidden))
        assert (blank == blank[0, 0]).all()
        noisy = np.asarray(render(replace(hidden, light=0.7, noise=12.0))).astype(int)
        assert abs(noisy.std(axis=(0, 1)).mean() - 12) < 1
        assert render(item.scenes[0]).tobytes() == render(item.scenes[0]).tobytes()
    assert {item.scenes[0].background for item in drawn("sum", "free")} == set(PAPERS)


def test_the_hash_of_pixels_follows_how_pages_are_drawn(monkeypatch):
    """Guards against: a folder of the second garden that is resumed with pages drawn otherwise."""
    before = pixels_sha256("garden2:dev")
    monkeypatch.setitem(paper.PAPER, "grey", (224, 227, 231))
    assert pixels_sha256("garden2:dev") != before


def test_small_pages_hold_what_is_asked():
    """Guards against: a page that is never laid out, or loses rows, at the small sizes of training's first stages; and
    labels that do not hold the answer there, at the levels of thinking that such a size is said to be enough for."""
    for number, task in enumerate(PAGE_TASKS):
        for size in ((6, 6), (8, 8), (10, 8), (10, 10)):
            for think in range(1, 6):
                rng = rng_for("garden2:train", 7806, number, think, *size)
                item = make_item(rng, task, level_for(1, think), size=size)
                scene = item.scenes[0]
                assert (scene.width, scene.height) == (size[0] * TOKEN, size[1] * TOKEN)
                sheet = sheet_of_record(scene.page)
                if think <= ALL_TASKS[task].most_think(*size):
                    assert sheet_of_labels(dense_labels(scene)) == sheet
                assert answer_on(sheet, read_page_question(task, item.stem, sheet)) == item.value
        assert ALL_TASKS[task].most_think(8, 8) >= 3 and ALL_TASKS[task].most_think(16, 14) == 5
