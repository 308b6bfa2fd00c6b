"""Scenes with tags and signs on them, for the tasks that need these and as a side of the scenes of others."""

import numpy as np

from avis.garden.scenes import GLYPHS, MAX_PRICE, Level, Scene, place
from avis.garden.tasks.base import Extras


def sign_text(rng: np.random.Generator, level: Level) -> str:
    """What a sign of this level says: letters and digits, each drawn evenly."""
    return "".join(rng.choice(list(GLYPHS), size=int(rng.integers(level.letters[0], level.letters[1] + 1))))


def furnished(
    rng: np.random.Generator,
    level: Level,
    width: int,
    height: int,
    pairs: list[tuple[str, str]],
    extras: Extras,
    prices: list[int] | None = None,
    text: str = "",
) -> Scene:
    """A new scene with these animals; tags and a sign as given, else drawn when `extras` asks for them."""
    if prices is None and extras.prices:
        prices = [int(rng.integers(1, MAX_PRICE + 1)) for _ in pairs]
    if not text and extras.sign:
        text = sign_text(rng, level)
    return place(rng, level, width, height, pairs, prices, text)
