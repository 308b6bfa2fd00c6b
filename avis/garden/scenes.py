"""What stands in a garden scene: the record that pictures, labels, questions and answers are all made from.

A scene is made from a random generator, which `rng_for` makes from a split and whole numbers alone, so that any process
makes the same scene again::

    from avis.garden.scenes import LEVELS, cast, place, rng_for
    rng = rng_for("dev", 7)
    scene = place(rng, LEVELS[0], 448, 448, cast(rng, 3))
    print([(animal.kind, animal.wears) for animal in scene.animals])
"""

from dataclasses import dataclass, replace

import numpy as np

KINDS = ("rabbit", "bear", "cat", "duck")
WEARS = ("glasses", "hat", "scarf", "nothing")
TONES = ("birch", "oak", "cherry", "walnut")
BACKGROUNDS = ("lawn", "meadow", "planks", "sand", "cloth")
GLYPHS = "ACEFHKLMNPRTUXYZ234679"  # what signs are written with: no two look alike
SPLITS = ("train", "calibration", "dev", "test")
MOVES = ("left", "right", "up", "down")
MAX_ANIMALS, MAX_PRICE, MAX_SIGN = 12, 9, 6
TOKEN = 28  # pixels on a side of one merged visual token: 14-pixel patches, merged 2 x 2
RATE = 2  # frames that the model sees in a second of a clip
LABELS = ("kind", "wears", "from_left", "from_top", "price", "move", "glyph", "place")
CLASSES = (len(KINDS) + 1, len(WEARS) + 1, MAX_ANIMALS + 1, MAX_ANIMALS + 1, MAX_PRICE + 1, 5, len(GLYPHS) + 1, 7)


@dataclass(frozen=True)
class Level:
    """What makes a question of this level easy or hard; every range is (least, most).

    `size`: height of an animal in pixels. `count`: how many animals. `overlap`: how deep two animals may stand into
    each other, as a share of their size. `bushes`: chance that a bush stands before an animal; `cover`: the share of
    the animal that it hides. `clutter`: things that stand around; `doubles`: pegs, blocks and logs of the animals' own
    wood beside them. `light`: brightness. `noise`: standard deviation, of 255. `pitch`: width of a sign's letter in
    pixels; `letters`: how many it has. `steps`: how many tags are to be added up.
    """

    number: int
    size: tuple[float, float]
    count: tuple[int, int]
    overlap: float
    bushes: float
    cover: float
    clutter: tuple[int, int]
    doubles: tuple[int, int]
    light: tuple[float, float]
    noise: tuple[float, float]
    pitch: tuple[float, float]
    letters: tuple[int, int]
    steps: int


LEVELS = (
    Level(1, (100, 150), (2, 3), 0.0, 0.0, 0.0, (0, 2), (0, 0), (0.92, 1.08), (0, 2), (36, 46), (2, 3), 2),
    Level(2, (84, 120), (3, 4), 0.0, 0.1, 0.2, (0, 4), (0, 1), (0.85, 1.12), (0, 5), (30, 38), (3, 4), 2),
    Level(3, (66, 96), (4, 6), 0.05, 0.2, 0.25, (1, 5), (0, 2), (0.72, 1.2), (2, 9), (25, 32), (3, 5), 3),
    Level(4, (46, 70), (6, 8), 0.2, 0.3, 0.35, (2, 7), (1, 3), (0.55, 1.25), (6, 16), (17, 25), (4, 6), 4),
    Level(5, (30, 50), (8, 11), 0.35, 0.45, 0.5, (3, 9), (2, 4), (0.38, 1.3), (10, 28), (10, 17), (5, 6), 5),
)


@dataclass(frozen=True)
class Animal:
    """One wooden animal.

    `x`, `y`: its centre in pixels; `size`: its height in pixels (its width is 0.75 of that). `price`: the number on its
    tag, 0 for no tag. In a clip, `track` holds (second, x, y) in order of time, between which it moves evenly (before
    the first and after the last it stands); `hops` the seconds at which it starts to hop, each hop `airtime` seconds
    long; `later` is what it wears from second `changes` on; and `lift` is how many pixels it is above the ground.
    """

    kind: str
    wears: str
    tone: str
    x: float
    y: float
    size: float
    flip: bool
    tilt: float
    colour: int
    price: int = 0
    track: tuple[tuple[float, float, float], ...] = ()
    hops: tuple[float, ...] = ()
    airtime: float = 1.0
    later: str = ""
    changes: float = 0.0
    lift: float = 0.0

    def at(self, second: float) -> "Animal":
        """The animal as it stands at this second of a clip."""
        x, y, wears, lift = self.x, self.y, self.wears, 0.0
        if self.track:
            times, xs, ys = zip(*self.track, strict=True)
            x, y = float(np.interp(second, times, xs)), float(np.interp(second, times, ys))
        for start in self.hops:
            if start < second < start + self.airtime:
                lift = 0.45 * self.size * float(np.sin(np.pi * (second - start) / self.airtime))
        if self.later and second >= self.changes:
            wears = self.later
        return replace(self, x=x, y=y - lift, wears=wears, lift=lift)


@dataclass(frozen=True)
class Prop:
    """A thing that is no animal: `look` is its sprite's name; bushes with `front` stand before everything else."""

    look: str
    x: float
    y: float
    size: float
    colour: int
    front: bool = False


@dataclass(frozen=True)
class Sign:
    """A board with `text`; `x`, `y`: the middle of the board, `pitch`: pixels a letter takes."""

    text: str
    x: float
    y: float
    pitch: float

    @property
    def box(self) -> tuple[float, float]:
        """Half of the board's width, and half of its height."""
        return (len(self.text) + 0.7) * self.pitch / 2, 0.85 * self.pitch


@dataclass(frozen=True)
class Scene:
    """A picture to be drawn, or a clip of `seconds`: its size in pixels, its ground, and what is there.

    `hidden`: "" for what can be seen; "bushes" when everything that stands there is wholly behind bushes, and "far"
    when it is too small to colour a pixel: then no question about it can be answered from the pixels.
    """

    width: int
    height: int
    background: str
    light: float
    noise: float
    seed: int
    animals: tuple[Animal, ...]
    props: tuple[Prop, ...] = ()
    sign: Sign | None = None
    seconds: float = 0.0
    hidden: str = ""

    def at(self, second: float) -> "Scene":
        """The scene at this second of the clip."""
        return replace(self, animals=tuple(animal.at(second) for animal in self.animals))

    def from_left(self) -> list[Animal]:
        """The animals from left to right."""
        return sorted(self.animals, key=lambda animal: animal.x)

    def from_top(self) -> list[Animal]:
        """The animals from top to bottom."""
        return sorted(self.animals, key=lambda animal: animal.y)


def rng_for(split: str, *key: int) -> np.random.Generator:
    """The random generator of one item of a split; items of different splits never share one.

    Args:
        split: one of `SPLITS`.
        key: whole numbers that name the item (and what it is drawn for).

    Raises:
        ValueError: for a split that is not there.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    return np.random.default_rng(np.random.SeedSequence((SPLITS.index(split), *key)))


def cast(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """`count` pairs of a kind and what it wears, each drawn evenly."""
    return [(str(rng.choice(KINDS)), str(rng.choice(WEARS))) for _ in range(count)]


def between(rng: np.random.Generator, ends: tuple[float, float]) -> float:
    """A number drawn evenly between two ends."""
    return float(rng.uniform(*ends))


def _clear(x: float, y: float, half_w: float, half_h: float, boxes: list[tuple], overlap: float) -> bool:
    """Whether a box stands clear of all boxes (x, y, half width, half height), up to an overlap."""
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
    """Set animals, a sign and clutter into a new scene, with no two animals level with each other.

    Args:
        rng: the item's generator.
        level: how large, how hidden, how cluttered.
        width, height: the picture's size in pixels.
        pairs: the animals to place, as (kind, wears); at most `MAX_ANIMALS`.
        prices: one number a pair for its tag; None: no tags.
        text: what the sign says; "" for no sign.
        span: animals are drawn that many times as large (clips are small).

    Returns:
        The scene, its animals from left to right.

    Raises:
        ValueError: for more animals than there may be.
    """
    if len(pairs) > MAX_ANIMALS:
        raise ValueError(f"at most {MAX_ANIMALS} animals, got {len(pairs)}")
    boxes: list[tuple[float, float, float, float]] = []
    sign = None
    if text:
        pitch = min(between(rng, level.pitch), 0.9 * width / (len(text) + 0.7))
        sign = Sign(text, 0.0, 0.0, pitch)
        half_w, half_h = sign.box
        x = between(rng, (half_w, max(half_w, width - half_w)))
        y = between(rng, (half_h, max(half_h, height - 2.4 * half_h)))
        sign = replace(sign, x=x, y=y)
        boxes.append((x, y + 0.4 * half_h, half_w, 1.4 * half_h))
    animals = _stand(rng, level, width, height, pairs, prices, boxes, span)
    boxes += [(a.x, a.y, 0.375 * a.size, 0.5 * a.size) for a in animals]
    return Scene(
        width=width,
        height=height,
        background=str(rng.choice(BACKGROUNDS)),
        light=between(rng, level.light),
        noise=between(rng, level.noise),
        seed=int(rng.integers(2**31)),
        animals=tuple(sorted(animals, key=lambda animal: animal.x)),
        props=tuple(_clutter(rng, level, width, height, animals, boxes, span)),
        sign=sign,
    )


def _stand(rng, level, width, height, pairs, prices, taken, span) -> list[Animal]:
    """Animals where there is room; all shrink until everybody fits."""
    most = 0.92 * min(height, width / 0.75)
    most = min(most, (0.55 * width * height / max(1, len(pairs))) ** 0.5)
    sizes = [min(span * between(rng, level.size), most * between(rng, (0.85, 1.0))) for _ in pairs]
    apart = 0.3 * min(width, height) / (len(pairs) + 1)
    while True:
        spots: list[tuple[float, float, float, float]] = []
        for size in sizes:
            half_w, half_h = 0.375 * size, 0.5 * size
            for _ in range(40):
                x = between(rng, (half_w, max(half_w, width - half_w)))
                y = between(rng, (half_h, max(half_h, height - half_h)))
                alone = all(abs(x - sx) >= apart and abs(y - sy) >= apart for sx, sy, *_ in spots)
                # A sign stays free of overlap: what is hidden of it cannot be read.
                box = (x, y, half_w, half_h)
                if alone and _clear(*box, spots, level.overlap) and _clear(*box, taken, 0):
                    spots.append((x, y, half_w, half_h))
                    break
            else:
                break
        if len(spots) == len(pairs):
            break
        sizes, apart = [0.93 * size for size in sizes], 0.97 * apart
    return [
        Animal(
            kind=kind,
            wears=wears,
            tone=str(rng.choice(TONES)),
            x=x,
            y=y,
            size=size,
            flip=bool(rng.integers(2)),
            tilt=between(rng, (-6, 6)),
            colour=int(rng.integers(4)),
            price=prices[i] if prices else 0,
        )
        for i, ((kind, wears), (x, y, *_), size) in enumerate(zip(pairs, spots, sizes, strict=True))
    ]


def _clutter(rng, level, width, height, animals, boxes, span) -> list[Prop]:
    """Flowers and stones (many or few, whatever the level), pegs and blocks, and bushes before some animals."""
    props, boxes = [], list(boxes)
    # How full the lawn is does not follow the level: what pruning can drop varies at every level.
    full = float(rng.random()) ** 2 * width * height / 9000
    for _ in range(int(full)):
        look = str(rng.choice(("flower", "tuft", "stone")))
        x, y = between(rng, (0, width)), between(rng, (0, height))
        props.append(Prop(look, x, y, between(rng, (14, 34)), int(rng.integers(4))))
    looks = ["ball", "pot", "bush"]
    wanted = [str(rng.choice(looks)) for _ in range(int(rng.integers(level.clutter[0], level.clutter[1] + 1)))]
    doubles = ("peg", "block", "log")
    wanted += [str(rng.choice(doubles)) for _ in range(int(rng.integers(level.doubles[0], level.doubles[1] + 1)))]
    for look in wanted:
        size = span * between(rng, level.size) * between(rng, (0.5, 0.9))
        for _ in range(20):
            x, y = between(rng, (0, width)), between(rng, (0, height))
            if _clear(x, y, 0.4 * size, 0.5 * size, boxes, 0.1):
                props.append(Prop(look, x, y, size, int(rng.integers(4))))
                boxes.append((x, y, 0.4 * size, 0.5 * size))
                break
    for animal in animals:
        if rng.random() < level.bushes:
            side = -1 if rng.random() < 0.5 else 1
            cover = level.cover * between(rng, (0.6, 1.0))
            # A bush is 0.52 of its height wide where it is widest, an animal about half of its own.
            x, y = animal.x + side * animal.size * (0.52 - 0.5 * cover), animal.y + 0.12 * animal.size
            others = [(a.x, a.y, 0.375 * a.size, 0.5 * a.size) for a in animals if a is not animal]
            if _clear(x, y, 0.3 * animal.size, 0.4 * animal.size, others, 0.2):
                props.append(Prop("bush", x, y, 0.8 * animal.size, int(rng.integers(4)), True))
    return props


def hide(rng: np.random.Generator, scene: Scene) -> Scene:
    """The scene with everything that matters out of sight: behind bushes, or too far to be seen.

    In a clip always far: bushes that move would tell what moves behind them.
    """
    return replace(scene, hidden="far" if scene.seconds else str(rng.choice(("bushes", "far"))))


def clip_times(seconds: float) -> np.ndarray:
    """The seconds at which the model sees a clip: `RATE` frames a second, the first at 0, evenly up to its last frame.

    Args:
        seconds: the clip's length.

    Returns:
        (count,) float64, count even and at least 2.
    """
    count = max(2, 2 * round(seconds * RATE / 2))
    return np.linspace(0.0, seconds - 1 / FILE_RATE, count)


FILE_RATE = 12  # frames a second in a clip's file


def dense_labels(scene: Scene) -> np.ndarray:
    """What lies under each merged visual token: the targets of the first training stage.

    Returns:
        (steps, height // 28, width // 28, 8) int64 in the order of `LABELS`; steps is 1 for a picture, and one for two
        frames of a clip. All are 0 where the token's centre lies on nothing: else 1-based kind, wear, place from the
        left and from the top among the animals in view, and direction of motion; the price; 1-based letter and place
        on a sign.
    """
    if not scene.seconds:
        return _labels_of(scene, scene)[None]
    times = clip_times(scene.seconds)
    return np.stack([_labels_of(scene.at(a), scene.at(b)) for a, b in zip(times[::2], times[1::2], strict=True)])


def _labels_of(first: Scene, last: Scene) -> np.ndarray:
    rows, columns = first.height // TOKEN, first.width // TOKEN
    labels = np.zeros((rows, columns, len(LABELS)), dtype=np.int64)
    if first.hidden:
        return labels
    y = (np.arange(rows) + 0.5)[:, None] * TOKEN
    x = (np.arange(columns) + 0.5)[None, :] * TOKEN
    nearest = np.full((rows, columns), np.inf)
    seen = []
    for before, after in zip(first.animals, last.animals, strict=True):
        now = replace(after, x=(before.x + after.x) / 2, y=(before.y + after.y) / 2)
        if 0 <= now.x < first.width and 0 <= now.y < first.height:
            dx, dy = after.x - before.x, after.y - before.y
            far = max(abs(dx), abs(dy)) > 0.02 * now.size
            move = 0 if not far else (1 + (dx > 0) if abs(dx) > abs(dy) else 3 + (dy > 0))
            seen.append((now, int(move)))
    left = {id(a): n for n, (a, _) in enumerate(sorted(seen, key=lambda s: s[0].x), start=1)}
    top = {id(a): n for n, (a, _) in enumerate(sorted(seen, key=lambda s: s[0].y), start=1)}
    for animal, move in seen:
        distance = np.maximum(np.abs(x - animal.x) / (0.375 * animal.size), np.abs(y - animal.y) / (0.5 * animal.size))
        inside = (distance < 0.85) & (distance < nearest)
        # An animal between four token centres still needs one token of its own.
        centre = (min(int(animal.y // TOKEN), rows - 1), min(int(animal.x // TOKEN), columns - 1))
        inside[centre] |= distance[centre] < nearest[centre]
        nearest[inside] = distance[inside]
        kind, wears = KINDS.index(animal.kind) + 1, WEARS.index(animal.wears) + 1
        labels[inside] = (kind, wears, left[id(animal)], top[id(animal)], animal.price, move, 0, 0)
    if first.sign:
        sign = first.sign
        for n, letter in enumerate(sign.text):
            at = sign.x + (n - (len(sign.text) - 1) / 2) * sign.pitch
            centre = (min(int(sign.y // TOKEN), rows - 1), min(max(int(at // TOKEN), 0), columns - 1))
            labels[centre] = (0, 0, 0, 0, 0, 0, GLYPHS.index(letter) + 1, n + 1)
    return labels
