"""Scenes: the records from which images, labels, questions and answers are all made.

A scene is drawn from a random generator, which `rng_for` makes from a split and whole numbers alone, so that any
process draws the same scene again::

    from avis.garden.placement import cast, place
    from avis.garden.scenes import LEVELS, rng_for
    rng = rng_for("dev", 7)
    scene = place(rng, LEVELS[0], 448, 448, cast(rng, 3))
    print([(animal.kind, animal.wears) for animal in scene.animals])

There are two gardens for a while: the first one's questions are hard by one `Level` of `LEVELS`; the second one's by
two independent axes, seeing (`SEE`) and thinking (`THINK`), which `level_for` combines.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from avis.garden.pages import Page

KINDS = ("rabbit", "bear", "cat", "duck")
WEARS = ("glasses", "hat", "scarf", "nothing")
TONES = ("birch", "oak", "cherry", "walnut")
BACKGROUNDS = ("lawn", "meadow", "planks", "sand", "cloth")
GLYPHS = "ACEFHKLMNPRTUXYZ234679"  # what signs are written with: no two look alike
SYMBOLS = GLYPHS + "0158"  # all that can be written anywhere: signs' letters, and every digit
SECOND = "garden2:"  # how the names of the second garden's splits begin
SPLITS = ("train", "calibration", "dev", "test")
SECOND_SPLITS = tuple(SECOND + name for name in (*SPLITS, "test2"))
MOVES = ("left", "right", "up", "down")
MAX_ANIMALS, MAX_PRICE, MAX_SIGN = 12, 9, 6
MAX_SIDE, MAX_STEPS = 32, 10  # merged tokens on a side of a scene, and time steps of a video, that labels tell apart
TOKEN = 28  # pixels on a side of one merged visual token: 14-pixel patches, merged 2 x 2
RATE = 2  # frames that the model sees in a second of a video
FILE_RATE = 12  # frames a second in a video's file


@dataclass(frozen=True)
class Level:
    """What makes a question of this level easy or hard; every range is (least, most).

    Attributes:
        number: of the level, from 1.
        size: height of an animal in pixels.
        count: number of animals.
        overlap: how deep two animals may stand into each other, as a share of their size.
        bushes: probability that a bush stands before an animal.
        cover: share of the animal that the bush hides.
        clutter: number of things that stand around.
        doubles: number of pegs, blocks and logs of the animals' own wood.
        light: brightness.
        noise: standard deviation, of 255.
        pitch: width of a sign's letter in pixels.
        letters: number of a sign's letters.
        steps: number of tags to add up.
        terms: number of reasoning steps of a question; (0, 0) in the first garden.
        tag: side of a tag, as a share of the animal's height.
        see: how hard it is to see, 1 to 5; 0 in the first garden.
        think: how many steps it takes, 1 to 5; 0 in the first garden.
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
    terms: tuple[int, int] = (0, 0)
    tag: float = 0.36
    see: int = 0
    think: int = 0

    @property
    def is_readable(self) -> bool:
        """Whether everything that is written in a scene can be read: in the second garden at see 1 to 3."""
        return 1 <= self.see <= 3

    @property
    def crowd(self) -> int:
        """Which number of animals a video has, 1 to 5: it follows `think`, in the first garden the level."""
        return self.think or self.number


LEVELS = (
    Level(1, (100, 150), (2, 3), 0.0, 0.0, 0.0, (0, 2), (0, 0), (0.92, 1.08), (0, 2), (36, 46), (2, 3), 2),
    Level(2, (84, 120), (3, 4), 0.0, 0.1, 0.2, (0, 4), (0, 1), (0.85, 1.12), (0, 5), (30, 38), (3, 4), 2),
    Level(3, (66, 96), (4, 6), 0.05, 0.2, 0.25, (1, 5), (0, 2), (0.72, 1.2), (2, 9), (25, 32), (3, 5), 3),
    Level(4, (46, 70), (6, 8), 0.2, 0.3, 0.35, (2, 7), (1, 3), (0.55, 1.25), (6, 16), (17, 25), (4, 6), 4),
    Level(5, (30, 50), (8, 11), 0.35, 0.45, 0.5, (3, 9), (2, 4), (0.38, 1.3), (10, 28), (10, 17), (5, 6), 5),
)


@dataclass(frozen=True)
class See:
    """How hard it is to see what is there; the attributes are those of `Level`."""

    size: tuple[float, float]
    overlap: float
    bushes: float
    cover: float
    clutter: tuple[int, int]
    doubles: tuple[int, int]
    light: tuple[float, float]
    noise: tuple[float, float]
    pitch: tuple[float, float]
    tag: float


@dataclass(frozen=True)
class Think:
    """How many steps it takes to answer; the attributes are those of `Level`."""

    count: tuple[int, int]
    letters: tuple[int, int]
    steps: int
    terms: tuple[int, int]


# At 1 to 3 everything can be read: an animal's tag has a digit of 24 pixels or more.
SEE = (
    See((104, 150), 0.0, 0.0, 0.0, (0, 2), (0, 0), (0.92, 1.08), (0, 2), (36, 46), 0.42),
    See((90, 124), 0.0, 0.1, 0.2, (0, 4), (0, 1), (0.85, 1.12), (0, 5), (30, 38), 0.42),
    See((76, 102), 0.0, 0.2, 0.2, (1, 5), (0, 2), (0.72, 1.2), (2, 9), (28, 34), 0.42),
    See((48, 70), 0.15, 0.3, 0.3, (2, 7), (1, 3), (0.55, 1.25), (6, 16), (17, 25), 0.4),
    See((30, 50), 0.3, 0.45, 0.5, (3, 9), (2, 4), (0.38, 1.3), (10, 28), (10, 17), 0.38),
)
THINK = (
    Think((2, 3), (2, 3), 2, (2, 2)),
    Think((3, 4), (3, 4), 3, (3, 3)),
    Think((4, 6), (3, 5), 3, (4, 5)),
    Think((6, 8), (4, 6), 4, (6, 7)),
    Think((8, 11), (5, 6), 5, (8, 10)),
)


def level_for(see: int, think: int) -> Level:
    """Return the second garden's level of two axes.

    Args:
        see: 1 to 5: size, overlap, bushes, clutter, light and noise.
        think: 1 to 5: numbers of animals, letters and reasoning steps.

    Raises:
        ValueError: one of them is out of range.
    """
    if not (1 <= see <= len(SEE) and 1 <= think <= len(THINK)):
        raise ValueError(f"see must be 1 to {len(SEE)} and think 1 to {len(THINK)}, got {see} and {think}")
    return Level(number=see, **vars(SEE[see - 1]), **vars(THINK[think - 1]), see=see, think=think)


@dataclass(frozen=True)
class Animal:
    """One wooden animal.

    Attributes:
        kind: one of `KINDS`.
        wears: one of `WEARS`.
        tone: its wood, one of `TONES`.
        x: of its centre, in pixels.
        y: of its centre, in pixels.
        size: its height in pixels; its width is 0.75 of that.
        flip: whether it faces left.
        tilt: degrees, counterclockwise.
        colour: number of the paint of what it wears, 0 to 3.
        price: the number on its tag; 0 for no tag.
        track: in a video, (second, x, y) in order of time; it moves evenly between them.
        hops: the seconds at which it starts to hop.
        airtime: the seconds that a hop takes.
        later: what it wears from second `changes` on; "" for no change.
        changes: the second of that change.
        lift: pixels between it and the ground.
        tag: side of its tag, as a share of its height.
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
    tag: float = 0.36

    @property
    def tag_box(self) -> tuple[float, float, float]:
        """Where its tag is, in pixels: x and y of the centre, and the side; above it a scarf can be seen.

        The side of a large tag of the second garden is a multiple of 7, so that digits come in few sizes, as type does.
        """
        side = self.tag * self.size
        if self.tag != 0.36 and side >= TOKEN:
            side = 7.0 * round(side / 7)
        return self.x, self.y + tag_drop(self.tag) * self.size, side

    def at(self, second: float) -> "Animal":
        """Return the animal as it stands at this second of a video."""
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


def tag_drop(tag: float) -> float:
    """Return how far below an animal's centre that of its tag is, for the tag's side; both are shares of its height."""
    return 0.3 + (tag - 0.36) / 2


@dataclass(frozen=True)
class Prop:
    """A thing that is no animal.

    Attributes:
        look: its sprite's name, see `sprites.prop_sprite`.
        x: of its centre, in pixels.
        y: of its centre, in pixels.
        size: its height in pixels.
        colour: number of its paint or wood, 0 to 3.
        front: whether it stands before everything else.
    """

    look: str
    x: float
    y: float
    size: float
    colour: int
    front: bool = False


@dataclass(frozen=True)
class Sign:
    """A board with letters.

    Attributes:
        text: its letters, of `GLYPHS`.
        x: of the board's middle, in pixels.
        y: of the board's middle, in pixels.
        pitch: width of a letter in pixels.
    """

    text: str
    x: float
    y: float
    pitch: float

    @property
    def box(self) -> tuple[float, float]:
        """Half of the board's width, and half of its height."""
        return (len(self.text) + 0.7) * self.pitch / 2, 0.85 * self.pitch

    def letter_x(self, number: int) -> float:
        """Return where the middle of a letter is, in pixels from the left; letters are numbered from 0."""
        return self.x + (number - (len(self.text) - 1) / 2) * self.pitch


@dataclass(frozen=True)
class Scene:
    """An image or a video to be drawn.

    Attributes:
        width: in pixels.
        height: in pixels.
        background: one of `BACKGROUNDS`.
        light: brightness.
        noise: standard deviation, of 255.
        seed: of the ground and the noise.
        animals: from left to right.
        props: the things that are no animals.
        sign: None for no sign.
        seconds: length of the video; 0 for an image.
        hidden: "" for a scene that can be seen; "bushes" when everything that matters is wholly behind bushes, "far"
            when it is too small to colour a pixel. No question about a hidden scene can be answered from its pixels.
        page: what stands on it when it is a page; it then has no animals, and `background` is one of `pages.PAPERS`.
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
    page: "Page | None" = None

    def at(self, second: float) -> "Scene":
        """Return the scene at this second of the video."""
        return replace(self, animals=tuple(animal.at(second) for animal in self.animals))

    def from_left(self) -> list[Animal]:
        """Return the animals from left to right."""
        return sorted(self.animals, key=lambda animal: animal.x)

    def from_top(self) -> list[Animal]:
        """Return the animals from top to bottom."""
        return sorted(self.animals, key=lambda animal: animal.y)


def rng_for(split: str, *key: int) -> np.random.Generator:
    """Return the random generator of one item of a split; items of different splits never share one.

    Args:
        split: one of `SPLITS` or `SECOND_SPLITS`.
        key: whole numbers that name the item (and what it is drawn for).

    Raises:
        ValueError: no such split.
    """
    names = SPLITS + SECOND_SPLITS
    if split not in names:
        raise ValueError(f"split must be one of {', '.join(names)}, got {split!r}")
    return np.random.default_rng(np.random.SeedSequence((names.index(split), *key)))


def token_at(scene: Scene, x: float, y: float) -> tuple[int, int]:
    """Return row and column of the merged token that holds a point, or of the nearest one in the scene."""
    row, column = int(y // TOKEN), int(x // TOKEN)
    return min(max(row, 0), scene.height // TOKEN - 1), min(max(column, 0), scene.width // TOKEN - 1)


def video_times(seconds: float) -> np.ndarray:
    """Return the seconds at which the model sees a video: `RATE` frames a second, evenly from 0 to its last frame.

    Args:
        seconds: the video's length.

    Returns:
        (count,) float64, count even and at least 2.
    """
    count = max(2, 2 * round(seconds * RATE / 2))
    return np.linspace(0.0, seconds - 1 / FILE_RATE, count)
