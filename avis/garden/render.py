"""Draws garden scenes: carved wooden animals with painted accessories, tags and signs, on textured ground.

Sprites are drawn once at four times their size and kept; a picture is then a few pastes, fast enough to be made
while a model trains. The same scene gives the same bytes in any process::

    from avis.garden.scenes import LEVELS, cast, place, rng_for
    from avis.garden.render import render
    rng = rng_for("dev", 7)
    render(place(rng, LEVELS[0], 448, 448, cast(rng, 3))).save("scene.png")
"""

from collections.abc import Iterator
from copy import copy
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from avis.garden.scenes import Animal, Prop, Scene, Sign, clip_times

WOOD = {"birch": (226, 200, 158), "oak": (201, 156, 100), "cherry": (176, 104, 66), "walnut": (122, 82, 54)}
PAINT = ((196, 44, 48), (38, 84, 168), (42, 132, 74), (232, 172, 40))
GROUND = {
    "lawn": ((110, 156, 84), 16.0, 5),
    "meadow": ((146, 176, 104), 22.0, 12),
    "planks": ((168, 150, 132), 12.0, 7),
    "sand": ((216, 202, 170), 12.0, 4),
    "cloth": ((150, 164, 184), 9.0, 9),
}
SPRITE_W, SPRITE_H, FINE = 120, 160, 4  # drawing units of a sprite, and fine pixels per unit while drawing
STORED = (240, 320)
SHEET = 1024  # side of a ground texture, from which pictures take their crop


def _box(cx: float, cy: float, rx: float, ry: float) -> list[float]:
    return [FINE * (cx - rx), FINE * (cy - ry), FINE * (cx + rx), FINE * (cy + ry)]


def _points(*xy: tuple[float, float]) -> list[tuple[float, float]]:
    return [(FINE * x, FINE * y) for x, y in xy]


@lru_cache(maxsize=None)
def _grain(tone: str) -> Image.Image:
    """A plank of this wood, as large as a fine sprite: wavy growth rings and fine fibres."""
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
    """A sprite being carved: wooden parts are laid one over another, each shaded round and outlined."""

    def __init__(self, tone: str):
        size = (SPRITE_W * FINE, SPRITE_H * FINE)
        self.image = Image.new("RGBA", size, (0, 0, 0, 0))
        self.wood = _grain(tone)
        self.dark = tuple(int(0.45 * c) for c in WOOD[tone])

    def part(self, kind: str, shape: list, tint: float = 1.0, angle: float = 0.0, pivot=(60, 80)) -> None:
        """Lay one part: an `ellipse` (box) or `polygon` (points), `tint` times the wood's own colour."""
        mask = Image.new("L", self.image.size, 0)
        getattr(ImageDraw.Draw(mask), kind)(shape, fill=255)
        if angle:
            centre = (pivot[0] * FINE, pivot[1] * FINE)
            mask = mask.rotate(angle, resample=Image.BILINEAR, center=centre)
        inner = mask
        for _ in range(4):  # the same as one of 9 x 9, and faster
            inner = inner.filter(ImageFilter.MinFilter(3))
        wood = self.wood if tint == 1.0 else self.wood.point(lambda v: min(255, int(v * tint)))
        rim = Image.new("RGB", self.image.size, self.dark)
        # Light falls from the upper left: the part's own mask, shifted, darkens the lower right side.
        shadow = ImageChops.subtract(inner, ImageChops.offset(inner, -7 * FINE, -6 * FINE))
        shadow = shadow.filter(ImageFilter.GaussianBlur(3 * FINE)).point(lambda v: int(v * 0.32))
        self.image.paste(rim, (0, 0), mask)
        self.image.paste(wood, (0, 0), inner)
        self.image.paste(rim, (0, 0), ImageChops.multiply(shadow, inner))

    def paint(self, kind: str, shape: list, colour: tuple, outline: tuple | None = None, width: float = 0) -> None:
        draw = ImageDraw.Draw(self.image)
        if kind == "line":
            draw.line(shape, fill=colour, width=int(width * FINE), joint="curve")
        else:
            getattr(draw, kind)(shape, fill=colour, outline=outline, width=int(width * FINE))


# Where each kind's head sits (x, y) and how wide it is: what accessories are fitted to.
_HEAD = {"rabbit": (60, 70, 25), "bear": (60, 54, 31), "cat": (60, 60, 28), "duck": (74, 48, 24)}
_NECK = {"rabbit": (60, 94, 27), "bear": (60, 84, 36), "cat": (60, 87, 26), "duck": (67, 73, 21)}
_BLACK, _CREAM = (32, 26, 24), (246, 240, 226)


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
    for left in (True, False):
        ear = ((33, 24), (36, 58), (58, 42)) if left else ((87, 24), (84, 58), (62, 42))
        c.part("polygon", _points(*ear))
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
        c.paint("ellipse", _box(x + 7, y - 5, 3.4, 4), _BLACK)
        return
    for dx in (-10, 10):
        c.paint("ellipse", _box(x + dx, y - 4, 3.2, 3.8), _BLACK)
    c.paint("ellipse", _box(x, y + 7, 4, 3), _BLACK)
    if kind == "cat":
        for dx in (-1, 1):
            for dy in (5, 10):
                c.paint("line", _points((x + dx * 9, y + 8), (x + dx * 27, y + dy)), _BLACK, width=1)


def _glasses(c: _Carving, kind: str, colour: tuple) -> None:
    x, y, wide = _HEAD[kind]
    if kind == "duck":
        x += 4
    r = 0.46 * wide
    for dx in (-1.02 * r, 1.02 * r):
        c.paint("ellipse", _box(x + dx, y - 4, r, r), (238, 246, 250), outline=_BLACK, width=3.4)
        c.paint("ellipse", _box(x + dx, y - 3, 2.8, 3.4), _BLACK)
    c.paint("line", _points((x - 2, y - 6), (x + 2, y - 6)), _BLACK, width=3.4)
    for side in (-1, 1):
        c.paint("line", _points((x + side * 2 * r, y - 5), (x + side * (wide + 2), y - 8)), _BLACK, width=3)


def _hat(c: _Carving, kind: str, colour: tuple) -> None:
    x, y, wide = _HEAD[kind]
    top, rim = y - 0.62 * wide, tuple(int(0.6 * v) for v in colour)
    half = 0.62 * wide
    shape = [FINE * (x - half), FINE * (top - 25), FINE * (x + half), FINE * top]
    c.paint("rectangle", shape, colour, outline=rim, width=1.5)
    band = [FINE * (x - half), FINE * (top - 9), FINE * (x + half), FINE * (top - 3)]
    c.paint("rectangle", band, _CREAM)
    c.paint("ellipse", _box(x, top, 1.08 * wide, 5.5), colour, outline=rim, width=1.5)


def _scarf(c: _Carving, kind: str, colour: tuple) -> None:
    x, y, wide = _NECK[kind]
    edge = tuple(int(0.6 * v) for v in colour)
    c.paint("polygon", _points((x + 6, y), (x + 20, y), (x + 24, y + 38), (x + 9, y + 38)), colour, edge, 1.5)
    c.paint("ellipse", _box(x, y, wide, 8.5), colour, outline=edge, width=1.5)
    for dx in (-0.6, -0.1, 0.4):
        left = x + dx * wide
        c.paint("polygon", _points((left, y - 6), (left + 5, y - 6), (left + 3, y + 7), (left - 2, y + 7)), _CREAM)
    c.paint("polygon", _points((x + 8, y + 26), (x + 22.5, y + 26), (x + 23, y + 31), (x + 8.5, y + 31)), _CREAM)


_CARVE = {"rabbit": _rabbit, "bear": _bear, "cat": _cat, "duck": _duck}
_DRESS = {"glasses": _glasses, "hat": _hat, "scarf": _scarf}


@lru_cache(maxsize=None)
def _carved(kind: str, tone: str) -> _Carving:
    """An animal of this wood with its face on and nothing worn."""
    carving = _Carving(tone)
    _CARVE[kind](carving)
    _face(carving, kind)
    return carving


@lru_cache(maxsize=None)
def sprite(kind: str, wears: str, tone: str, colour: int) -> Image.Image:
    """One animal as an RGBA picture of `STORED` size, facing right."""
    dressed = copy(_carved(kind, tone))
    dressed.image = dressed.image.copy()
    if wears != "nothing":
        _DRESS[wears](dressed, kind, PAINT[colour])
    return dressed.image.resize(STORED, Image.BOX)


@lru_cache(maxsize=None)
def _sheet(background: str) -> np.ndarray:
    """A large piece of ground, (SHEET, SHEET, 3) float32: noise at several scales, and boards for `planks`."""
    colour, strength, scale = GROUND[background]
    rng = np.random.default_rng(sum(map(ord, background)))
    texture = np.zeros((SHEET, SHEET), dtype=np.float32)
    for octave in (1, scale, 6 * scale):
        side = max(2, SHEET // octave)
        noise = Image.fromarray(rng.normal(size=(side, side)).astype(np.float32))
        texture += np.asarray(noise.resize((SHEET, SHEET), Image.BICUBIC)) / 2
    sheet = np.array(colour, dtype=np.float32) + strength * texture[..., None] * np.array([1.0, 1.0, 0.8], np.float32)
    if background == "planks":
        sheet[np.arange(SHEET) % 96 < 3] *= 0.72
    if background == "cloth":
        lines = (np.arange(SHEET) % 44 < 6) * 0.08
        sheet *= 1 + lines[:, None, None] + lines[None, :, None]
    return sheet


_GREEN, _STONE, _INK = (70, 118, 58), (150, 148, 144), (44, 34, 30)


def _bush(c: _Carving, colour: int) -> None:
    rng = np.random.default_rng((7, colour))
    base = tuple(int(v * (0.85 + 0.1 * colour)) for v in _GREEN)
    for shade in (0.62, 0.8, 1.0, 1.15):
        tone = tuple(min(255, int(v * shade)) for v in base)
        for _ in range(26):
            angle, far = rng.uniform(0, 2 * np.pi), rng.random() ** 0.5
            x, y = 60 + 44 * far * np.cos(angle), 84 - 8 * (shade - 0.6) * 6 + 56 * far * np.sin(angle)
            r = rng.uniform(7, 15)
            c.paint("ellipse", _box(x, y, r, 0.8 * r), tone)


def _flower(c: _Carving, colour: int) -> None:
    c.paint("line", _points((60, 80), (58, 154)), _GREEN, width=6)
    for turn in np.linspace(0, 2 * np.pi, 6)[:-1]:
        c.paint("ellipse", _box(60 + 26 * np.cos(turn), 60 + 26 * np.sin(turn), 19, 19), (*PAINT[colour],))
    c.paint("ellipse", _box(60, 60, 15, 15), _CREAM)


def _tuft(c: _Carving, colour: int) -> None:
    for lean in (-38, -20, -6, 10, 24, 40):
        c.paint("line", _points((60 + lean / 3, 150), (60 + lean, 70 + abs(lean))), _GREEN, width=6)


def _stone(c: _Carving, colour: int) -> None:
    shade = 0.8 + 0.1 * colour
    c.paint("ellipse", _box(60, 120, 52, 32), tuple(int(v * shade * 0.75) for v in _STONE))
    c.paint("ellipse", _box(57, 115, 46, 26), tuple(int(v * shade) for v in _STONE))


def _ball(c: _Carving, colour: int) -> None:
    c.paint("ellipse", _box(60, 104, 48, 48), PAINT[colour], tuple(int(0.6 * v) for v in PAINT[colour]), 2)
    c.paint("ellipse", _box(44, 86, 12, 10), _CREAM)


def _pot(c: _Carving, colour: int) -> None:
    for x, y in ((42, 52), (60, 38), (78, 52)):
        c.paint("line", _points((60, 92), (x, y)), _GREEN, width=5)
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


_THINGS = {
    "bush": _bush, "flower": _flower, "tuft": _tuft, "stone": _stone, "ball": _ball,
    "pot": _pot, "peg": _peg, "block": _block, "log": _log,
}  # fmt: skip


@lru_cache(maxsize=None)
def thing(look: str, colour: int) -> Image.Image:
    """A thing that is no animal, as an RGBA picture of `STORED` size."""
    carving = _Carving(list(WOOD)[colour])
    _THINGS[look](carving, colour)
    return carving.image.resize(STORED, Image.BOX)


@lru_cache(maxsize=4096)
def _sized(name: str, key: tuple, flip: bool, width: int, height: int) -> Image.Image:
    """A sprite (or a thing) at its size in pixels; sizes repeat, so they are kept."""
    picture = sprite(*key) if name == "sprite" else thing(*key)
    if flip:
        picture = picture.transpose(Image.FLIP_LEFT_RIGHT)
    return picture.resize((width, height), Image.BILINEAR, reducing_gap=2.0)


@lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _ground_shadow(canvas: Image.Image, left: float, bottom: float, width: int, height: int) -> None:
    base = Image.new("L", (width + 8, max(6, height // 7)), 0)
    ImageDraw.Draw(base).ellipse([2, 0, width + 5, base.height - 2], fill=105)
    canvas.paste((20, 24, 18), (int(left) - 1, int(bottom) - base.height * 2 // 3), base.filter(ImageFilter.BoxBlur(2)))


def _stand(canvas: Image.Image, animal: Animal) -> None:
    """Paste one animal with its shadow on the ground, and its tag."""
    width, height = max(1, round(0.75 * animal.size)), max(1, round(animal.size))
    key = (animal.kind, animal.wears, animal.tone, animal.colour)
    picture = _sized("sprite", key, animal.flip, width, height)
    if abs(animal.tilt) > 0.5:
        picture = picture.rotate(animal.tilt, resample=Image.BILINEAR)
    left, top = round(animal.x - width / 2), round(animal.y - height / 2)
    if height >= 10:
        _ground_shadow(canvas, left, top + height + animal.lift, width, height)
    canvas.paste(picture, (left, top), picture)
    if animal.price:
        _tag(canvas, animal)


def _tag(canvas: Image.Image, animal: Animal) -> None:
    """A paper tag with the animal's price, on its lower half."""
    side = 0.36 * animal.size
    x, y = animal.x, animal.y + 0.3 * animal.size
    draw = ImageDraw.Draw(canvas)
    box = [x - side / 2, y - side / 2, x + side / 2, y + side / 2]
    edge = max(1, round(side / 14))
    draw.rounded_rectangle(box, radius=side / 6, fill=(252, 250, 240), outline=(120, 96, 60), width=edge)
    draw.text((x, y), str(animal.price), font=_font(max(4, round(0.95 * side))), fill=_INK, anchor="mm")


def _board(canvas: Image.Image, sign: Sign) -> None:
    """A wooden board on a post, with its letters one pitch apart."""
    half_w, half_h = sign.box
    draw = ImageDraw.Draw(canvas)
    post = 0.18 * half_h
    draw.rectangle([sign.x - post, sign.y, sign.x + post, sign.y + 2.6 * half_h], fill=(104, 72, 46))
    box = [sign.x - half_w, sign.y - half_h, sign.x + half_w, sign.y + half_h]
    edge = max(1, round(half_h / 9))
    draw.rounded_rectangle(box, radius=half_h / 5, fill=(236, 216, 176), outline=(104, 72, 46), width=edge)
    font = _font(max(4, round(1.15 * sign.pitch)))
    for n, letter in enumerate(sign.text):
        at = sign.x + (n - (len(sign.text) - 1) / 2) * sign.pitch
        draw.text((at, sign.y), letter, font=font, fill=_INK, anchor="mm")


def _put(canvas: Image.Image, prop: Prop) -> None:
    width, height = max(1, round(0.75 * prop.size)), max(1, round(prop.size))
    picture = _sized("thing", (prop.look, prop.colour), False, width, height)
    canvas.paste(picture, (round(prop.x - width / 2), round(prop.y - height / 2)), picture)


@lru_cache(maxsize=1)
def _static() -> np.ndarray:
    """Grain of the camera, (SHEET, SHEET, 1) float32 of unit standard deviation."""
    return np.random.default_rng(11).normal(size=(SHEET, SHEET, 1)).astype(np.float32)


def _paint(scene: Scene, moment: Scene) -> Image.Image:
    """The picture of `scene` at a moment of it, before light and noise."""
    rng = np.random.default_rng(scene.seed)
    sheet = _sheet(scene.background)
    y, x = (int(rng.integers(0, SHEET - side + 1)) for side in (scene.height, scene.width))
    ground = sheet[y : y + scene.height, x : x + scene.width]
    slope = np.linspace(float(rng.uniform(0.9, 1.1)), float(rng.uniform(0.9, 1.1)), scene.height, dtype=np.float32)
    canvas = Image.fromarray(np.clip(ground * slope[:, None, None], 0, 255).astype(np.uint8))
    back = sorted((prop for prop in scene.props if not prop.front), key=lambda prop: prop.y)
    for prop in back:
        _put(canvas, prop)
    animals, sign = moment.animals, scene.sign
    if scene.hidden == "far":
        animals, sign = (), None
    if sign:
        _board(canvas, sign)
    for animal in sorted(animals, key=lambda animal: animal.y):
        _stand(canvas, animal)
    for prop in scene.props:
        if prop.front:
            _put(canvas, prop)
    if scene.hidden == "bushes":
        for animal in animals:
            _cover(canvas, animal.x, animal.y, 0.42 * animal.size, 0.56 * animal.size, animal.colour)
        if sign:
            _cover(canvas, sign.x, sign.y, *(1.15 * half for half in sign.box), 1)
    return canvas


def _cover(canvas: Image.Image, x: float, y: float, half_w: float, half_h: float, colour: int) -> None:
    """A hedge over a box, with no gap in it."""
    tone = tuple(int(0.8 * v * (0.85 + 0.1 * colour)) for v in _GREEN)
    box = [x - half_w, y - half_h, x + half_w, y + half_h]
    ImageDraw.Draw(canvas).rounded_rectangle(box, min(half_w, half_h) / 2, tone)
    for across, along in ((0.5, 0.5), (-0.5, 0.5), (0.5, -0.5), (-0.5, -0.5), (0, 0)):
        side = 2.2 * max(half_w, half_h)
        _put(canvas, Prop("bush", x + across * half_w, y + along * half_h, side, colour))


def render(scene: Scene, second: float = 0.0) -> Image.Image:
    """Draw a scene as an RGB picture of `scene.width` x `scene.height` pixels; of a clip, its frame at `second`."""
    canvas = _paint(scene, scene.at(second) if scene.seconds else scene)
    if scene.light == 1.0 and scene.noise == 0.0:
        return canvas
    pixels = np.asarray(canvas, dtype=np.float32) * scene.light
    rng = np.random.default_rng((scene.seed, 1, round(1000 * second)))
    y, x = (int(rng.integers(0, SHEET - side + 1)) for side in (scene.height, scene.width))
    pixels += scene.noise * _static()[y : y + scene.height, x : x + scene.width]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def frames(scene: Scene, times: np.ndarray | None = None) -> Iterator[Image.Image]:
    """A clip's frames, at the seconds given or where the model looks (`clip_times`)."""
    for second in clip_times(scene.seconds) if times is None else times:
        yield render(scene, float(second))
