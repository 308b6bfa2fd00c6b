"""What stands in a garden scene: the record that pictures, labels, questions and answers are all made from.

A scene is drawn from a split and an index alone, so that any process makes the same scene again::

    from garden.scenes import scene_for
    scene = scene_for("dev", 7)
    print(len(scene.animals), scene.animals[0].kind, scene.animals[0].wears)
"""

from dataclasses import dataclass

import numpy as np

KINDS = ("rabbit", "bear", "cat", "duck")
WEARS = ("glasses", "hat", "scarf", "nothing")
TONES = ("birch", "oak", "cherry", "walnut")
BACKGROUNDS = ("lawn", "meadow", "planks", "sand", "cloth")
SPLITS = ("train", "calibration", "dev", "test")
MAX_ANIMALS = 8
TOKEN = 28  # pixels on a side of one merged visual token: 14-pixel patches, merged 2 x 2


@dataclass(frozen=True)
class Animal:
    """One wooden animal. `x`, `y`: centre in pixels; `size`: height in pixels (its width is 0.75 of that)."""

    kind: str
    wears: str
    tone: str
    x: float
    y: float
    size: float
    flip: bool
    tilt: float
    colour: int


@dataclass(frozen=True)
class Scene:
    """A picture to be drawn: its size in pixels, its ground, and its animals in reading order."""

    width: int
    height: int
    background: str
    light: float
    seed: int
    animals: tuple[Animal, ...]


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


def place(
    rng: np.random.Generator,
    width: int,
    height: int,
    pairs: list[tuple[str, str]],
    cell: float | None = None,
) -> Scene:
    """Set animals into different cells of a loose grid, in reading order.

    Args:
        rng: the item's generator.
        width, height: the picture's size in pixels.
        pairs: what to place, (kind, wears) in reading order; at most `MAX_ANIMALS`.
        cell: side of a cell in pixels; drawn at random so that all animals fit when not given.

    Raises:
        ValueError: when the animals do not fit.
    """
    if cell is None:
        largest = next(c for c in range(min(width, height, 150), 0, -1) if (width // c) * (height // c) >= len(pairs))
        smallest = min(largest, 68)
        cell = float(rng.uniform(smallest, largest))
    columns, rows = int(width // cell), int(height // cell)
    if columns * rows < len(pairs) or len(pairs) > MAX_ANIMALS:
        raise ValueError(f"{len(pairs)} animals do not fit into {columns} x {rows} cells")
    chosen = np.sort(rng.choice(columns * rows, size=len(pairs), replace=False))
    cell_w, cell_h = width / columns, height / rows
    animals = []
    for where, (kind, wears) in zip(chosen, pairs, strict=True):
        row, column = divmod(int(where), columns)
        size = min(cell_w / 0.75, cell_h) * float(rng.uniform(0.80, 0.98))
        size = min(size, 1.15 * cell)
        free_x, free_y = cell_w - 0.75 * size, cell_h - size
        animals.append(
            Animal(
                kind=kind,
                wears=wears,
                tone=str(rng.choice(TONES)),
                x=(column + 0.5) * cell_w + float(rng.uniform(-0.5, 0.5)) * max(0.0, free_x),
                y=(row + 0.5) * cell_h + float(rng.uniform(-0.5, 0.5)) * max(0.0, free_y),
                size=size,
                flip=bool(rng.integers(2)),
                tilt=float(rng.uniform(-6, 6)),
                colour=int(rng.integers(4)),
            )
        )
    return Scene(
        width=width,
        height=height,
        background=str(rng.choice(BACKGROUNDS)),
        light=float(rng.uniform(0.8, 1.15)),
        seed=int(rng.integers(2**31)),
        animals=tuple(animals),
    )


def scene_for(split: str, index: int, width: int = 224, height: int = 224) -> Scene:
    """Scene number `index` of a split: one to six animals, kinds and wear drawn evenly."""
    rng = rng_for(split, index)
    return place(rng, width, height, cast(rng, int(rng.integers(1, 7))))


def dense_labels(scene: Scene) -> np.ndarray:
    """Which animal lies under each merged visual token: the targets of the first training stage.

    Returns:
        (height // 28, width // 28, 3) int64: kind and wear (1-based) and place in reading order; all 0 where
        the token's centre lies on no animal.
    """
    rows, columns = scene.height // TOKEN, scene.width // TOKEN
    y = (np.arange(rows) + 0.5)[:, None] * TOKEN
    x = (np.arange(columns) + 0.5)[None, :] * TOKEN
    labels = np.zeros((rows, columns, 3), dtype=np.int64)
    nearest = np.full((rows, columns), np.inf)
    for order, animal in enumerate(scene.animals, start=1):
        dx = np.abs(x - animal.x) / (0.375 * animal.size)
        dy = np.abs(y - animal.y) / (0.5 * animal.size)
        distance = np.maximum(dx, dy)
        inside = (distance < 0.85) & (distance < nearest)
        # An animal between four token centres still needs one token of its own.
        centre = (min(int(animal.y // TOKEN), rows - 1), min(int(animal.x // TOKEN), columns - 1))
        inside[centre] |= distance[centre] < nearest[centre]
        nearest[inside] = distance[inside]
        labels[inside] = (KINDS.index(animal.kind) + 1, WEARS.index(animal.wears) + 1, order)
    return labels
