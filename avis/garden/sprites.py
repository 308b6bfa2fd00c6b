"""Draws the garden's sprites: carved wooden animals with what they wear, and the things that stand beside them.

A sprite is drawn once at four times its size and cached; `avis.garden.render` pastes it at the size it needs::

    from avis.garden.sprites import animal_sprite
    animal_sprite("rabbit", "glasses", "oak", 0).save("rabbit.png")
"""

from collections.abc import Callable
from copy import copy
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from avis.garden.scenes import TONES

Colour = tuple[int, int, int]

WOOD = {"birch": (226, 200, 158), "oak": (201, 156, 100), "cherry": (176, 104, 66), "walnut": (122, 82, 54)}
PAINT = ((196, 44, 48), (38, 84, 168), (42, 132, 74), (232, 172, 40))
GREEN, STONE, INK, BLACK, CREAM = (70, 118, 58), (150, 148, 144), (44, 34, 30), (32, 26, 24), (246, 240, 226)
SPRITE_W, SPRITE_H, FINE = 120, 160, 4  # drawing units of a sprite, and fine pixels per unit while drawing
SPRITE_SIZE = (240, 320)  # pixels of a finished sprite


def _box(cx: float, cy: float, rx: float, ry: float) -> list[float]:
    return [FINE * (cx - rx), FINE * (cy - ry), FINE * (cx + rx), FINE * (cy + ry)]


def _points(*xy: tuple[float, float]) -> list[tuple[float, float]]:
    return [(FINE * x, FINE * y) for x, y in xy]


def _shaded(colour: Colour, factor: float) -> Colour:
    red, green, blue = colour
    return int(red * factor), int(green * factor), int(blue * factor)


@lru_cache(maxsize=None)
def _grain(tone: str) -> Image.Image:
    """Return a plank of this wood, as large as a fine sprite: wavy growth rings and fine fibres."""
    rng = np.random.default_rng(sum(map(ord, tone)))
    h, w = SPRITE_H * FINE, SPRITE_W * FINE
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    wave = 18 * np.sin(y / 95 + 1.3) + 8 * np.sin(y / 37)
    rings = np.sin((x + wave) / 9.5) + 0.5 * np.sin((x + wave) / 23 + 0.7)
    fibre = np.repeat(rng.normal(size=(h // 8, w // 2)), 8, axis=0).repeat(2, axis=1)
    shade = 1 + 0.055 * rings + 0.02 * fibre
    colour = np.array(WOOD[tone], dtype=np.float32)
    return Image.fromarray(np.clip(shade[..., None] * colour, 0, 255).astype(np.uint8))


class _Carving:
    """A sprite being carved: wooden parts are laid one over another, each shaded round and outlined.

    Attributes:
        image: RGBA, `FINE` pixels a drawing unit.
        wood: the plank that parts are cut from.
        dark: the colour of outlines and shadows.
    """

    def __init__(self, tone: str):
        self.image = Image.new("RGBA", (SPRITE_W * FINE, SPRITE_H * FINE), (0, 0, 0, 0))
        self.wood = _grain(tone)
        self.dark = _shaded(WOOD[tone], 0.45)

    def part(
        self,
        kind: str,
        shape: list,
        tint: float = 1.0,
        angle: float = 0.0,
        pivot: tuple[float, float] = (60, 80),
    ) -> None:
        """Lay one wooden part.

        Args:
            kind: "ellipse" or "polygon".
            shape: its box or its points, in fine pixels.
            tint: brightness, as a multiple of the wood's own.
            angle: degrees, counterclockwise.
            pivot: the point that it is turned about, in drawing units.
        """
        mask = Image.new("L", self.image.size, 0)
        _draw_shape(ImageDraw.Draw(mask), kind, shape, fill=255)
        if angle:
            centre = (pivot[0] * FINE, pivot[1] * FINE)
            mask = mask.rotate(angle, resample=Image.BILINEAR, center=centre)
        inner = mask
        for _ in range(4):  # the same as one filter of 9 x 9, and faster
            inner = inner.filter(ImageFilter.MinFilter(3))
        wood = self.wood if tint == 1.0 else self.wood.point(lambda v: min(255, int(v * tint)))
        rim = Image.new("RGB", self.image.size, self.dark)
        # Light falls from the upper left: the part's own mask, shifted, darkens the lower right side.
        shadow = ImageChops.subtract(inner, ImageChops.offset(inner, -7 * FINE, -6 * FINE))
        shadow = shadow.filter(ImageFilter.GaussianBlur(3 * FINE)).point(lambda v: int(v * 0.32))
        self.image.paste(rim, (0, 0), mask)
        self.image.paste(wood, (0, 0), inner)
        self.image.paste(rim, (0, 0), ImageChops.multiply(shadow, inner))

    def paint(self, kind: str, shape: list, colour: Colour, outline: Colour | None = None, width: float = 0) -> None:
        """Paint a line, an ellipse, a polygon or a rectangle; `width` is that of the line or outline."""
        draw = ImageDraw.Draw(self.image)
        if kind == "line":
            draw.line(shape, fill=colour, width=int(width * FINE), joint="curve")
        else:
            _draw_shape(draw, kind, shape, fill=colour, outline=outline, width=int(width * FINE))


def _draw_shape(draw: ImageDraw.ImageDraw, kind: str, shape: list, **style) -> None:
    {"ellipse": draw.ellipse, "polygon": draw.polygon, "rectangle": draw.rectangle}[kind](shape, **style)


# Where each kind's head sits (x, y) and how wide it is: what accessories are fitted to.
_HEAD = {"rabbit": (60, 70, 25), "bear": (60, 54, 31), "cat": (60, 60, 28), "duck": (74, 48, 24)}
_NECK = {"rabbit": (60, 94, 27), "bear": (60, 84, 36), "cat": (60, 87, 26), "duck": (67, 73, 21)}


def _rabbit(c: _Carving) -> None:
    for x, lean in ((48, 9), (72, -9)):
        c.part("ellipse", _box(x, 28, 9, 27), angle=lean, pivot=(x, 52))
        c.part("ellipse", _box(x, 29, 4, 18), tint=1.18, angle=lean, pivot=(x, 52))
    c.part("ellipse", _box(60, 122, 29, 34))
    c.part("ellipse", _box(60, 128, 16, 20), tint=1.15)
    for x in (42, 78):
        c.part("ellipse", _box(x, 152, 15, 7))
    c.part("ellipse", _box(60, 70, 25, 23))


def _bear(c: _Carving) -> None:
    for x in (33, 87):
        c.part("ellipse", _box(x, 28, 13, 13))
        c.part("ellipse", _box(x, 29, 6, 6), tint=0.75)
    for x in (20, 100):
        c.part("ellipse", _box(x, 108, 12, 24), angle=22 if x < 60 else -22, pivot=(x, 108))
    c.part("ellipse", _box(60, 118, 41, 40))
    c.part("ellipse", _box(60, 124, 25, 26), tint=1.18)
    c.part("ellipse", _box(60, 54, 33, 30))
    c.part("ellipse", _box(60, 65, 14, 11), tint=1.22)


def _cat(c: _Carving) -> None:
    for cx, cy, r in ((92, 140, 8), (101, 128, 8), (105, 114, 7), (104, 101, 7), (99, 90, 6)):
        c.part("ellipse", _box(cx, cy, r, r + 3))
    c.part("polygon", _points((33, 24), (36, 58), (58, 42)))
    c.part("polygon", _points((87, 24), (84, 58), (62, 42)))
    c.part("polygon", _points((48, 82), (72, 82), (90, 156), (30, 156)))
    c.part("ellipse", _box(60, 134, 30, 23))
    c.part("ellipse", _box(60, 60, 29, 24))


def _duck(c: _Carving) -> None:
    c.part("polygon", _points((4, 92), (34, 104), (30, 130)))
    c.part("ellipse", _box(56, 118, 46, 32))
    c.part("ellipse", _box(47, 116, 24, 16), tint=0.82, angle=12, pivot=(47, 116))
    c.part("polygon", _points((58, 70), (84, 66), (86, 104), (50, 104)))
    c.part("ellipse", _box(74, 48, 24, 23))
    c.paint("polygon", _points((94, 46), (119, 55), (94, 62)), (232, 138, 34), outline=(130, 70, 12), width=1.5)
    for x in (46, 66):
        c.paint("rectangle", [FINE * x, FINE * 147, FINE * (x + 13), FINE * 157], (232, 138, 34), (130, 70, 12), 1.5)


def _face(c: _Carving, kind: str) -> None:
    x, y, _ = _HEAD[kind]
    if kind == "duck":
        c.paint("ellipse", _box(x + 7, y - 5, 3.4, 4), BLACK)
        return
    for dx in (-10, 10):
        c.paint("ellipse", _box(x + dx, y - 4, 3.2, 3.8), BLACK)
    c.paint("ellipse", _box(x, y + 7, 4, 3), BLACK)
    if kind == "cat":
        for dx in (-1, 1):
            for dy in (5, 10):
                c.paint("line", _points((x + dx * 9, y + 8), (x + dx * 27, y + dy)), BLACK, width=1)


def _glasses(c: _Carving, kind: str, colour: Colour) -> None:
    x, y, wide = _HEAD[kind]
    if kind == "duck":
        x += 4
    r = 0.46 * wide
    for dx in (-1.02 * r, 1.02 * r):
        c.paint("ellipse", _box(x + dx, y - 4, r, r), (238, 246, 250), outline=BLACK, width=3.4)
        c.paint("ellipse", _box(x + dx, y - 3, 2.8, 3.4), BLACK)
    c.paint("line", _points((x - 2, y - 6), (x + 2, y - 6)), BLACK, width=3.4)
    for side in (-1, 1):
        c.paint("line", _points((x + side * 2 * r, y - 5), (x + side * (wide + 2), y - 8)), BLACK, width=3)


def _hat(c: _Carving, kind: str, colour: Colour) -> None:
    x, y, wide = _HEAD[kind]
    top, rim = y - 0.62 * wide, _shaded(colour, 0.6)
    half = 0.62 * wide
    shape = [FINE * (x - half), FINE * (top - 25), FINE * (x + half), FINE * top]
    c.paint("rectangle", shape, colour, outline=rim, width=1.5)
    band = [FINE * (x - half), FINE * (top - 9), FINE * (x + half), FINE * (top - 3)]
    c.paint("rectangle", band, CREAM)
    c.paint("ellipse", _box(x, top, 1.08 * wide, 5.5), colour, outline=rim, width=1.5)


def _scarf(c: _Carving, kind: str, colour: Colour) -> None:
    x, y, wide = _NECK[kind]
    edge = _shaded(colour, 0.6)
    c.paint("polygon", _points((x + 6, y), (x + 20, y), (x + 24, y + 38), (x + 9, y + 38)), colour, edge, 1.5)
    c.paint("ellipse", _box(x, y, wide, 8.5), colour, outline=edge, width=1.5)
    for dx in (-0.6, -0.1, 0.4):
        left = x + dx * wide
        c.paint("polygon", _points((left, y - 6), (left + 5, y - 6), (left + 3, y + 7), (left - 2, y + 7)), CREAM)
    c.paint("polygon", _points((x + 8, y + 26), (x + 22.5, y + 26), (x + 23, y + 31), (x + 8.5, y + 31)), CREAM)


_CARVE: dict[str, Callable[[_Carving], None]] = {"rabbit": _rabbit, "bear": _bear, "cat": _cat, "duck": _duck}
_DRESS: dict[str, Callable[[_Carving, str, Colour], None]] = {"glasses": _glasses, "hat": _hat, "scarf": _scarf}


@lru_cache(maxsize=None)
def _carved(kind: str, tone: str) -> _Carving:
    """Return an animal of this wood with its face on and nothing worn."""
    carving = _Carving(tone)
    _CARVE[kind](carving)
    _face(carving, kind)
    return carving


@lru_cache(maxsize=None)
def animal_sprite(kind: str, wears: str, tone: str, colour: int) -> Image.Image:
    """Return one animal as an RGBA image of `SPRITE_SIZE`, facing right.

    Args:
        kind: one of `scenes.KINDS`.
        wears: one of `scenes.WEARS`.
        tone: one of `scenes.TONES`.
        colour: number of the paint of what it wears, 0 to 3.
    """
    dressed = copy(_carved(kind, tone))
    dressed.image = dressed.image.copy()
    if wears != "nothing":
        _DRESS[wears](dressed, kind, PAINT[colour])
    return dressed.image.resize(SPRITE_SIZE, Image.BOX)


def _bush(c: _Carving, colour: int) -> None:
    rng = np.random.default_rng((7, colour))
    base = _shaded(GREEN, 0.85 + 0.1 * colour)
    for shade in (0.62, 0.8, 1.0, 1.15):
        tone = _shaded(base, shade)
        for _ in range(26):
            angle, far = rng.uniform(0, 2 * np.pi), rng.random() ** 0.5
            x, y = 60 + 44 * far * np.cos(angle), 84 - 8 * (shade - 0.6) * 6 + 56 * far * np.sin(angle)
            r = rng.uniform(7, 15)
            c.paint("ellipse", _box(x, y, r, 0.8 * r), tone)


def _flower(c: _Carving, colour: int) -> None:
    c.paint("line", _points((60, 80), (58, 154)), GREEN, width=6)
    for turn in np.linspace(0, 2 * np.pi, 6)[:-1]:
        c.paint("ellipse", _box(60 + 26 * np.cos(turn), 60 + 26 * np.sin(turn), 19, 19), PAINT[colour])
    c.paint("ellipse", _box(60, 60, 15, 15), CREAM)


def _tuft(c: _Carving, colour: int) -> None:
    for lean in (-38, -20, -6, 10, 24, 40):
        c.paint("line", _points((60 + lean / 3, 150), (60 + lean, 70 + abs(lean))), GREEN, width=6)


def _stone(c: _Carving, colour: int) -> None:
    shade = 0.8 + 0.1 * colour
    c.paint("ellipse", _box(60, 120, 52, 32), _shaded(STONE, shade * 0.75))
    c.paint("ellipse", _box(57, 115, 46, 26), _shaded(STONE, shade))


def _ball(c: _Carving, colour: int) -> None:
    c.paint("ellipse", _box(60, 104, 48, 48), PAINT[colour], _shaded(PAINT[colour], 0.6), 2)
    c.paint("ellipse", _box(44, 86, 12, 10), CREAM)


def _pot(c: _Carving, colour: int) -> None:
    for x, y in ((42, 52), (60, 38), (78, 52)):
        c.paint("line", _points((60, 92), (x, y)), GREEN, width=5)
        c.paint("ellipse", _box(x, y, 13, 13), PAINT[colour])
    c.paint("polygon", _points((26, 90), (94, 90), (82, 154), (38, 154)), (176, 96, 62), (120, 60, 36), 2)


def _peg(c: _Carving, colour: int) -> None:
    c.part("polygon", _points((44, 74), (76, 74), (90, 154), (30, 154)))
    c.part("ellipse", _box(60, 52, 25, 25))


def _block(c: _Carving, colour: int) -> None:
    c.part("polygon", _points((22, 76), (98, 76), (98, 152), (22, 152)))
    c.part("polygon", _points((22, 76), (42, 56), (112, 56), (98, 76)), tint=1.15)


def _log(c: _Carving, colour: int) -> None:
    c.part("ellipse", _box(60, 112, 52, 38))
    c.part("ellipse", _box(42, 112, 26, 32), tint=1.2)
    c.paint("ellipse", _box(42, 112, 12, 16), WOOD["walnut"])


_PROPS: dict[str, Callable[[_Carving, int], None]] = {
    "bush": _bush,
    "flower": _flower,
    "tuft": _tuft,
    "stone": _stone,
    "ball": _ball,
    "pot": _pot,
    "peg": _peg,
    "block": _block,
    "log": _log,
}
PROP_LOOKS = tuple(_PROPS)


@lru_cache(maxsize=None)
def prop_sprite(look: str, colour: int) -> Image.Image:
    """Return a thing that is no animal, as an RGBA image of `SPRITE_SIZE`.

    Args:
        look: one of `PROP_LOOKS`.
        colour: number of its paint or wood, 0 to 3.
    """
    carving = _Carving(TONES[colour])
    _PROPS[look](carving, colour)
    return carving.image.resize(SPRITE_SIZE, Image.BOX)
