"""The items that splits are made of: the same in every process, right, disjoint, and unanswerable where it says so."""

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from functools import lru_cache

import pytest
from blind_readers import Asked, assert_blind_readers_fail, assert_even, what_is_asked
from garden_reading import (
    IMAGE_TASKS,
    PAIR_TASKS,
    VIDEO_TASKS,
    assert_answer_is_right,
    digest,
    pixels,
    plain,
    read_question,
    stem,
    trace_style,
)

from avis.garden.labels import dense_labels
from avis.garden.placement import cast, hide, place
from avis.garden.render import render, render_frames
from avis.garden.scenes import (
    GLYPHS,
    KINDS,
    LEVELS,
    SECOND_SPLITS,
    SPLITS,
    WEARS,
    Scene,
    rng_for,
    video_times,
)
from avis.garden.tasks import SPLIT_SIZES, UNANSWERABLE_SHARE, Item, item_for, make_item


def fingerprints() -> dict[str, str]:
    """Hashes of what must be the same in every process; this file is also the program of the other process."""
    made = [item_for(split, index) for split in (*SPLITS, *SECOND_SPLITS) for index in range(40)]
    scenes = [scene for item in made[:20] + made[-40:] for scene in item.scenes]
    stills = [scene for scene in scenes if not scene.seconds][::5]
    videos = [scene for scene in scenes if scene.seconds][:2]
    return {
        "items": digest(repr(made).encode()),
        "scenes": digest(repr(scenes).encode()),
        "labels": digest(*(dense_labels(scene).tobytes() for scene in scenes)),
        "images": digest(*(render(scene).tobytes() for scene in stills)),
        "videos": digest(*(next(render_frames(scene, [1.5])).tobytes() for scene in videos)),
    }


def test_another_process_makes_the_same():
    """Guards against: `hash()` of a string, the order of a set, or a global generator in scene, image, question or
    answer, by which training could not be resumed and a split would be another one in every process."""
    environment = os.environ | {"PYTHONHASHSEED": "4711"}
    run = subprocess.run([sys.executable, __file__], check=True, capture_output=True, text=True, env=environment)
    assert json.loads(run.stdout) == fingerprints()


@lru_cache(maxsize=1)
def calibration() -> tuple[Item, ...]:
    """The whole calibration split (about ten seconds)."""
    return tuple(item_for("calibration", index) for index in range(SPLIT_SIZES["calibration"]))


def test_sizes_and_turns_of_splits():
    """Guards against: a split that is smaller than promised, runs on beyond its end into unplanned items, or leaves
    out a task or a level."""
    sizes = {"train": 100_000, "calibration": 5000, "dev": 1000, "test": 2500}
    assert {split: SPLIT_SIZES[split] for split in SPLITS} == sizes
    for split, size in SPLIT_SIZES.items():
        for index in (-1, size):
            with pytest.raises(IndexError):
                item_for(split, index)
        item_for(split, size - 1)
    items = [item_for("dev", index) for index in range(SPLIT_SIZES["dev"])]
    assert sum(item.medium == "video" for item in items) == 200
    cells = Counter((item.task, item.level) for item in items)
    assert len(cells) == 15 * 5
    assert {cells[task, level] for task in IMAGE_TASKS + PAIR_TASKS for level in range(1, 6)} == {16}
    assert {cells[task, level] for task in VIDEO_TASKS for level in range(1, 6)} == {8}
    assert abs(sum(item.form == "choice" for item in items) - 500) < 5 * 250**0.5
    assert len({item.scene_id for item in items}) == len(items)
    for item in items:
        assert_answer_is_right(item, read_question(stem(item)))
        trace_style(item, read_question(stem(item)))
    with pytest.raises(ValueError, match="one of train, calibration, dev, test"):
        item_for("validation", 3)


def test_calibration_asks_several_tasks_about_each_image():
    """Guards against: calibration questions that are all of one task an image, so that difficulty is the task's;
    free answers among them; a question asked twice; scene ids that join images which differ."""
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


def test_later_questions_about_a_image_are_right():
    """Guards against: questions that do not fit the image of another task (two animals where one is asked for, a tag
    or a sign that is missing), and a right option that stands out because no such question has that answer."""
    for item in calibration():
        reading = read_question(stem(item))
        assert_answer_is_right(item, reading)
        trace_style(item, reading)


@pytest.mark.parametrize("task", IMAGE_TASKS + PAIR_TASKS)
def test_calibration_questions_do_not_tell_their_answers(task):
    """Guards against: later questions about an image whose answers are what most images have (none, or one, of most
    things), so that what is fitted on calibration takes a good guess for an easy image."""
    rows = [Asked(*what_is_asked(item)) for item in calibration() if item.task == task]
    assert_blind_readers_fail(rows[::2], rows[1::2])


def test_splits_share_nothing():
    """Guards against: splits that are shifted windows of one stream, so that test images were trained on."""
    items = {split: [item_for(split, index) for index in range(150)] for split in SPLITS}
    bare = [repr(tuple(replace(scene, seed=0) for scene in item.scenes)) for made in items.values() for item in made]
    of_images = {item.scene_id for item in items["calibration"] if item.medium != "video"}
    # Calibration alone shows an image several times.
    repeated = sum(item.medium != "video" for item in items["calibration"]) - len(of_images)
    assert repeated > 50 and len(set(bare)) == len(bare) - repeated
    first = [made[index].scenes[0] for made in items.values() for index in (0, 4, 9, 20)]
    assert len({render(scene, 0.5).tobytes() for scene in first}) == len(first)


def test_unanswerable_items_are_few_and_labelled():
    """Guards against: an unanswerable question that counts as answerable (or the other way round), unanswerable items
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
    unanswerable = [(hidden, medium) for hidden, medium in shown.values() if hidden]
    assert (
        abs(len(unanswerable) - UNANSWERABLE_SHARE * count)
        < 5 * (count * UNANSWERABLE_SHARE * (1 - UNANSWERABLE_SHARE)) ** 0.5
    )
    images = [hidden for hidden, medium in unanswerable if medium != "video"]
    assert_even(Counter(images), ("bushes", "far"), len(images))


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


HIDDEN_TASKS = ("count", "price", "read", "attribute", "odd", "relation")


@pytest.mark.parametrize("hidden", ["bushes", "far"])
def test_hidden_images_tell_nothing(hidden):
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
    """A video that only its answer tells from this one: the others' ways, or hops, or number, or kinds, or clothes."""
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


@pytest.mark.parametrize("task", VIDEO_TASKS)
def test_hidden_videos_tell_nothing(task):
    """Guards against: a video labelled unanswerable in which hedges walk and hop, so that motion, hops and how many
    pass can be seen as well as without them."""
    scene = plain(make_item(rng_for("dev", 7300, 1), task, 5).scenes[0])
    other = with_another_answer(task, scene)
    times = video_times(scene.seconds)[1::2]

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


if __name__ == "__main__":
    print(json.dumps(fingerprints()))
