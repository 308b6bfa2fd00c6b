"""Draws scenes: sprites, signs and tags on textured ground, in the scene's light and noise.

Sprites are cached, so that an image is a few pastes, fast enough to be drawn while a model trains. The same scene gives
the same pixels in any process::

    from avis.garden.placement import cast, place
    from avis.garden.render import render
    from avis.garden.scenes import LEVELS, rng_for
    rng = rng_for("dev", 7)
    render(place(rng, LEVELS[0], 448, 448, cast(rng, 3))).save("scene.png")
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from avis.garden.paper import paint_page
from avis.garden.scenes import Animal, Prop, Scene, Sign, video_times
from avis.garden.sprites import GREEN, INK, animal_sprite, prop_sprite

# Colour, strength of the texture, and its scale in pixels.
GROUND = {
    "lawn": ((110, 156, 84), 16.0, 5),
    "meadow": ((146, 176, 104), 22.0, 12),
    "planks": ((168, 150, 132), 12.0, 7),
    "sand": ((216, 202, 170), 12.0, 4),
    "cloth": ((150, 164, 184), 9.0, 9),
}
SHEET = 1024  # side of a ground texture, of which images show a part
_POST = (104, 72, 46)


def render(scene: Scene, second: float = 0.0) -> Image.Image:
    """Draw a scene.

    Args:
        scene: an image, or a video.
        second: of the video; not used for an image.

    Returns:
        An RGB image of `scene.width` x `scene.height` pixels.
    """
    canvas = _paint(scene, scene.at(second) if scene.seconds else scene)
    if scene.light == 1.0 and scene.noise == 0.0:
        return canvas
    pixels = np.asarray(canvas, dtype=np.float32) * scene.light
    rng = np.random.default_rng((scene.seed, 1, round(1000 * second)))
    y, x = (int(rng.integers(0, SHEET - side + 1)) for side in (scene.height, scene.width))
    pixels += scene.noise * _camera_noise()[y : y + scene.height, x : x + scene.width]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def render_frames(scene: Scene, times: Iterable[float] | None = None) -> Iterator[Image.Image]:
    """Yield the frames of a video.

    Args:
        scene: a video.
        times: the frames' seconds; None: those that the model sees (`scenes.video_times`).
    """
    for second in video_times(scene.seconds) if times is None else times:
        yield render(scene, float(second))


def _paint(scene: Scene, moment: Scene) -> Image.Image:
    """Return the image of `scene` at a moment of it, before light and noise."""
    if scene.page:
        return paint_page(scene)
    canvas = _ground(scene)
    back = sorted((prop for prop in scene.props if not prop.front), key=lambda prop: prop.y)
    for prop in back:
        _paste_prop(canvas, prop)
    animals, sign = moment.animals, scene.sign
    if scene.hidden == "far":
        animals, sign = (), None
    if sign:
        _paste_sign(canvas, sign)
    for animal in sorted(animals, key=lambda animal: animal.y):
        _paste_animal(canvas, animal)
    for prop in scene.props:
        if prop.front:
            _paste_prop(canvas, prop)
    if scene.hidden == "bushes":
        for animal in animals:
            _cover(canvas, animal.x, animal.y, 0.42 * animal.size, 0.56 * animal.size, animal.colour)
        if sign:
            half_w, half_h = sign.box
            _cover(canvas, sign.x, sign.y, 1.15 * half_w, 1.15 * half_h, 1)
    return canvas


def _ground(scene: Scene) -> Image.Image:
    """Return the scene's ground: a part of its texture, getting lighter or darker from top to bottom."""
    rng = np.random.default_rng(scene.seed)
    texture = _ground_texture(scene.background)
    y, x = (int(rng.integers(0, SHEET - side + 1)) for side in (scene.height, scene.width))
    part = texture[y : y + scene.height, x : x + scene.width]
    slope = np.linspace(float(rng.uniform(0.9, 1.1)), float(rng.uniform(0.9, 1.1)), scene.height, dtype=np.float32)
    return Image.fromarray(np.clip(part * slope[:, None, None], 0, 255).astype(np.uint8))


@lru_cache(maxsize=None)
def _ground_texture(background: str) -> np.ndarray:
    """Return (SHEET, SHEET, 3) float32: noise at several scales, with boards for `planks` and lines for `cloth`."""
    colour, strength, scale = GROUND[background]
    rng = np.random.default_rng(sum(map(ord, background)))
    noise: np.ndarray = np.zeros((SHEET, SHEET), dtype=np.float32)
    for octave in (1, scale, 6 * scale):
        side = max(2, SHEET // octave)
        coarse = Image.fromarray(rng.normal(size=(side, side)).astype(np.float32))
        noise += np.asarray(coarse.resize((SHEET, SHEET), Image.BICUBIC)) / 2
    texture = np.array(colour, dtype=np.float32) + strength * noise[..., None] * np.array([1.0, 1.0, 0.8], np.float32)
    if background == "planks":
        texture[np.arange(SHEET) % 96 < 3] *= 0.72
    if background == "cloth":
        lines = (np.arange(SHEET) % 44 < 6) * 0.08
        texture *= 1 + lines[:, None, None] + lines[None, :, None]
    return texture


@lru_cache(maxsize=1)
def _camera_noise() -> np.ndarray:
    """Return the grain of the camera, (SHEET, SHEET, 1) float32 of unit standard deviation."""
    return np.random.default_rng(11).normal(size=(SHEET, SHEET, 1)).astype(np.float32)


def _paste_animal(canvas: Image.Image, animal: Animal) -> None:
    """Paste one animal with its shadow on the ground, and its tag."""
    width, height = max(1, round(0.75 * animal.size)), max(1, round(animal.size))
    image = _sized_animal(animal.kind, animal.wears, animal.tone, animal.colour, animal.flip, width, height)
    if abs(animal.tilt) > 0.5:
        image = image.rotate(animal.tilt, resample=Image.BILINEAR)
    left, top = round(animal.x - width / 2), round(animal.y - height / 2)
    if height >= 10:
        _paste_shadow(canvas, left, top + height + animal.lift, width, height)
    canvas.paste(image, (left, top), image)
    if animal.price:
        _paste_tag(canvas, animal)


def _paste_shadow(canvas: Image.Image, left: float, bottom: float, width: int, height: int) -> None:
    shadow = Image.new("L", (width + 8, max(6, height // 7)), 0)
    ImageDraw.Draw(shadow).ellipse([2, 0, width + 5, shadow.height - 2], fill=105)
    at = (int(left) - 1, int(bottom) - shadow.height * 2 // 3)
    canvas.paste((20, 24, 18), at, shadow.filter(ImageFilter.BoxBlur(2)))


def _paste_tag(canvas: Image.Image, animal: Animal) -> None:
    """Paste a paper tag with the animal's price on its lower half."""
    x, y, side = animal.tag_box
    draw = ImageDraw.Draw(canvas)
    box = [x - side / 2, y - side / 2, x + side / 2, y + side / 2]
    edge = max(1, round(side / 14))
    draw.rounded_rectangle(box, radius=side / 6, fill=(252, 250, 240), outline=(120, 96, 60), width=edge)
    # The second garden's digits fill their tags, so that they can be read on small animals.
    fill = 0.95 if animal.tag == 0.36 else 1.2
    draw.text((x, y), str(animal.price), font=_font(max(4, round(fill * side))), fill=INK, anchor="mm")


def _paste_sign(canvas: Image.Image, sign: Sign) -> None:
    """Paste a wooden board on a post, with its letters one pitch apart."""
    half_w, half_h = sign.box
    draw = ImageDraw.Draw(canvas)
    post = 0.18 * half_h
    draw.rectangle([sign.x - post, sign.y, sign.x + post, sign.y + 2.6 * half_h], fill=_POST)
    box = [sign.x - half_w, sign.y - half_h, sign.x + half_w, sign.y + half_h]
    edge = max(1, round(half_h / 9))
    draw.rounded_rectangle(box, radius=half_h / 5, fill=(236, 216, 176), outline=_POST, width=edge)
    font = _font(max(4, round(1.15 * sign.pitch)))
    for number, letter in enumerate(sign.text):
        draw.text((sign.letter_x(number), sign.y), letter, font=font, fill=INK, anchor="mm")


def _paste_prop(canvas: Image.Image, prop: Prop) -> None:
    width, height = max(1, round(0.75 * prop.size)), max(1, round(prop.size))
    image = _sized_prop(prop.look, prop.colour, width, height)
    canvas.paste(image, (round(prop.x - width / 2), round(prop.y - height / 2)), image)


def _cover(canvas: Image.Image, x: float, y: float, half_w: float, half_h: float, colour: int) -> None:
    """Paste a hedge over a box, with no gap in it."""
    red, green, blue = (int(0.8 * value * (0.85 + 0.1 * colour)) for value in GREEN)
    box = [x - half_w, y - half_h, x + half_w, y + half_h]
    ImageDraw.Draw(canvas).rounded_rectangle(box, min(half_w, half_h) / 2, (red, green, blue))
    for across, along in ((0.5, 0.5), (-0.5, 0.5), (0.5, -0.5), (-0.5, -0.5), (0, 0)):
        side = 2.2 * max(half_w, half_h)
        _paste_prop(canvas, Prop("bush", x + across * half_w, y + along * half_h, side, colour))


# Sizes repeat, so sprites at their size in pixels are cached, too.
@lru_cache(maxsize=2048)
def _sized_animal(
    kind: str, wears: str, tone: str, colour: int, is_flipped: bool, width: int, height: int
) -> Image.Image:
    image = animal_sprite(kind, wears, tone, colour)
    if is_flipped:
        image = image.transpose(Image.FLIP_LEFT_RIGHT)
    return image.resize((width, height), Image.BILINEAR, reducing_gap=2.0)


@lru_cache(maxsize=2048)
def _sized_prop(look: str, colour: int, width: int, height: int) -> Image.Image:
    return prop_sprite(look, colour).resize((width, height), Image.BILINEAR, reducing_gap=2.0)


@lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
