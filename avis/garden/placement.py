"""Draws new scenes: animals, signs, tags and clutter, each where there is room for it::

rng = rng_for("dev", 7)
scene = place(rng, LEVELS[0], 448, 448, cast(rng, 3))
"""

from dataclasses import replace

import numpy as np

from avis.garden.scenes import (
    BACKGROUNDS,
    KINDS,
    MAX_ANIMALS,
    TOKEN,
    TONES,
    WEARS,
    Animal,
    Level,
    Prop,
    Scene,
    Sign,
    tag_drop,
)

PATCH = TOKEN / 2  # side of the vision encoder's patches, in pixels
Box = tuple[float, float, float, float]  # x and y of the centre, half of the width, half of the height


def cast(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Draw `count` pairs of a kind and what it wears, each evenly."""
    return [(str(rng.choice(KINDS)), str(rng.choice(WEARS))) for _ in range(count)]


def draw_between(rng: np.random.Generator, ends: tuple[float, float]) -> float:
    """Draw a number evenly between two ends."""
    return float(rng.uniform(*ends))


def _is_clear(x: float, y: float, half_w: float, half_h: float, boxes: list[Box], overlap: float) -> bool:
    """Return whether a box stands clear of all boxes, up to an overlap."""
    room = 1 - overlap
    return all(abs(x - bx) >= room * (half_w + bw) or abs(y - by) >= room * (half_h + bh) for bx, by, bw, bh in boxes)


def place(
    rng: np.random.Generator,
    level: Level,
    width: int,
    height: int,
    pairs: list[tuple[str, str]],
    prices: list[int] | None = None,
    text: str = "",
    span: float = 1.0,
) -> Scene:
    """Place animals, a sign and clutter in a new scene, with no two animals level with each other.

    Args:
        rng: the item's generator.
        level: how large, how hidden, how cluttered.
        width: of the scene in pixels.
        height: of the scene in pixels.
        pairs: the animals to place, as (kind, wears); at most `MAX_ANIMALS`.
        prices: one number a pair for its tag; None: no tags.
        text: of the sign; "" for no sign.
        span: animals are drawn that many times as large (videos are small).

    Returns:
        The scene, its animals from left to right.

    Raises:
        ValueError: too many animals.
    """
    if len(pairs) > MAX_ANIMALS:
        raise ValueError(f"at most {MAX_ANIMALS} animals, got {len(pairs)}")
    boxes: list[Box] = []
    sign = None
    if text:
        pitch = min(draw_between(rng, level.pitch), 0.9 * width / (len(text) + 0.7))
        snaps = level.is_readable and pitch >= TOKEN
        sign = Sign(text, 0.0, 0.0, PATCH * (pitch // PATCH) if snaps else pitch)
        half_w, half_h = sign.box
        x = draw_between(rng, (half_w, max(half_w, width - half_w)))
        y = draw_between(rng, (half_h, max(half_h, height - 2.4 * half_h)))
        sign = replace(sign, x=x, y=y)
        if snaps:
            sign = snap_sign(sign, width)
        boxes.append((sign.x, sign.y + 0.4 * half_h, half_w, 1.4 * half_h))
    animals = _place_animals(rng, level, width, height, pairs, prices, boxes, span)
    boxes += [(a.x, a.y, 0.375 * a.size, 0.5 * a.size) for a in animals]
    return Scene(
        width=width,
        height=height,
        background=str(rng.choice(BACKGROUNDS)),
        light=draw_between(rng, level.light),
        noise=draw_between(rng, level.noise),
        seed=int(rng.integers(2**31)),
        animals=tuple(sorted(animals, key=lambda animal: animal.x)),
        props=tuple(_place_props(rng, level, width, height, animals, boxes, span)),
        sign=sign,
    )


def _place_animals(
    rng: np.random.Generator,
    level: Level,
    width: int,
    height: int,
    pairs: list[tuple[str, str]],
    prices: list[int] | None,
    taken: list[Box],
    span: float,
) -> list[Animal]:
    """Place animals where there is room, clear of the boxes `taken`; all shrink until everybody fits."""
    most = 0.92 * min(height, width / 0.75)
    most = min(most, (0.55 * width * height / max(1, len(pairs))) ** 0.5)
    sizes = [min(span * draw_between(rng, level.size), most * draw_between(rng, (0.85, 1.0))) for _ in pairs]
    apart = 0.3 * min(width, height) / (len(pairs) + 1)
    snaps = 6 if prices and level.is_readable else 0  # then it is too crowded for that
    while True:
        spots: list[Box] = []
        for size in sizes:
            half_w, half_h = 0.375 * size, 0.5 * size
            for _ in range(40):
                x = draw_between(rng, (half_w, max(half_w, width - half_w)))
                y = draw_between(rng, (half_h, max(half_h, height - half_h)))
                if snaps > 0:
                    x, y = snap_tag(level, x, y, size)
                    if not (half_w <= x <= width - half_w and half_h <= y <= height - half_h):
                        continue
                alone = all(abs(x - sx) >= apart and abs(y - sy) >= apart for sx, sy, *_ in spots)
                # A sign stays free of overlap: a hidden letter cannot be read.
                if (
                    alone
                    and _is_clear(x, y, half_w, half_h, spots, level.overlap)
                    and _is_clear(x, y, half_w, half_h, taken, 0)
                ):
                    spots.append((x, y, half_w, half_h))
                    break
            else:
                break
        if len(spots) == len(pairs):
            break
        sizes, apart, snaps = [0.93 * size for size in sizes], 0.97 * apart, snaps - 1
    return [
        Animal(
            kind=kind,
            wears=wears,
            tone=str(rng.choice(TONES)),
            x=x,
            y=y,
            size=size,
            flip=bool(rng.integers(2)),
            tilt=draw_between(rng, (-6, 6)),
            colour=int(rng.integers(4)),
            price=prices[i] if prices else 0,
            tag=level.tag,
        )
        for i, ((kind, wears), (x, y, *_), size) in enumerate(zip(pairs, spots, sizes, strict=True))
    ]


def snap_tag(level: Level, x: float, y: float, size: float) -> tuple[float, float]:
    """Return the nearest place of an animal where the middle of its tag is a corner of the encoder's patches.

    A digit then always falls into patches in the same way, and a small encoder learns to read it from far fewer images.
    """
    drop = tag_drop(level.tag) * size
    return PATCH * round(x / PATCH), PATCH * round((y + drop) / PATCH) - drop


def snap_sign(sign: Sign, width: int) -> Sign:
    """Return the sign moved to the nearest place where the middles of its letters are corners of patches.

    Args:
        sign: whose letters are a multiple of a patch apart.
        width: of the scene in pixels.
    """
    first, (half_w, _) = sign.letter_x(0), sign.box
    x = sign.x + PATCH * round(first / PATCH) - first
    x += PATCH * (x < half_w) - PATCH * (x > width - half_w)
    return replace(sign, x=x, y=PATCH * max(2, round(sign.y / PATCH)))


def _place_props(
    rng: np.random.Generator,
    level: Level,
    width: int,
    height: int,
    animals: list[Animal],
    boxes: list[Box],
    span: float,
) -> list[Prop]:
    """Place flowers and stones (many or few, whatever the level), pegs and blocks, and bushes before some animals."""
    props: list[Prop] = []
    boxes = list(boxes)
    # How full the lawn is does not follow the level: what pruning can drop varies at every level.
    full = float(rng.random()) ** 2 * width * height / 9000
    for _ in range(int(full)):
        look = str(rng.choice(("flower", "tuft", "stone")))
        x, y = draw_between(rng, (0, width)), draw_between(rng, (0, height))
        props.append(Prop(look, x, y, draw_between(rng, (14, 34)), int(rng.integers(4))))
    looks = ["ball", "pot", "bush"]
    wanted = [str(rng.choice(looks)) for _ in range(int(rng.integers(level.clutter[0], level.clutter[1] + 1)))]
    doubles = ("peg", "block", "log")
    wanted += [str(rng.choice(doubles)) for _ in range(int(rng.integers(level.doubles[0], level.doubles[1] + 1)))]
    for look in wanted:
        size = span * draw_between(rng, level.size) * draw_between(rng, (0.5, 0.9))
        for _ in range(20):
            x, y = draw_between(rng, (0, width)), draw_between(rng, (0, height))
            if _is_clear(x, y, 0.4 * size, 0.5 * size, boxes, 0.1):
                props.append(Prop(look, x, y, size, int(rng.integers(4))))
                boxes.append((x, y, 0.4 * size, 0.5 * size))
                break
    for animal in animals:
        if rng.random() < level.bushes:
            side = -1 if rng.random() < 0.5 else 1
            cover = level.cover * draw_between(rng, (0.6, 1.0))
            # A bush is 0.52 of its height wide where it is widest, an animal about half of its own.
            x, y = animal.x + side * animal.size * (0.52 - 0.5 * cover), animal.y + 0.12 * animal.size
            others = [(a.x, a.y, 0.375 * a.size, 0.5 * a.size) for a in animals if a is not animal]
            if _is_clear(x, y, 0.3 * animal.size, 0.4 * animal.size, others, 0.2):
                props.append(Prop("bush", x, y, 0.8 * animal.size, int(rng.integers(4)), True))
    return props


def hide(rng: np.random.Generator, scene: Scene) -> Scene:
    """Return the scene with everything that matters out of sight: behind bushes, or too far to be seen.

    In a video it is always far: bushes that move would show what moves behind them. A page is empty then.
    """
    return replace(scene, hidden="far" if scene.seconds or scene.page else str(rng.choice(("bushes", "far"))))
