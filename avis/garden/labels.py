"""Dense labels: what each merged visual token of a scene shows, known from its record.

They are the targets of the vision encoder's first training, and stand in for its features where the language model is
trained without images::

    labels = dense_labels(item_for("dev", 7).scenes[0])      # (steps, rows, columns, 12)
"""

from dataclasses import replace

import numpy as np

from avis.garden.pages import MAX_BAR, label_page
from avis.garden.scenes import (
    KINDS,
    MAX_ANIMALS,
    MAX_PRICE,
    MAX_SIDE,
    MAX_SIGN,
    MAX_STEPS,
    SYMBOLS,
    TOKEN,
    WEARS,
    Animal,
    Scene,
    token_at,
    video_times,
)

# The number of classes of each label: 0 for nothing, and 1-based values.
_CLASSES = {
    "kind": len(KINDS) + 1,
    "wears": len(WEARS) + 1,
    "from_left": MAX_ANIMALS + 1,
    "from_top": MAX_ANIMALS + 1,
    "price": MAX_PRICE + 1,
    "move": 5,
    "glyph": len(SYMBOLS) + 1,
    "place": MAX_SIGN + 1,
    "column": MAX_SIDE + 1,
    "row": MAX_SIDE + 1,
    "step": MAX_STEPS + 1,
    "height": MAX_BAR + 1,
}
LABEL_NAMES, LABEL_CLASSES = tuple(_CLASSES), tuple(_CLASSES.values())
_AT = {name: number for number, name in enumerate(LABEL_NAMES)}
_TAG_MARGIN = TOKEN / 4  # a token also shows a tag whose edge is this close to its centre


def dense_labels(scene: Scene) -> np.ndarray:
    """Return what lies under each merged visual token.

    Returns:
        (steps, height // 28, width // 28, 12) int64 in the order of `LABEL_NAMES`; steps is 1 for an image, and one for
        every two frames of a video. All are 0 where the token's centre lies on nothing. Else they are 1-based kind,
        wear, place from the left and from the top among the animals in view, the price (on the tag alone), the 1-based
        direction of motion, the 1-based letter (of `SYMBOLS`) and place on a sign, the 1-based column and row of the
        thing's centre in merged tokens, the 1-based step of a video, and the height of a bar. What the labels of
        a page are: `pages.label_page`.
    """
    if not scene.seconds:
        return _labels_of_step(scene, scene)[None]
    times = video_times(scene.seconds)
    steps = [_labels_of_step(scene.at(a), scene.at(b)) for a, b in zip(times[::2], times[1::2], strict=True)]
    for number, labels in enumerate(steps, start=1):
        labels[labels.any(-1), _AT["step"]] = number
    return np.stack(steps)


def _labels_of_step(first: Scene, last: Scene) -> np.ndarray:
    """Return the labels of a video's two frames; for an image both are the same scene."""
    rows, columns = first.height // TOKEN, first.width // TOKEN
    labels: np.ndarray = np.zeros((rows, columns, len(LABEL_NAMES)), dtype=np.int64)
    if first.hidden:
        return labels
    if first.page:
        label_page(first, {name: labels[..., number] for name, number in _AT.items()})
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
        # An animal between four token centres still needs one token of its own, and so does its tag.
        row, column = token_at(first, animal.x, animal.y)
        inside[row, column] |= distance[row, column] < nearest[row, column]
        shows_tag = np.zeros_like(inside)
        if animal.price:
            tag_x, tag_y, side = animal.tag_box
            at = token_at(first, tag_x, tag_y)
            inside[at] |= distance[at] < nearest[at]
            reach = side / 2 + _TAG_MARGIN
            shows_tag = inside & (np.abs(x - tag_x) < reach) & (np.abs(y - tag_y) < reach)
            shows_tag[at] = inside[at]
        nearest[inside] = distance[inside]
        kind, wears = KINDS.index(animal.kind) + 1, WEARS.index(animal.wears) + 1
        labels[inside] = (
            *(kind, wears, left[id(animal)], top[id(animal)], 0, move, 0, 0),
            *(column + 1, row + 1, 0, 0),
        )
        labels[shows_tag, _AT["price"]] = animal.price
    if first.sign:
        sign = first.sign
        for number, letter in enumerate(sign.text):
            row, column = token_at(first, sign.letter_x(number), sign.y)
            labels[row, column] = (
                *(0, 0, 0, 0, 0, 0, SYMBOLS.index(letter) + 1, number + 1),
                *(column + 1, row + 1, 0, 0),
            )
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
