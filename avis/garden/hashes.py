"""Hashes of what the garden draws, for the records of data sets and results.

They change when an item or a pixel does, and not when source files are formatted or renamed::

    items_sha256("dev", range(1000))
    pixels_sha256()
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from avis.garden.pages import PAPERS, Band, Bar, Cell, Icon, Page
from avis.garden.render import render, render_frames
from avis.garden.scenes import BACKGROUNDS, KINDS, SECOND, SEE, SYMBOLS, TONES, WEARS, Animal, Prop, Scene, Sign
from avis.garden.sprites import PROP_LOOKS
from avis.garden.tasks import item_for

_SECOND_FIELDS = {"stem", "see", "think", "layout", "tag", "page"}


def items_sha256(split: str, indices: Iterable[int]) -> str:
    """Return the SHA-256 of items as drawn: scenes, questions and answers, without their pixels.

    Args:
        split: of the items.
        indices: their numbers in the split. A thousand items take about a second.
    """
    digest = hashlib.sha256()
    for index in indices:
        record = asdict(item_for(split, index))
        if not split.startswith(SECOND):
            record = _as_first(record)
        digest.update(json.dumps(record, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _as_first(record: Any) -> Any:
    """Return a record of the first garden without the fields that only the second one uses."""
    if isinstance(record, dict):
        return {name: _as_first(value) for name, value in record.items() if name not in _SECOND_FIELDS}
    return [_as_first(value) for value in record] if isinstance(record, list | tuple) else record


def pixels_sha256(split: str = "dev") -> str:
    """Return the SHA-256 of a few rendered scenes, in which every kind of thing, ground and hiding place occurs.

    It takes about a second.

    Args:
        split: the second garden's have larger tags and pages, too.
    """
    animals = tuple(
        Animal(kind, wears, tone, 35 + 50 * n, 60 + 10 * n, 90, flip=n % 2 == 1, tilt=4 * n, colour=n, price=1 + 2 * n)
        for n, (kind, wears, tone) in enumerate(zip(KINDS, WEARS, TONES, strict=True))
    )
    props = tuple(
        Prop(look, 12 + 25 * n, 150 + 5 * n, 40, n % 4, look == "bush") for n, look in enumerate(sorted(PROP_LOOKS))
    )
    sign = Sign("A7K", 150, 180, 18)
    digest = hashlib.sha256()
    for number, background in enumerate(BACKGROUNDS):
        hidden = ("", "", "", "far", "bushes")[number]
        light, noise = (1.0, 0.0) if number == 0 else (0.7, 9.0)
        scene = Scene(224, 224, background, light, noise, number, animals, props, sign, hidden=hidden)
        digest.update(render(scene).tobytes())
    hopping = replace(animals[0], track=((0, 35, 60), (2, 160, 60)), hops=(0.5,), later="hat", changes=1.0)
    video = Scene(224, 224, BACKGROUNDS[0], 1.0, 5.0, 9, (hopping,), seconds=2.0)
    for frame in render_frames(video):
        digest.update(frame.tobytes())
    if split.startswith(SECOND):
        tagged = tuple(replace(animal, tag=SEE[0].tag) for animal in animals)
        digest.update(render(Scene(224, 224, BACKGROUNDS[0], 1.0, 0.0, 0, tagged)).tobytes())
        for number, paper in enumerate(PAPERS):
            digest.update(render(Scene(280, 224, paper, 0.9, 3.0 * number, number, (), page=_page())).tobytes())
    return digest.hexdigest()


def _page() -> Page:
    """Return a page with every glyph, kind of animal and paint."""
    size = len(SYMBOLS) // 2
    words = [Cell(SYMBOLS[n * size : (n + 1) * size], n, 1, 140, 20 + 25 * n, 21, 14 + n) for n in range(2)]
    icons = [
        Icon(kind, 0, n, 35 + 50 * n, 200, 40, tone) for n, (kind, tone) in enumerate(zip(KINDS, TONES, strict=True))
    ]
    bars = [Bar(n + 1, 2 + 3 * n, 35 + 50 * n, 170, 30, 8, n) for n in range(len(KINDS))]
    bands = [Band(0, 30, 280, 31, 0.5), Band(0, 60, 140, 80, 0.07)]
    return Page("chart", tuple(words), tuple(icons), tuple(bars), tuple(bands))
