"""The fifteen tasks: answers, traces and options, checked by a second reading and by blind readers."""

from collections import Counter
from functools import lru_cache

import numpy as np
import pytest
from blind_readers import Asked, assert_blind_readers_fail, assert_even, what_is_asked
from garden_reading import (
    IMAGE_TASKS,
    LETTERS,
    PAIR_TASKS,
    STYLES,
    VALUES,
    VIDEO_TASKS,
    WORDINGS,
    assert_answer_is_right,
    read_question,
    stem,
    trace_style,
)
from scipy.stats import chi2_contingency, kruskal

from avis.answers import extract_answer
from avis.garden.scenes import (
    BACKGROUNDS,
    GLYPHS,
    LEVELS,
    TOKEN,
    rng_for,
)
from avis.garden.tasks import FORMS, SIZES, Item, make_item


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


def test_answers_are_what_the_record_says(items):
    """Guards against: an answer that its own image contradicts, a question with two right answers, a wording that
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


ASKED = 1250  # of a task in each form


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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", VALUES)
def test_questions_do_not_tell_their_answers(task, form):
    """Guards against: a wording, a subject or a set of options that goes with an answer, so that a model scores
    without looking. One half of a task's 2,500 questions is learnt from, the other half tested, each form apart."""
    rows = asked(task, form)
    assert_blind_readers_fail(rows[: ASKED // 2], rows[ASKED // 2 :])


@pytest.mark.parametrize("by", ["level", "task"])
@pytest.mark.parametrize("tasks", [IMAGE_TASKS, PAIR_TASKS, VIDEO_TASKS], ids=["image", "images", "video"])
def test_level_and_task_cannot_be_read_off_the_ground(tasks, by):
    """Guards against: large or full images at hard levels, or one ground for one task, by which predicting
    difficulty would be reading off the paper. The p-value of an even draw is below 1e-6 once in a million."""
    made = [(task, row) for task in tasks for form in FORMS for row in asked(task, form)]
    rows = [(row, row.level if by == "level" else task) for task, row in made]
    groups = sorted({group for _, group in rows})
    size = SIZES[{IMAGE_TASKS: "image", PAIR_TASKS: "images", VIDEO_TASKS: "video"}[tasks]]
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
