"""The second garden: two axes drawn independently, splits, layouts of harnesses, tags that can be read; and the first
garden as it was."""

import json
from collections import Counter, defaultdict
from dataclasses import replace
from functools import lru_cache

import garden_reading
import numpy as np
import pytest
import reasoning_reading
from blind_readers import Asked, assert_blind_readers_fail, assert_even
from garden_reading import LETTERS, pixels, plain
from page_reading import answer_on, read_page_question, sheet_of_record
from PIL import Image

from avis.garden import make, sheet
from avis.garden.hashes import items_sha256, pixels_sha256
from avis.garden.labels import LABEL_NAMES, dense_labels
from avis.garden.placement import cast, place
from avis.garden.scenes import (
    KINDS,
    LEVELS,
    MAX_ANIMALS,
    SECOND_SPLITS,
    SEE,
    SPLITS,
    THINK,
    TOKEN,
    WEARS,
    level_for,
    rng_for,
    token_at,
)
from avis.garden.source import open_source
from avis.garden.tasks import (
    ALL_TASKS,
    FORMS,
    PAGE_TASKS,
    SECOND_SIZES,
    SECOND_TASKS,
    SPLIT_SIZES,
    UNANSWERABLE_SHARE,
    Item,
    item_for,
    make_item,
)
from avis.garden.tasks.base import Extras
from avis.garden.tasks.layouts import LAYOUTS
from avis.garden.tasks.splits import turn_of

PAGE_NAMES = {task.name for task in PAGE_TASKS}
AXES = range(1, 6)


def split(name: str) -> str:
    return f"garden2:{name}"


@lru_cache(maxsize=None)
def first_of(name: str, count: int) -> tuple[Item, ...]:
    """The first items of a split of the second garden."""
    return tuple(item_for(split(name), index) for index in range(count))


def answer_again(item: Item) -> str:
    """The answer to an item's question, from its words and its scenes' record alone."""
    if item.task in PAGE_NAMES:
        page = sheet_of_record(item.scenes[0].page)
        return answer_on(page, read_page_question(item.task, item.stem, page))
    reader = garden_reading if item.task in garden_reading.VALUES else reasoning_reading
    reading = reader.read_question(item.stem)
    assert reading.task == item.task
    return reader.count_again(reading, item.scenes)


def test_the_first_garden_is_as_it_was():
    """Guards against: a change for the second garden that draws the shipped model's items or pixels anew."""
    wanted = "dcd7f27aac2d1cfab31fea2a8029df312f79e424617a9fc010d4a863d36ad760"
    assert items_sha256("dev", range(200)) == wanted
    assert pixels_sha256() == "bf1246b42f8f69a23a060706e0676fcde8c7914352736a31f8ddc05aa81c440c"


def test_levels_combine_two_axes():
    """Guards against: a size that follows `think`, a number of animals that follows `see`, a pair of axes out of range,
    and a first garden whose levels have axes."""
    for see in AXES:
        for think in AXES:
            level = level_for(see, think)
            assert (level.see, level.think, level.number, level.crowd) == (see, think, see, think)
            assert (level.size, level.tag, level.noise) == (SEE[see - 1].size, SEE[see - 1].tag, SEE[see - 1].noise)
            assert (level.count, level.terms) == (THINK[think - 1].count, THINK[think - 1].terms)
    assert [level.crowd for level in LEVELS] == [1, 2, 3, 4, 5] and not any(level.see for level in LEVELS)
    for wrong in ((0, 1), (1, 6), (6, 1)):
        with pytest.raises(ValueError, match="see must be 1 to 5 and think 1 to 5"):
            level_for(*wrong)


@pytest.mark.parametrize("name", ["calibration", "dev", "test", "test2"])
def test_tasks_axes_and_forms_are_balanced_and_independent(name):
    """Guards against: an axis, a task or a form that another one goes with, by which easy questions would be those of
    one task; and parts of splits, which `--limit` takes, that are not balanced."""
    size = SPLIT_SIZES[split(name)]
    for medium in ("image", "video"):
        tasks = SECOND_TASKS["video"] if medium == "video" else SECOND_TASKS["image"] + SECOND_TASKS["images"]
        count = size // 5 if medium == "video" else 4 * size // 5 // (4 if name == "calibration" else 1)
        for part in (count // 4, count):
            turns = [turn_of(number, len(tasks)) for number in range(part)]
            for part_of_turn in range(4):
                seen = Counter(turn[part_of_turn] for turn in turns)
                assert max(seen.values()) - min(seen.values()) <= 0.2 * part / len(seen) + 5, (part_of_turn, seen)
            # Of two axes every pair occurs about as often as its parts do.
            for one, other, kinds in ((1, 2, 25), (1, 3, 10), (2, 3, 10), (0, 1, 5 * len(tasks))):
                pairs = Counter((turn[one], turn[other]) for turn in turns)
                assert len(pairs) == kinds or part < 2 * kinds
                assert max(pairs.values()) <= 1.5 * part / kinds + 3, (one, other, pairs.most_common(2))
    turns = {turn_of(number, 7) for number in range(7 * 50)}
    assert len(turns) == 7 * 5 * 5 * 2


def test_items_take_the_turns_that_are_theirs():
    """Guards against: an item of another task, see, think or form than its turn's, a video in another place, scenes
    that repeat, and an item without a stem or with a level of the first garden."""
    items = first_of("dev", 250)
    for index, item in enumerate(items):
        is_video = index % 5 == 4
        assert (item.medium == "video") == is_video
        number = index // 5 if is_video else index // 5 * 4 + index % 5
        tasks = SECOND_TASKS["video"] if is_video else SECOND_TASKS["image"] + SECOND_TASKS["images"]
        task, see, think, form = turn_of(number, len(tasks))
        assert (item.task, item.see, item.think, item.form) == (tasks[task].name, see, think, FORMS[form])
        assert item.level == 0 and item.stem and item.stem in item.question
    assert len({item.scene_id for item in items}) == len(items) == len({repr(item.scenes) for item in items})
    with pytest.raises(IndexError):
        item_for(split("dev"), 1000)
    sizes = {"train": 100_000, "calibration": 5000, "dev": 1000, "test": 2500, "test2": 2500}
    assert {name: SPLIT_SIZES[name] for name in SECOND_SPLITS} == {split(name): size for name, size in sizes.items()}


def test_answers_are_what_the_record_says():
    """Guards against: an answer that its scene contradicts, in any task at any see and think; an option that is missing
    or there twice; and a response that ends on another answer."""
    items = first_of("dev", 250) + first_of("calibration", 300)
    assert {item.task for item in items} == set(ALL_TASKS)
    for item in items:
        assert answer_again(item) == item.value, item
        if item.form == "choice":
            assert 2 <= len(item.options) <= 4 and len(set(item.options)) == len(item.options)
            assert item.options[LETTERS.index(item.answer)] == item.value
        else:
            assert item.options == () and item.answer == item.value
        assert item.response().endswith(f"</think><answer>{item.answer}</answer>")


def test_relations_are_reasoned_about_by_columns_and_rows():
    """Guards against: ranks, which do not say which distance is the larger, and distances that are not the labels'."""
    for index in range(40):
        rng = rng_for(split("dev"), 8100, index)
        item = make_item(rng, "relation", level_for(1 + index % 5, 1 + index // 5 % 5))
        scene, body = item.scenes[0], item.trace.removesuffix(f"; {item.value}")
        places, apart = (part.split(", ") for part in body.split("; "))
        labels = dict(zip(LABEL_NAMES, np.moveaxis(dense_labels(scene)[0], -1, 0), strict=True))
        told = {kind: (int(column), int(row)) for kind, column, row in (one.split(" ") for one in places)}
        for kind, at_place in told.items():
            (animal,) = (animal for animal in scene.animals if animal.kind == kind)
            row, column = token_at(scene, animal.x, animal.y)
            assert at_place == (column + 1, row + 1)
            if labels["kind"][row, column] == KINDS.index(kind) + 1:  # else another animal stands before it
                assert at_place == (labels["column"][row, column], labels["row"][row, column])
        (x, y), (other_x, other_y) = (told[kind] for kind in item.about)
        words = {f"{'right' if x > other_x else 'left'} {abs(x - other_x)}"}
        assert set(apart) == words | {f"{'below' if y > other_y else 'above'} {abs(y - other_y)}"}
    assert item_for("dev", 5).trace == "cat 3 1, bear 2 3; above"  # the first garden's


def test_calibration_asks_four_questions_in_both_forms():
    """Guards against: a policy that is fitted on letters alone, one task for a whole image, a page that is asked about
    animals, and a question that is asked twice."""
    shown = defaultdict(list)
    for item in first_of("calibration", 300):
        shown[item.scene_id].append(item)
    images = [group for group in shown.values() if group[0].medium == "image"]
    assert len(images) > 40
    for group in images:
        assert len(group) == 4 == len({item.stem for item in group})
        tasks = {item.task for item in group}
        assert len(tasks) >= 2 or tasks == {"word"}  # of a page of words
        assert Counter(item.form for item in group) == {"free": 2, "choice": 2}
        assert len({(repr(item.scenes), item.see, item.think, item.answerable) for item in group}) == 1
        assert len({item.task in PAGE_NAMES for item in group}) == 1
    assert sum(len({item.task for item in group}) >= 3 for group in images) > 0.8 * len(images)
    assert {len(group) for group in shown.values() if group[0].medium != "image"} == {1}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_calibration_questions_do_not_tell_their_answers(form):
    """Guards against: later questions about an image whose answers are what most images have, so that what is fitted on
    calibration takes a good guess for an easy image."""
    by_task = defaultdict(list)
    for item in first_of("calibration", SPLIT_SIZES[split("calibration")]):
        if item.form == form:
            by_task[item.task].append(Asked(item.stem, item.options, item.value, item.answer, item.think))
    assert set(by_task) == set(ALL_TASKS)
    for rows in by_task.values():
        assert_blind_readers_fail(rows[::2], rows[1::2])


OLD = ("count", "compare", "price", "more", "passed")


@pytest.mark.parametrize("task", OLD)
def test_old_tasks_tell_nothing_at_new_levels(task):
    """Guards against: answers of the first garden's tasks that follow `think`, which a question with its options, or a
    count of animals, would tell."""
    rows = []
    for index in range(500):
        level = level_for(1 + index // 2 % 5, 1 + index // 10 % 5)
        rng = rng_for(split("dev"), 8200, OLD.index(task), index)
        item = make_item(rng, task, level, FORMS[index % 2])
        rows.append((item.form, Asked(item.stem, item.options, item.value, item.answer, item.think)))
    values = garden_reading.VALUES[task]
    assert_even(Counter(row.value for _, row in rows), values, len(rows))
    for form in FORMS:
        own = [row for own, row in rows if own == form]
        assert_blind_readers_fail(own[::2], own[1::2])


def test_splits_share_nothing():
    """Guards against: a split, or a garden, that is drawn with another's generators."""
    made = {name: [item_for(name, index) for index in range(40)] for name in (*SECOND_SPLITS, *SPLITS)}
    scenes = {(name, repr(item.scenes)) for name, items in made.items() for item in items}
    assert len({shown for _, shown in scenes}) == len(scenes) > 300


def test_unanswerable_items_are_those_hardest_to_see():
    """Guards against: hidden scenes at another see or that follow `think`, hidden items that still show something, and
    none or too many of them."""
    items = [item for item in first_of("dev", 250) + first_of("test", 500) if item.see == 5]
    hidden = [item for item in items if not item.answerable]
    allowed = 4 * (len(items) * UNANSWERABLE_SHARE * (1 - UNANSWERABLE_SHARE)) ** 0.5
    assert abs(len(hidden) - UNANSWERABLE_SHARE * len(items)) < allowed
    assert len({item.think for item in hidden}) > 3
    for item in (*first_of("dev", 250), *hidden):
        assert item.answerable == ({scene.hidden for scene in item.scenes} == {""})
        assert item.answerable or (item.see == 5 and not any(dense_labels(scene).any() for scene in item.scenes))


def test_some_questions_have_the_layouts_of_harnesses():
    """Guards against: a layout that differs from the harness's own, options that are lost or in another order there,
    splits without layouts or full of them, and the first garden's questions in one."""
    items = first_of("dev", 250) + first_of("test", 500) + first_of("calibration", 300)
    laid_out = [item for item in items if item.layout]
    assert abs(len(laid_out) - 0.1 * len(items)) < 4 * (0.09 * len(items)) ** 0.5
    assert {item.layout for item in laid_out} == {name for names in LAYOUTS.values() for name in names}
    for item in laid_out:
        options = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, item.options, strict=False))
        assert (
            item.question
            == {
                "vlmevalkit": f"Question: {item.stem}\nOptions:\n{options}"
                "Please select the correct answer from the options above. \n",
                "lmms-eval": f"{item.stem}\n{options}Answer with the option's letter from the given choices directly.",
                "llava": f"{item.stem}\nAnswer the question using a single word or phrase.",
            }[item.layout]
        )
    assert not any(item_for("dev", index).layout for index in range(50))


def height_of_digit(scene, animal) -> int:
    """Rows of dark pixels inside an animal's tag."""
    x, y, side = animal.tag_box
    half = 0.42 * side  # inside the tag's edge
    dark = pixels(scene).max(axis=2)[round(y - half) : round(y + half) + 1, round(x - half) : round(x + half) + 1] < 110
    return int(dark.any(axis=1).sum())


def test_tags_can_be_read_where_it_is_easy_to_see():
    """Guards against: digits much smaller than 24 pixels at see 1 to 3, with few animals and many; a tag that hides
    what an animal wears; and a tag without a label of its own."""
    for see in (1, 2, 3):
        for think in (1, 5):
            item = make_item(rng_for(split("dev"), 8300, see, think), "total", level_for(see, think), extras=Extras())
            scene = plain(item.scenes[0])
            labels = dense_labels(scene)[0, ..., LABEL_NAMES.index("price")]
            for animal in scene.animals:
                alone = replace(scene, animals=(animal,), props=(), sign=None)
                assert height_of_digit(alone, animal) >= 22  # the digit's soft edges do not count
                assert labels[token_at(scene, *animal.tag_box[:2])] == animal.price
        # Digits and letters lie on the corners of patches, so that a small encoder can learn them.
        text = make_item(
            rng_for(split("dev"), 8303, see), "read", level_for(see, 3), extras=Extras(prices=True)
        ).scenes[0]
        places = [animal.tag_box[:2] for animal in text.animals]
        places += [(text.sign.letter_x(number), text.sign.y) for number in range(len(text.sign.text))]
        assert all(abs(side / 14 - round(side / 14)) < 1e-6 for at in places for side in at)
    level = level_for(3, 2)
    for wears in WEARS[:-1]:
        for kind in ("rabbit", "bear", "cat", "duck"):
            shown = plain(place(rng_for(split("dev"), 8302), level, 280, 280, [(kind, wears)], [7]))
            none = plain(place(rng_for(split("dev"), 8302), level, 280, 280, [(kind, "nothing")], [7]))
            changed = np.abs(pixels(shown) - pixels(none)).max(axis=2) > 40
            assert changed.sum() > 0.012 * shown.animals[0].size ** 2, f"the tag hides the {kind}'s {wears}"


def test_files_and_sources_have_both_axes(tmp_path):
    """Guards against: JSONL, tables for VLMEvalKit or questions without see and think, a colon in a file's name, and a
    layout in the column of the question."""
    manifest = make.make(split("dev"), tmp_path / "dev", 4, processes=1)
    assert set(manifest["counts"]) == {"task", "see", "think", "form", "medium", "answerable"}
    lines = [json.loads(line) for line in (tmp_path / "dev" / "items.jsonl").read_text().splitlines()]
    source = open_source("garden2", "dev")
    assert (source.name, len(source)) == ("garden2-dev", 1000)
    for index, line in enumerate(lines):
        item, label = item_for(split("dev"), index), source.question(index).label
        assert (line["see"], line["think"], line["layout"]) == (item.see, item.think, item.layout)
        assert line["question_text"] == item.stem and "level" not in line
        assert (label.see, label.think, label.level, label.form) == (item.see, item.think, None, item.form)
    names = sorted(path.name for path in (tmp_path / "dev").iterdir())
    assert "garden2_dev_mcq.tsv" in names and not any(":" in name for name in names)
    header, row, *_ = (tmp_path / "dev" / "garden2_dev_vqa.tsv").read_text().splitlines()
    assert header.split("\t")[-1] == "l2-category" and row.split("\t")[-1] == "see 1 think 1"


def test_the_sheet_has_every_task_at_every_see(monkeypatch, tmp_path):
    """Guards against: a sheet of the second garden without a task, or with one `think` alone."""
    found = sheet.second_items()
    assert list(found) == [(task, see) for names in (("image", "images"), ("video",)) for name in names
                           for task in (t.name for t in SECOND_TASKS[name]) for see in AXES]  # fmt: skip
    for (task, see), (item,) in found.items():
        assert (item.task, item.see) == (task, see)
    assert set(Counter(item.think for (item,) in found.values()).values()) == {len(ALL_TASKS)}
    few = {key: value for key, value in found.items() if key[0] in ("count", "read")}
    monkeypatch.setattr(sheet, "second_items", lambda: few)
    assert sheet.main(["--garden", "garden2", "--out", str(tmp_path / "sheet.png")]) == 0
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.width > 1400 and image.height > 400


def test_many_animals_are_readable_in_the_smallest_scenes():
    """Guards against: animals that shrink until their tags cannot be read where many of them have to fit."""
    for number, size in enumerate(SECOND_SIZES["image"][:3]):
        for see in (1, 2, 3):
            rng = rng_for(split("dev"), 8400, number, see)
            width, height = (TOKEN * side for side in size)
            scene = place(rng, level_for(see, 5), width, height, cast(rng, MAX_ANIMALS), [5] * MAX_ANIMALS, "A7KX")
            assert min(animal.size for animal in scene.animals) > 58
