"""Draws pages: ink, animals and bars on plain paper, without texture; `render` adds light and noise."""

from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from avis.garden.pages import Band, Bar, Cell, Icon
from avis.garden.scenes import Scene
from avis.garden.sprites import INK, PAINT, Colour, animal_sprite

PAPER = {"white": (252, 252, 250), "cream": (248, 241, 224), "grey": (224, 227, 230)}
_CAPITAL = 0.7  # height of the font's capitals and digits, as a share of its size


def paint_page(scene: Scene) -> Image.Image:
    """Return the image of a page before light and noise; a hidden page is empty paper."""
    paper = PAPER[scene.background]
    canvas = Image.new("RGB", (scene.width, scene.height), paper)
    if scene.hidden or scene.page is None:
        return canvas
    draw = ImageDraw.Draw(canvas)
    for band in scene.page.bands:
        _fill_band(draw, band, paper)
    for bar in scene.page.bars:
        _fill_bar(draw, bar)
    for icon in scene.page.icons:
        _paste_icon(canvas, icon)
    for cell in scene.page.cells:
        _write_cell(draw, cell)
    return canvas


def _fill_band(draw: ImageDraw.ImageDraw, band: Band, paper: Colour) -> None:
    red, green, blue = (round(p + band.ink * (ink - p)) for p, ink in zip(paper, INK, strict=True))
    left, top = round(band.left), round(band.top)
    # Even the thinnest rule colours a row of pixels, and a rectangle has its last one too.
    right, bottom = max(left, round(band.right) - 1), max(top, round(band.bottom) - 1)
    draw.rectangle([left, top, right, bottom], fill=(red, green, blue))


def _fill_bar(draw: ImageDraw.ImageDraw, bar: Bar) -> None:
    red, green, blue = PAINT[bar.colour]
    box = [round(bar.x - bar.width / 2), round(bar.top), round(bar.x + bar.width / 2), round(bar.base) - 1]
    draw.rectangle(box, fill=(red, green, blue), outline=(int(0.6 * red), int(0.6 * green), int(0.6 * blue)))


def _paste_icon(canvas: Image.Image, icon: Icon) -> None:
    width, height = max(1, round(0.75 * icon.size)), max(1, round(icon.size))
    image = _sized_icon(icon.kind, icon.tone, width, height)
    canvas.paste(image, (round(icon.x - width / 2), round(icon.y - height / 2)), image)


def _write_cell(draw: ImageDraw.ImageDraw, cell: Cell) -> None:
    font = _font(max(4, round(cell.height / _CAPITAL)))
    for number, glyph in enumerate(cell.text):
        draw.text((cell.glyph_x(number), cell.y + cell.height / 2), glyph, font=font, fill=INK, anchor="ms")


@lru_cache(maxsize=1024)
def _sized_icon(kind: str, tone: str, width: int, height: int) -> Image.Image:
    return animal_sprite(kind, "nothing", tone, 0).resize((width, height), Image.BILINEAR, reducing_gap=2.0)


@lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
