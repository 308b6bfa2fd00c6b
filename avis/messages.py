"""Chats: what a turn and its parts may hold, checked and copied in one form; no torch::

    part = {"type": "image", "image": "a.jpg", "max_pixels": 100_000}
    turns = check_messages([{"role": "user", "content": [part, {"type": "text", "text": "How many cats?"}]}])

The keys of an image or video beside its type and content have the names and meanings of qwen-vl-utils 0.0.14. A key is
honoured or refused, never ignored.
"""

import math
from collections.abc import Mapping
from typing import Any

from avis.config import MAX_PIXELS_RANGE, MIN_PIXELS_RANGE, NUM_FRAMES_RANGE, brief, real_number, whole_number

ROLES = ("system", "user", "assistant")
SIZE_KEYS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
# Per type of a part its keys, beside its type and its content.
PART_KEYS: dict[str, tuple[str, ...]] = {
    "image": SIZE_KEYS,
    "video": (*SIZE_KEYS, "fps", "nframes", "video_start", "video_end"),
    "text": (),
}
_WHOLE = {
    "min_pixels": MIN_PIXELS_RANGE,
    "max_pixels": MAX_PIXELS_RANGE,
    "resized_height": (1, 100_000),
    "resized_width": (1, 100_000),
    "nframes": NUM_FRAMES_RANGE,
}


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """Return a copy of a chat in which every turn and part has the keys that are read, and no others.

    Args:
        messages: a chat as a user wrote it. A key whose value is None counts as absent.

    Returns:
        The turns. Images and videos are the same objects; numbers of NumPy are Python's.

    Raises:
        ValueError: what is wrong with it, in one line.
    """
    if not isinstance(messages, (list, tuple)):
        raise ValueError(f"a chat is a list of turns, got {type(messages).__name__}")
    if any(isinstance(turn, (list, tuple)) for turn in messages):
        raise ValueError("one chat is answered at a time, got a list of chats")
    turns = [_checked_turn(turn) for turn in messages]
    users = [turn for turn in turns if turn["role"] == "user"]
    if not users:
        raise ValueError("the chat has no user turn")
    if not any(text.strip() for turn in users for text in turn_texts(turn)):
        raise ValueError("the chat asks nothing: no user turn has a text")
    return turns


def turn_texts(turn: Mapping[str, Any]) -> list[str]:
    """Return the texts of a turn, in order."""
    if isinstance(turn["content"], str):
        return [turn["content"]]
    return [part["text"] for part in turn["content"] if part["type"] == "text"]


def check_item_keys(kind: str, content: Any, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of an image's or video's keys.

    Args:
        kind: type of the part.
        content: the image, video or text. `fps` of a list of images is the list's own rate.
        keys: the others of the part, with their values.

    Raises:
        ValueError: an unknown key, a value of a wrong type or out of range, or keys that contradict each other.
    """
    known = PART_KEYS[kind]
    for key in keys:
        if key not in known:
            has = f"type, {kind}, {', '.join(known)}" if known else f"type and {kind}"
            raise ValueError(f"a part of type {kind} has an unknown key {brief(key)}: its keys are {has}")
    values = {
        key: whole_number(key, value, *_WHOLE[key]) if key in _WHOLE else _positive(key, value)
        for key, value in keys.items()
    }
    if values.get("min_pixels", 0) > values.get("max_pixels", math.inf):
        raise ValueError(f"min_pixels {values['min_pixels']} exceeds max_pixels {values['max_pixels']}")
    sides = values.keys() & {"resized_height", "resized_width"}
    if len(sides) == 1:
        raise ValueError("resized_height and resized_width need each other")
    if sides and values.keys() & {"min_pixels", "max_pixels"}:
        raise ValueError("resized_height and resized_width exclude min_pixels and max_pixels")
    if "fps" in values and "nframes" in values and not isinstance(content, (list, tuple)):
        raise ValueError("fps and nframes exclude each other")
    if values.get("video_start", 0) >= values.get("video_end", math.inf):
        start = values.get("video_start", 0)
        raise ValueError(f"video_start {start} is not before video_end {values['video_end']}")
    return values


def _checked_turn(turn: Any) -> dict[str, Any]:
    turn = _without_none(turn, "a turn is a dictionary with role and content")
    for key in turn:
        if key not in ("role", "content"):
            raise ValueError(f"a turn has an unknown key {brief(key)}: its keys are role and content")
    if "role" not in turn:
        raise ValueError(f"a turn has no role: it is one of {', '.join(ROLES)}")
    role, content = turn["role"], turn.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"the role of a turn is one of {', '.join(ROLES)}, got {brief(role)}")
    if isinstance(content, str):
        return {"role": role, "content": content}
    if content is None:
        raise ValueError(f"a turn of role {role} has no content")
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"the content of a turn is a text or a list of parts, got {type(content).__name__}")
    if not content:
        raise ValueError(f"the content of a turn of role {role} is empty")
    return {"role": role, "content": [_checked_part(part) for part in content]}


def _checked_part(given: Any) -> dict[str, Any]:
    part = _without_none(given, "a part of a turn is a dictionary with its type and content")
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in PART_KEYS:
        found = f"got {brief(kind)}" if "type" in part else f"got none, but the keys {brief(list(part))}"
        raise ValueError(f"the type of a part is one of {', '.join(PART_KEYS)}, {found}")
    if kind not in part:
        raise ValueError(f"a part of type {kind} has no {kind}")
    content = part[kind]
    if kind == "text" and not isinstance(content, str):
        raise ValueError(f"a text is a string, got {type(content).__name__}")
    others = {key: value for key, value in part.items() if key not in ("type", kind)}
    return {"type": kind, kind: content} | check_item_keys(kind, content, others)


def _without_none(value: Any, form: str) -> dict[Any, Any]:
    """Return a dictionary without absent values: tables fill the keys that other rows have with None."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{form}, got {type(value).__name__}")
    return {key: one for key, one in value.items() if one is not None}


def _positive(key: str, value: Any) -> float:
    """Return seconds or a rate; the start of a video may be 0."""
    number = real_number(key, value)
    if not (0 < number or key == "video_start" and number == 0) or number == math.inf:
        raise ValueError(
            f"{key} must be {'0 or more' if key == 'video_start' else 'positive'} and finite, got {number}"
        )
    return number
