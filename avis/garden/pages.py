"""Pages: the records of price lists, tables, charts and signs on plain paper, and their dense labels.

A `Scene` with a page has no animals. `typesetting` lays a new page out, `paper` draws it, and the tasks on pages read
it::

    page = make_item(rng_for("train", 7), "sum", level_for(see=1, think=2)).scenes[0].page
    for entry in page.entries(page.headings[0] if page.headings else ""):
        print(entry.number, entry.name, entry.value)
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from avis.garden.scenes import KINDS, SYMBOLS, TOKEN, WEARS, Scene, token_at

PAPERS = ("white", "cream", "grey")
LOOKS = ("list", "table", "chart", "sign")
NAME_LETTERS = "ACEFHKLMNPRTUXYZ"  # the names of rows, columns and bars: the letters of `GLYPHS`
MAX_ENTRIES, MAX_NUMBER, MAX_BAR = 12, 99, 12


@dataclass(frozen=True)
class Cell:
    """A number, a name or a word.

    Attributes:
        text: of `SYMBOLS`.
        row: number of its row among those that hold values, from 1; 0 in a heading, and beside or below a chart.
        column: the same for its column; 0 for the name of a row, or the number of a word. Of a bar's name, the bar's
            number.
        x: of the text's middle, in pixels.
        y: of the text's middle, in pixels.
        pitch: from one glyph's middle to the next one's, in pixels.
        height: of a capital letter, in pixels.
    """

    text: str
    row: int
    column: int
    x: float
    y: float
    pitch: float
    height: float

    def glyph_x(self, number: int) -> float:
        """Return where the middle of a glyph is, in pixels from the left; glyphs are numbered from 0."""
        return self.x + (number - (len(self.text) - 1) / 2) * self.pitch


@dataclass(frozen=True)
class Icon:
    """An animal as the name of a row or of a bar; it wears nothing.

    Attributes:
        kind: one of `KINDS`.
        row: number of its row; 0 below a chart.
        column: 0; below a chart, the bar's number.
        x: of its centre, in pixels.
        y: of its centre, in pixels.
        size: its height in pixels; its width is 0.75 of that.
        tone: its wood, one of `TONES`.
    """

    kind: str
    row: int
    column: int
    x: float
    y: float
    size: float
    tone: str


@dataclass(frozen=True)
class Bar:
    """A bar of a chart.

    Attributes:
        number: of the bar from the left, from 1.
        value: its height in the chart's units, 1 to `MAX_BAR`.
        x: of its middle, in pixels.
        base: of its foot, in pixels from the top.
        width: in pixels.
        unit: pixels of one unit of height.
        colour: number of its paint, 0 to 3.
    """

    number: int
    value: int
    x: float
    base: float
    width: float
    unit: float
    colour: int

    @property
    def top(self) -> float:
        """Where its head is, in pixels from the top."""
        return self.base - self.value * self.unit


@dataclass(frozen=True)
class Band:
    """A filled rectangle below the text: a rule, a stripe behind a row, a line of a chart.

    Attributes:
        left: in pixels.
        top: in pixels.
        right: in pixels.
        bottom: in pixels.
        ink: share of ink in its colour, 0 (paper) to 1.
    """

    left: float
    top: float
    right: float
    bottom: float
    ink: float


@dataclass(frozen=True)
class Entry:
    """A value of a page and whose it is.

    Attributes:
        number: of its row from the top, or of its bar from the left, from 1.
        name: a kind of animal or a letter.
        value: the number.
    """

    number: int
    name: str
    value: int


@dataclass(frozen=True)
class Page:
    """What stands on a page.

    Attributes:
        look: one of `LOOKS`.
        cells: texts.
        icons: animals that are names.
        bars: of a chart, from the left.
        bands: rules and stripes.
        most: the largest that its values could be; 0 for a sign.
    """

    look: str
    cells: tuple[Cell, ...]
    icons: tuple[Icon, ...] = ()
    bars: tuple[Bar, ...] = ()
    bands: tuple[Band, ...] = ()
    most: int = 0

    @property
    def headings(self) -> list[str]:
        """The letters over a table's columns, from the left; [] for other pages."""
        if self.look != "table":
            return []
        found = {cell.column: cell.text for cell in self.cells if cell.row == 0}  # each block of a long table has them
        return [text for _, text in sorted(found.items())]

    def entries(self, heading: str = "") -> list[Entry]:
        """Return the values of a list, of a chart or of one column of a table, with their names.

        Args:
            heading: of the table's column.

        Returns:
            In the order of their numbers; [] for a sign, and when there is no such column.
        """
        if self.look == "chart":
            names = {thing.column: name for thing, name in self._names()}
            return [Entry(bar.number, names[bar.number], bar.value) for bar in self.bars]
        if self.look == "sign" or (self.look == "table" and heading not in self.headings):
            return []
        column = self.headings.index(heading) + 1 if self.look == "table" else 1
        names = {thing.row: name for thing, name in self._names()}
        cells = [cell for cell in self.cells if cell.row and cell.column == column]
        return [Entry(cell.row, names[cell.row], int(cell.text)) for cell in sorted(cells, key=lambda cell: cell.row)]

    def _names(self) -> Iterator[tuple[Cell | Icon, str]]:
        """Yield the names of rows or bars, each with what shows it."""
        for icon in self.icons:
            yield icon, icon.kind
        for cell in self.cells:
            if (cell.row == 0 and cell.column > 0) if self.look == "chart" else (cell.row > 0 and cell.column == 0):
                yield cell, cell.text


def label_page(scene: Scene, labels: dict[str, np.ndarray]) -> None:
    """Write what lies under each merged visual token of a page.

    Cells have `glyph`, `place` (in the word or number), `from_top` (number of the row) and `from_left` (number of the
    column); icons have `kind`, `wears` and the same two; bars have `height`, their value, and `from_left`. All have the
    absolute `column` and `row` of their centre, which is a glyph's own for cells.

    Args:
        scene: with a page.
        labels: by name, (height // 28, width // 28) int64 each, all 0; they are written to.
    """
    page = scene.page
    assert page is not None, "a scene without a page"
    rows, columns = scene.height // TOKEN, scene.width // TOKEN
    y, x = (np.arange(rows) + 0.5)[:, None] * TOKEN, (np.arange(columns) + 0.5)[None, :] * TOKEN

    def write(where: np.ndarray | tuple[int, int], centre: tuple[int, int], **values: int) -> None:
        for name, value in values.items():
            labels[name][where] = value
        labels["row"][where], labels["column"][where] = centre[0] + 1, centre[1] + 1

    for bar in page.bars:
        # A low bar still has a token of its own, at its foot.
        inside = (np.abs(x - bar.x) < bar.width / 2) & (y > bar.top) & (y < bar.base)
        inside[token_at(scene, bar.x, bar.base - 1)] = True
        write(inside, token_at(scene, bar.x, (bar.top + bar.base) / 2), height=bar.value, from_left=bar.number)
    for icon in page.icons:
        half = 0.85 * icon.size / 2
        inside = (np.abs(x - icon.x) < 0.75 * half) & (np.abs(y - icon.y) < half)
        centre = token_at(scene, icon.x, icon.y)
        inside[centre] = True
        kind, wears = KINDS.index(icon.kind) + 1, WEARS.index("nothing") + 1
        write(inside, centre, kind=kind, wears=wears, from_top=icon.row, from_left=icon.column)
    for cell in page.cells:
        for number, glyph in enumerate(cell.text):
            at = token_at(scene, cell.glyph_x(number), cell.y)
            place, symbol = number + 1, SYMBOLS.index(glyph) + 1
            write(at, at, glyph=symbol, place=place, from_top=cell.row, from_left=cell.column)
