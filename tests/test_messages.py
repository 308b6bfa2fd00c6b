"""Chats as users write them: what of a turn and its parts is honoured, and that all else is refused in one line."""

import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from chats import ROOT, one_line
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from avis.messages import PART_KEYS, check_messages

pytestmark = pytest.mark.unit
TEXT = {"type": "text", "text": "How many?"}
IMAGE = {"type": "image", "image": "a.jpg"}
VIDEO = {"type": "video", "video": "a.mp4"}
FRAMES = {"type": "video", "video": ["a.png", "b.png"]}
NAN, INFINITY = math.nan, math.inf


def user(*parts) -> list[dict]:
    return [{"role": "user", "content": [*parts, TEXT]}]


# By name: a chat, and words that the error has to have.
CHATS = {
    "nothing": (None, "a list of turns, got NoneType"),
    "a text": ("How many?", "a list of turns, got str"),
    "one turn": ({"role": "user", "content": "How many?"}, "a list of turns, got dict"),
    "an iterator": (iter(user()), "a list of turns"),
    "an array": (np.zeros((2, 2)), "a list of turns, got ndarray"),
    "no turns": ([], "no user turn"),
    "a batch of chats": ([user(), user()], "one chat is answered at a time"),
    "a batch of one": ([user()], "one chat is answered at a time"),
    "a chat in a tuple": ((tuple(user()),), "one chat is answered at a time"),
    "a turn that is a text": (["How many?"], "a turn is a dictionary with role and content, got str"),
    "a turn that is nothing": ([None], "got NoneType"),
    "no role": ([{"content": "How many?"}], "no role"),
    "role None": ([{"role": None, "content": "How many?"}], "no role"),
    "unknown role": ([{"role": "tool", "content": "How many?"}], "'tool'"),
    "role of another type": ([{"role": ["user"], "content": "How many?"}], "role"),
    "role in capitals": ([{"role": "User", "content": "How many?"}], "'User'"),
    "key of a turn": ([{"role": "user", "content": "How many?", "images": ["a.jpg"]}], "unknown key 'images'"),
    "no content": ([{"role": "user"}], "role user has no content"),
    "content None": ([{"role": "user", "content": None}], "role user has no content"),
    "a reply's content None": ([*user(), {"role": "assistant", "content": None}], "role assistant has no content"),
    "content 5": ([{"role": "user", "content": 5}], "got int"),
    "content is a part": ([{"role": "user", "content": TEXT}], "got dict"),
    "empty list": ([{"role": "user", "content": []}], "content of a turn of role user is empty"),
    "empty tuple": ([{"role": "user", "content": ()}], "is empty"),
    "empty text": ([{"role": "user", "content": " \n"}], "asks nothing"),
    "empty text part": ([{"role": "user", "content": [IMAGE, {"type": "text", "text": ""}]}], "asks nothing"),
    "system alone": ([{"role": "system", "content": "Be brief."}], "no user turn"),
    "part that is a text": (user("How many?"), "got str"),
    "part None": (user(None), "got NoneType"),
    "list in a list": (user([TEXT]), "got list"),
    "no type": (user({"image": "a.jpg"}), "the keys ['image']"),
    "type None": (user({"type": None, "image": "a.jpg"}), "type of a part"),
    "unknown type": (user({"type": "audio", "audio": "a.wav"}), "'audio'"),
    "another harness's type": (user({"type": "image_url", "image_url": {"url": "a.jpg"}}), "'image_url'"),
    "type of another type": (user({"type": ["image"], "image": "a.jpg"}), "type of a part"),
    "no image": (user({"type": "image"}), "a part of type image has no image"),
    "a path": (user({"type": "image", "path": "a.jpg"}), "a part of type image has no image"),
    "no text": (user({"type": "text"}), "a part of type text has no text"),
    "text 5": (user({"type": "text", "text": 5}), "a text is a string, got int"),
    "text None": (user({"type": "text", "text": None}), "a part of type text has no text"),
    "image None": (user({"type": "image", "image": None}), "a part of type image has no image"),
    "text is a list": (user({"type": "text", "text": ["How many?"]}), "got list"),
    "image and video": (user(IMAGE | {"video": "a.mp4"}), "unknown key 'video'"),
    "video and image": (user(VIDEO | {"image": "a.jpg"}), "unknown key 'image'"),
    "text and image": (user(TEXT | {"image": "a.jpg"}), "unknown key 'image'"),
    "unknown key": (user(IMAGE | {"detail": "high"}), "unknown key 'detail'"),
    "misspelt key": (user(IMAGE | {"max_pixel": 100_000}), "unknown key 'max_pixel'"),
    "the flag's name": (user(VIDEO | {"num_frames": 8}), "unknown key 'num_frames'"),
    "key that is no text": (user(IMAGE | {5: 5}), "unknown key 5"),
    "key of a text": (user(TEXT | {"max_pixels": 100_000}), "unknown key 'max_pixels'"),
    "a video's key of an image": (user(IMAGE | {"fps": 2.0}), "unknown key 'fps'"),
    **{
        f"{key} of qwen-vl-utils": (user(VIDEO | {key: value}), f"unknown key '{key}'")
        for key, value in [("total_pixels", 1_000_000), ("min_frames", 4), ("max_frames", 8), ("sample_fps", 2.0)]
    },
}


@pytest.mark.parametrize("name", CHATS)
def test_chats_that_cannot_be_read_are_refused(name):
    """Guards against a traceback from deep inside, and a chat that is answered without one of its parts."""
    messages, words = CHATS[name]
    with pytest.raises(ValueError) as error:
        check_messages(messages)
    message = one_line(error)
    assert words in message and len(message) < 250


WHOLE_KEYS = ("min_pixels", "max_pixels", "resized_height", "resized_width", "nframes")
NO_WHOLE_NUMBERS = ("8000", 8000.0, True, [8000], NAN, INFINITY, np.zeros((2, 2)), np.bool_(True), 1 + 2j)
NO_NUMBERS = ("2", True, [2.0], {}, NAN, INFINITY, -INFINITY, -1.0, np.float32("nan"), np.ones(1), 10**400)
WRONG_VALUES = [
    *[(key, value) for key in WHOLE_KEYS for value in NO_WHOLE_NUMBERS],
    *[(key, value) for key in WHOLE_KEYS for value in (0, -1, -8000, 10**15)],
    *[(key, 783) for key in ("min_pixels", "max_pixels")],
    ("nframes", 1),
    *[(key, value) for key in ("fps", "video_start", "video_end") for value in NO_NUMBERS],
    *[(key, 0) for key in ("fps", "video_end")],
]


@pytest.mark.parametrize("key, value", WRONG_VALUES, ids=str)
def test_values_that_cannot_be_are_refused(key, value):
    """Guards against a value that is ignored, read as another one, or fails with the model loaded."""
    pair = {"resized_height": 280, "resized_width": 280} if key.startswith("resized") else {}
    with pytest.raises(ValueError, match=f"^{key} must be") as error:
        check_messages(user(VIDEO | pair | {key: value}))
    assert len(one_line(error)) < 250


CONTRADICTIONS = {
    "bounds": (VIDEO | {"min_pixels": 2000, "max_pixels": 1000}, "min_pixels 2000 exceeds max_pixels 1000"),
    "bounds of an image": (IMAGE | {"min_pixels": 2000, "max_pixels": 1000}, "exceeds"),
    "height alone": (IMAGE | {"resized_height": 280}, "need each other"),
    "width alone": (VIDEO | {"resized_width": 280}, "need each other"),
    "size and bound": (IMAGE | {"resized_height": 280, "resized_width": 280, "max_pixels": 10_000}, "exclude"),
    "fps and nframes": (VIDEO | {"fps": 2.0, "nframes": 4}, "fps and nframes exclude each other"),
    "end before start": (VIDEO | {"video_start": 5, "video_end": 2.0}, "video_start 5 is not before video_end 2.0"),
    "end at start": (VIDEO | {"video_start": 2, "video_end": 2}, "is not before"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_keys_that_contradict_each_other_are_refused(name):
    part, words = CONTRADICTIONS[name]
    with pytest.raises(ValueError, match=words) as error:
        check_messages(user(part))
    one_line(error)


ACCEPTED = [
    IMAGE,
    IMAGE | {"image": Image.new("RGB", (30, 20))},
    IMAGE | {"image": np.zeros((20, 30), np.uint8)},
    IMAGE | {"min_pixels": 784, "max_pixels": 784},
    IMAGE | {"resized_height": 280, "resized_width": 56},
    VIDEO | {"min_pixels": 4 * 784, "max_pixels": 10**9, "nframes": 2},
    VIDEO | {"fps": 1, "video_start": 0, "video_end": 0.5},
    VIDEO | {"video_start": 0.0},
    VIDEO | {"resized_height": 1, "resized_width": 1, "fps": 1e-9},
    FRAMES | {"fps": 10, "nframes": 2},  # of a list, fps is its own rate
]


@pytest.mark.parametrize("part", ACCEPTED, ids=lambda part: ",".join(map(str, part.values()))[:40])
def test_keys_that_can_be_are_taken_as_they_are(part):
    """Guards against refusing too much, and a copy that loses a key or an image."""
    (turn,) = check_messages(user(part))
    taken, text = turn["content"]
    assert taken.keys() == part.keys() and text == TEXT
    assert all(taken[key] is part[key] for key in ("image", "video") if key in part)
    assert all(taken[key] == part[key] for key in PART_KEYS[part["type"]] if key in part)
    assert taken is not part, "the caller's part would be changed"


def test_numbers_of_numpy_are_pythons():
    """Guards against refusing what comes out of an array, and a record that is no JSON."""
    keys = {"min_pixels": np.int64(784), "max_pixels": np.uint32(7840), "fps": np.float32(2), "video_end": np.int8(3)}
    (turn,) = check_messages(user(VIDEO | keys))
    taken = turn["content"][0]
    assert {key: taken[key] for key in keys} == {"min_pixels": 784, "max_pixels": 7840, "fps": 2.0, "video_end": 3.0}
    assert {type(taken[key]) for key in keys} == {int, float}


def test_absent_values_are_absent():
    """Guards against refusing rows of a table, which have every key that one of them has, filled with None."""
    keys = dict.fromkeys(["image", "video", "text", *PART_KEYS["video"]])
    row = [{"role": "user", "content": [keys | IMAGE, keys | TEXT], "tool_calls": None}]
    assert check_messages(row) == user(IMAGE)


def test_chats_of_tuples_and_texts_are_read():
    turns = ({"role": "system", "content": ""}, *user(), {"role": "assistant", "content": ""}, *user(IMAGE))
    assert check_messages(turns)[-1]["content"] == [IMAGE, TEXT]
    assert check_messages([{"role": "user", "content": (IMAGE, TEXT)}]) == user(IMAGE)


VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
)
KEYS = st.sampled_from(["type", "image", "video", "text", "role", "content", *PART_KEYS["video"], "other"])
PARTS = st.dictionaries(KEYS, VALUES | st.sampled_from(["image", "video", "text"]), max_size=5)
TURNS = st.dictionaries(
    KEYS, VALUES | st.sampled_from(["user", "system"]) | st.lists(PARTS | VALUES, max_size=3), max_size=3
)


@settings(max_examples=300, deadline=None)
@given(st.lists(TURNS | VALUES, max_size=3) | st.lists(PARTS.map(lambda part: user(part)[0]), max_size=2) | VALUES)
def test_fuzzed_chats_are_taken_or_refused(messages):
    """Guards against any other exception, and a key that is neither read nor refused."""
    try:
        turns = check_messages(messages)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        return
    for turn, given_turn in zip(turns, messages, strict=True):
        if isinstance(turn["content"], list):
            for part, given_part in zip(turn["content"], given_turn["content"], strict=True):
                assert part.keys() == {key for key, value in given_part.items() if value is not None}


def test_chats_are_checked_without_torch():
    """Guards against a line of questions whose keys are checked only after seconds of imports."""
    program = "import sys, avis.messages, avis.questions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_a_part_is_any_mapping():
    """Guards against refusing a row of a data set that is a mapping but no dict."""
    from types import MappingProxyType

    assert check_messages([MappingProxyType({"role": "user", "content": [MappingProxyType(TEXT)]})]) == user()
    with pytest.raises(ValueError, match="got SimpleNamespace"):
        check_messages([SimpleNamespace(role="user", content="How many?")])
