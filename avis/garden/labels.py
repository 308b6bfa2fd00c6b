"""Dense labels: what each merged visual token of a scene shows, known from its record.

They are the targets of the vision encoder's first training, and stand in for its features where the language model is
trained without images::

    labels = dense_labels(item_for("dev", 7).scenes[0])      # (steps, rows, columns, 8)
"""

from dataclasses import replace

import numpy as np

from avis.garden.scenes import GLYPHS, KINDS, MAX_ANIMALS, MAX_PRICE, MAX_SIGN, TOKEN, WEARS, Animal, Scene, video_times

LABEL_NAMES = ("kind", "wears", "from_left", "from_top", "price", "move", "glyph", "place")
# The number of classes of each label: 0 for nothing, and 1-based values.
LABEL_CLASSES = (
    len(KINDS) + 1,
    len(WEARS) + 1,
    MAX_ANIMALS + 1,
    MAX_ANIMALS + 1,
    MAX_PRICE + 1,
    5,
    len(GLYPHS) + 1,
    MAX_SIGN + 1,
)


def dense_labels(scene: Scene) -> np.ndarray:
    """Return what lies under each merged visual token.

    Returns:
        (steps, height // 28, width // 28, 8) int64 in the order of `LABEL_NAMES`; steps is 1 for an image, and one for
        every two frames of a video. All are 0 where the token's centre lies on nothing. Else they are 1-based kind,
        wear, place from the left and from the top among the animals in view, the price, the 1-based direction of
        motion, and the 1-based letter and place on a sign.
    """
    if not scene.seconds:
        return _labels_of_step(scene, scene)[None]
    times = video_times(scene.seconds)
    return np.stack([_labels_of_step(scene.at(a), scene.at(b)) for a, b in zip(times[::2], times[1::2], strict=True)])


def _labels_of_step(first: Scene, last: Scene) -> np.ndarray:
    """Return the labels of a video's two frames; for an image both are the same scene."""
    rows, columns = first.height // TOKEN, first.width // TOKEN
    labels: np.ndarray = np.zeros((rows, columns, len(LABEL_NAMES)), dtype=np.int64)
    if first.hidden:
        return labels
    y = (np.arange(rows) + 0.5)[:, None] * TOKEN
    x = (np.arange(columns) + 0.5)[None, :] * TOKEN
    nearest = np.full((rows, columns), np.inf)
    seen = _animals_in_view(first, last)
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
        for number, letter in enumerate(sign.text):
            at = sign.letter_x(number)
            centre = (min(int(sign.y // TOKEN), rows - 1), min(max(int(at // TOKEN), 0), columns - 1))
            labels[centre] = (0, 0, 0, 0, 0, 0, GLYPHS.index(letter) + 1, number + 1)
    return labels


def _animals_in_view(first: Scene, last: Scene) -> list[tuple[Animal, int]]:
    """Return the animals between two frames, each with its label of motion: 0 still, 1 left, 2 right, 3 up, 4 down."""
    seen = []
    for before, after in zip(first.animals, last.animals, strict=True):
        now = replace(after, x=(before.x + after.x) / 2, y=(before.y + after.y) / 2)
        if 0 <= now.x < first.width and 0 <= now.y < first.height:
            dx, dy = after.x - before.x, after.y - before.y
            is_moving = max(abs(dx), abs(dy)) > 0.02 * now.size
            move = 0 if not is_moving else (1 + (dx > 0) if abs(dx) > abs(dy) else 3 + (dy > 0))
            seen.append((now, int(move)))
    return seen
