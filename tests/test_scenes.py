"""Scenes: where animals stand, what labels say, and what images and videos show."""

from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from garden_reading import IMAGE_TASKS, PAIR_TASKS, VIDEO_TASKS, pixels, plain, right_of_way
from hypothesis import given, settings
from hypothesis import strategies as st

from avis.garden.labels import LABEL_NAMES, dense_labels
from avis.garden.placement import cast, place
from avis.garden.render import render, render_frames
from avis.garden.scenes import (
    FILE_RATE,
    GLYPHS,
    KINDS,
    LEVELS,
    MAX_ANIMALS,
    MOVES,
    RATE,
    SYMBOLS,
    TOKEN,
    WEARS,
    Animal,
    Scene,
    rng_for,
    video_times,
)
from avis.garden.tasks import make_item
from avis.video import Video, sample_frame_indices


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
    off by the image's edge; and animals or signs that hide each other deeper than their level says."""
    for number, task in enumerate((*IMAGE_TASKS, *PAIR_TASKS, "appear", "changed")):
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
    """Guards against: animals silently dropped where room is scarce, so that question and image disagree, and a
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


def centre_label(x: float, y: float) -> tuple[int, int]:
    """The labels `column` and `row` of a thing whose centre is at a point."""
    return 1 + int(x / TOKEN), 1 + int(y / TOKEN)


def test_every_animal_has_labels_of_its_own():
    """Guards against: small animals between token centres, or overwritten by a neighbour, that the first training
    stage would teach the vision encoder not to see; and labels of another animal than the one that stands there.

    At level 5 animals are as small as a token and stand into each other: one of a hundred may share all its tokens.
    """
    animals, missing, unread = Counter(), Counter(), Counter()
    for number, task in enumerate(IMAGE_TASKS + PAIR_TASKS):
        for index in range(60):
            level = 1 + index % 5
            for scene in make_item(rng_for("dev", 7600, number, index), task, level).scenes:
                labels = dense_labels(scene)
                assert labels.shape == (1, scene.height // TOKEN, scene.width // TOKEN, len(LABEL_NAMES))
                top = right_of_way(scene, "top")
                seen, read = set(), set()
                for row, column in zip(*labels[0, ..., 0].nonzero(), strict=True):
                    kind, wears, from_left, from_top, price, *rest = labels[0, row, column].tolist()
                    animal = right_of_way(scene, "left")[from_left - 1]
                    assert top[from_top - 1] is animal
                    assert (KINDS[kind - 1], WEARS[wears - 1]) == (animal.kind, animal.wears)
                    assert rest == [0, 0, 0, *centre_label(animal.x, animal.y), 0, 0]
                    assert_label_is_near(scene, animal, row, column)
                    seen.add(from_left)
                    assert price in (0, animal.price)
                    if price:
                        assert abs((row + 0.5) * TOKEN - animal.y - 0.3 * animal.size) <= 0.2 * animal.size + TOKEN
                        read.add(from_left)
                nothing = (labels[0, ..., 0] == 0) & (labels[0, ..., 6] == 0)
                assert not labels[0][nothing].any()
                animals[level] += len(scene.animals)
                missing[level] += len(scene.animals) - len(seen)
                unread[level] += sum(animal.price > 0 for animal in scene.animals) - len(read)
    assert not any(unread[level] for level in (1, 2)), "a tag without a token of its own"
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
            *animal, letter, place_on_sign, at_column, at_row, step, height = labels[row, column].tolist()
            assert not any(animal) and SYMBOLS[letter - 1] == sign.text[place_on_sign - 1]
            assert (at_column, at_row, step, height) == (column + 1, row + 1, 0, 0)
            middle = left + (place_on_sign - 0.5) * sign.pitch
            assert abs((column + 0.5) * TOKEN - middle) <= TOKEN / 2 + 1e-6
            assert abs((row + 0.5) * TOKEN - sign.y) <= TOKEN / 2 + 1e-6
            seen[place_on_sign] = column
        assert list(dict(sorted(seen.items())).values()) == sorted(seen.values())
        if sign.pitch >= TOKEN:
            whole += 1
            assert set(seen) == set(range(1, len(sign.text) + 1))
    assert whole > 30


def test_labels_of_videos_follow_the_animals():
    """Guards against: labels of a video's first moment at all of its steps; directions turned round; an animal that is
    labelled before it comes; clothes that are labelled before they are put on."""
    moves = Counter()
    for number, task in enumerate(VIDEO_TASKS):
        for index in range(15):
            scene = make_item(rng_for("dev", 7602, number, index), task, 1 + index % 5).scenes[0]
            times = video_times(scene.seconds)
            labels = dense_labels(scene)
            assert labels.shape == (len(times) // 2, scene.height // TOKEN, scene.width // TOKEN, len(LABEL_NAMES))
            for step, (first, last) in enumerate(zip(times[::2], times[1::2], strict=True), start=1):
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
                expected = {
                    (k, w, by_x.index(x) + 1, by_y.index(y) + 1, 0, m, 0, 0, *centre_label(x, y), step, 0): (x, y, a)
                    for x, y, k, w, m, a in seen
                }
                for row, column in zip(*labels[step - 1, ..., 0].nonzero(), strict=True):
                    x, y, animal = expected[tuple(labels[step - 1, row, column].tolist())]
                    assert_label_is_near(scene, replace(animal, x=x, y=y), row, column)
                found = {tuple(label) for label in labels[step - 1][labels[step - 1, ..., 0] > 0].tolist()}
                assert len(found) >= len(seen) - 1 and bool(found) == bool(seen)
                moves.update(MOVES[label[5] - 1] for label in found if label[5])
    assert set(moves) == set(MOVES)


@pytest.mark.parametrize("size", [(140, 140), (196, 140), (280, 364), (392, 784)])
def test_images_have_the_declared_size(size):
    """Guards against: width and height swapped, which square images hide."""
    rng = rng_for("dev", 7700)
    image = render(place(rng, LEVELS[1], *size, cast(rng, 2)))
    assert (image.size, image.mode) == (size, "RGB")


def test_images_show_what_the_record_says():
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
            # Its image may stick out of its box by its shadow and by its tilt, no further.
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


def test_videos_show_each_second_of_the_record():
    """Guards against: a video of one image repeated, frames of another size or number, and animals that are not where
    the record has them at that second, up in the air or not there yet."""
    for number, task in enumerate(VIDEO_TASKS):
        scene = plain(make_item(rng_for("dev", 7703, number), task, 1).scenes[0])
        times = video_times(scene.seconds)
        video = list(render_frames(scene, times[:4]))
        assert [image.size for image in video] == [(scene.width, scene.height)] * 4
        assert [image.tobytes() for image in render_frames(scene)][:4] == [image.tobytes() for image in video]
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
def test_videos_are_seen_where_their_files_are_sampled(seconds):
    """Guards against: training on other moments of a video than those that are read from its file, an odd number of
    frames, and a video whose end is never seen."""
    times = video_times(float(seconds))
    assert len(times) == RATE * seconds and len(times) % 2 == 0
    assert times[0] == 0 and times[-1] == pytest.approx(seconds - 1 / FILE_RATE)
    assert np.allclose(np.diff(times), times[1])
    indices, rate = sample_frame_indices(
        Video(Path("video.mp4"), tuple(range(FILE_RATE * seconds)), (), float(FILE_RATE))
    )
    assert rate == RATE and np.abs(np.array(indices) / FILE_RATE - times).max() <= 0.5 / FILE_RATE + 1e-9
