"""Scenes with tags and signs, for the tasks that need them and for variety in the scenes of others."""

import numpy as np

from avis.garden.placement import place
from avis.garden.scenes import GLYPHS, MAX_PRICE, Level, Scene
from avis.garden.tasks.base import Extras


def draw_sign_text(rng: np.random.Generator, level: Level) -> str:
    """Draw the text of a sign of this level: letters and digits, each evenly."""
    return "".join(rng.choice(list(GLYPHS), size=int(rng.integers(level.letters[0], level.letters[1] + 1))))


def place_with_extras(
    rng: np.random.Generator,
    level: Level,
    width: int,
    height: int,
    pairs: list[tuple[str, str]],
    extras: Extras,
    prices: list[int] | None = None,
    text: str = "",
) -> Scene:
    """Place these animals in a new scene; tags and a sign are as given, or drawn when `extras` asks for them."""
    if prices is None and extras.prices:
        prices = [int(rng.integers(1, MAX_PRICE + 1)) for _ in pairs]
    if not text and extras.sign:
        text = draw_sign_text(rng, level)
    return place(rng, level, width, height, pairs, prices, text)
