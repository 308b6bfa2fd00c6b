"""Lays out new pages: lists, tables, charts and signs, each where there is room for it::

rng = rng_for("train", 7)
scene = set_list(rng, level_for(1, 2), 448, 448, ["cat", "duck"], [12, 7])

Everything follows the grid of merged visual tokens, so that each glyph lies in one token: middles of letters are
middles of tokens, and the two digits of a number stand on both sides of a border between tokens. Where a page is too
small for that, rows come closer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avis.garden.pages import MAX_BAR, PAPERS, Band, Bar, Cell, Icon, Page
from avis.garden.placement import draw_between
from avis.garden.scenes import KINDS, TOKEN, TONES, Level, Scene

# By `see`, 1 to 5, in pixels: height of a capital, distance of rows, the most height of an icon, and what a unit of a
# chart takes. At 1 to 3 every digit can be read.
_CAPITALS = ((27, 28), (25.5, 27), (24, 25.5), (15, 19), (10, 13))
_ROW_PITCH = ((42, 84), (42, 84), (42, 84), (42, 56), (28, 56))
_PITCHES = (84, 56, 42, 28)  # from row to row, in pixels
_ICONS = (72, 64, 56, 42, 28)
_UNITS = ((20, 30), (18, 28), (15, 24), (9, 14), (5.5, 8))
_WORD_CAPITAL = 22.0  # letters of words are a token apart, and M is wide
_DIGIT_PITCH = 0.86  # of a capital's height


@dataclass(frozen=True)
class _Grid:
    """Where the rows of a page are: in blocks beside each other, each read downwards.

    Attributes:
        left: of each block, in tokens.
        width: of each block, in tokens.
        top: middle of the first line, in pixels.
        pitch: from line to line, in pixels.
        lines: of headings, at the top of each block.
        per_block: rows in a block.
        count: of all rows.
    """

    left: list[int]
    width: int
    top: float
    pitch: float
    lines: int
    per_block: int
    count: int

    def block(self, row: int) -> int:
        """Number of the block of a row, from 0; rows are numbered from 1."""
        return (row - 1) // self.per_block

    def y(self, row: int) -> float:
        """Middle of a row, in pixels."""
        return self.top + self.pitch * (self.lines + (row - 1) % self.per_block)

    def rows_of(self, block: int) -> int:
        """How many rows a block has."""
        return min(self.per_block, self.count - block * self.per_block)


def set_list(
    rng: np.random.Generator, level: Level, width: int, height: int, names: Sequence[str], values: Sequence[int]
) -> Scene:
    """Lay out a list of names with a number each.

    Args:
        rng: the item's generator.
        level: how large, how dark, how noisy.
        width: of the scene in pixels.
        height: of the scene in pixels.
        names: from the top: all kinds of animals, or all letters.
        values: one number a name, 0 to 99.
    """
    name_width = 2 if names[0] in KINDS else 1
    grid = _draw_grid(rng, level, len(names), (name_width + 3, 3), width // TOKEN, height, stretch=3)
    name_width = min(name_width, grid.width - 2)
    capital = _draw_capital(rng, level, grid.pitch)
    cells, icons, bands = [], [], []
    style = str(rng.choice(("rules", "stripes", "dots")))
    for row, (name, value) in enumerate(zip(names, values, strict=True), start=1):
        left, y = grid.left[grid.block(row)], grid.y(row)
        if name in KINDS:
            size = min(_ICONS[_see(level) - 1], grid.pitch - 4, 36 * name_width)
            icons.append(Icon(name, row, 0, (left + name_width / 2) * TOKEN, y, size, str(rng.choice(TONES))))
        else:
            cells.append(Cell(name, row, 0, (left + name_width / 2) * TOKEN, y, TOKEN, capital))
        cells.append(_number(value, row, 1, left + grid.width - 1, y, capital))
        if style == "dots":
            foot = y + 0.5 * capital
            dots = range((left + name_width) * TOKEN + 5, (left + grid.width - 2) * TOKEN - 3, 7)
            bands += [Band(x, foot - 2, x + 2, foot, 0.4) for x in dots]
    if style != "dots":
        bands += _row_bands(grid, style)
    bands += _frame(rng, grid)
    return _as_scene(rng, level, width, height, Page("list", tuple(cells), tuple(icons), bands=tuple(bands)))


def set_table(
    rng: np.random.Generator,
    level: Level,
    width: int,
    height: int,
    names: Sequence[str],
    headings: Sequence[str],
    values: Sequence[Sequence[int]],
) -> Scene:
    """Lay out a table with a letter for each row and column.

    Args:
        rng: the item's generator.
        level: how large, how dark, how noisy.
        width: of the scene in pixels.
        height: of the scene in pixels.
        names: letters of the rows, from the top.
        headings: letters of the columns, from the left.
        values: of each row, one number a column, 0 to 99.
    """
    widths = (_table_width(len(headings)), 3 * len(headings))
    grid = _draw_grid(rng, level, len(names), widths, width // TOKEN, height, lines=1)
    gap = grid.width - 3 * len(headings)  # after the names, in tokens
    capital = _draw_capital(rng, level, grid.pitch)
    cells: list[Cell] = []
    for left in grid.left:  # each block has the headings
        for column, heading in enumerate(headings, start=1):
            cells.append(Cell(heading, 0, column, (left + gap + 3 * column - 0.5) * TOKEN, grid.top, TOKEN, capital))
    for row, (name, numbers) in enumerate(zip(names, values, strict=True), start=1):
        left, y = grid.left[grid.block(row)], grid.y(row)
        cells.append(Cell(name, row, 0, (left + 0.5) * TOKEN, y, TOKEN, capital))
        for column, value in enumerate(numbers, start=1):
            cells.append(_number(value, row, column, left + gap + 3 * column - 1, y, capital))
    bands = _row_bands(grid, str(rng.choice(("rules", "stripes"))))
    for block, left in enumerate(grid.left):
        y = grid.top + grid.pitch / 2
        bands.append(Band(left * TOKEN - 6, y - 1, (left + grid.width) * TOKEN + 6, y + 1, 0.7))
        x, foot = (left + 1 + gap / 2) * TOKEN, y + grid.pitch * grid.rows_of(block)
        bands.append(Band(x - 0.5, y - grid.pitch, x + 0.5, foot, 0.4))
    bands += _frame(rng, grid)
    return _as_scene(rng, level, width, height, Page("table", tuple(cells), bands=tuple(bands)))


def most_columns(level: Level, count: int, width: int, height: int) -> int:
    """Return how many columns of numbers, at most 3, a table with `count` rows may have without its rows coming close.

    Args:
        level: how close rows may come.
        count: number of rows.
        width: of the scene in pixels.
        height: of the scene in pixels.
    """
    least = _ROW_PITCH[_see(level) - 1][0]
    for columns in (3, 2):
        block_width = _table_width(columns)
        if block_width < width // TOKEN:
            fitting = _fitting_grids(count, block_width, width // TOKEN, height, lines=1)
            if any(pitch >= least for _, pitch in fitting):
                return columns
    return 1


def most_entries(look: str, columns: int, rows: int) -> int:
    """Return how many rows or bars a page of this size, in tokens, holds with a token for each of their glyphs.

    Args:
        look: one of `pages.LOOKS`.
        columns: of the page.
        rows: of the page.
    """
    if look == "chart":
        return columns - 2
    width = 6 if look == "sign" else 3
    return (columns + 1) // (width + 1) * (rows - (look == "table"))


def _table_width(num_columns: int) -> int:
    """Return the width of a table in tokens: a name, and two digits with a space for each column."""
    return 1 + 3 * num_columns


def set_sign(rng: np.random.Generator, level: Level, width: int, height: int, words: Sequence[str]) -> Scene:
    """Lay out numbered words, one a line, with a box around each letter.

    Args:
        rng: the item's generator.
        level: how large, how dark, how noisy.
        width: of the scene in pixels.
        height: of the scene in pixels.
        words: from the top, of `SYMBOLS`.
    """
    block_width = 2 + max(map(len, words))
    grid = _draw_grid(rng, level, len(words), (block_width, block_width), width // TOKEN, height)
    capital = min(_draw_capital(rng, level, grid.pitch), _WORD_CAPITAL)
    cells, bands = [], []
    half = min(17.0, grid.pitch / 2 - 2)
    for row, word in enumerate(words, start=1):
        border, y = grid.left[grid.block(row)] + 1, grid.y(row)
        cells.append(_number(row, row, 0, border, y, capital))
        left = (border + 1) * TOKEN
        right = left + len(word) * TOKEN
        cells.append(Cell(word, row, 1, (left + right) / 2, y, TOKEN, capital))
        bands += [Band(left, y + side * half - 0.5, right, y + side * half + 0.5, 0.4) for side in (-1, 1)]
        bands += [
            Band(x - 0.5, y - half, x + 0.5, y + half, 0.4 if x in (left, right) else 0.2)
            for x in range(left, right + 1, TOKEN)
        ]
    return _as_scene(rng, level, width, height, Page("sign", tuple(cells), bands=tuple(bands)))


def set_chart(
    rng: np.random.Generator, level: Level, width: int, height: int, names: Sequence[str], values: Sequence[int]
) -> Scene:
    """Lay out a chart with a bar for each name.

    Args:
        rng: the item's generator.
        level: how large, how dark, how noisy.
        width: of the scene in pixels.
        height: of the scene in pixels.
        names: from the left: all kinds of animals, or all letters.
        values: heights of the bars, 1 to `MAX_BAR`.
    """
    see, columns, rows = _see(level), width // TOKEN, height // TOKEN
    name_height = 2 if names[0] in KINDS else 1
    widest = max(1, (columns - 3) // len(names))  # tokens from bar to bar: the axis takes two
    step = int(rng.integers(min(name_height, widest), min(3, widest) + 1))
    axis = 2 + int(rng.integers(0, max(0, columns - 3 - step * len(names)) + 1))
    pitch = min(step * TOKEN, (width - axis * TOKEN) / len(names))  # a page may be too narrow
    least, most = _UNITS[see - 1]
    floor = rows - name_height - (rows > 8)  # the lowest place of the bars' feet, in tokens
    feasible = (floor * TOKEN - 18) / MAX_BAR
    unit = draw_between(rng, (least, min(most, feasible))) if feasible > least else feasible
    capital = min(_draw_capital(rng, level, 2 * TOKEN), 0.8 * MAX_BAR * unit)
    spare = int(floor * TOKEN - 18 - MAX_BAR * unit) // TOKEN
    base = (floor - int(rng.integers(0, max(0, spare) + 1))) * TOKEN
    left, right = axis * TOKEN, axis * TOKEN + pitch * len(names) + (TOKEN / 2 if step == 2 else 0)
    # Bars stand on middles of tokens, and clear of the axis.
    first = left + (min(TOKEN, pitch) / 2 if step == 1 else 1.5 * TOKEN)
    cells, icons, bars = [], [], []
    paints = [int(rng.integers(4))] * len(names) if rng.random() < 0.5 else [int(n) for n in rng.integers(4, size=12)]
    share = draw_between(rng, (0.55, 0.75))
    for number, (name, value) in enumerate(zip(names, values, strict=True), start=1):
        x = first + (number - 1) * pitch
        bars.append(Bar(number, value, x, base, share * pitch, unit, paints[number - 1]))
        if name in KINDS:
            size = min(_ICONS[see - 1], 1.9 * TOKEN, pitch)
            icons.append(Icon(name, 0, number, x, base + TOKEN, size, str(rng.choice(TONES))))
        else:
            letter = min(capital, _WORD_CAPITAL) if step == 1 else capital
            cells.append(Cell(name, 0, number, x, base + TOKEN / 2 + 2, TOKEN, letter))
    apart = max(TOKEN, 1.3 * capital)
    tick = next(step for step in (1, 2, 3, 4, 6, MAX_BAR) if step * unit >= apart or step == MAX_BAR)
    bands = []
    for value in range(MAX_BAR + 1):
        y = base - value * unit
        if value and value % tick == 0:
            cells.append(_number(value, 0, 0, axis - 1, y, capital))
        bands.append(Band(left, y - 0.5, right, y + 0.5, 0.25 if value % tick == 0 else 0.1))
    bands += [
        Band(left - 2, base - MAX_BAR * unit, left, base, 0.8),
        Band(left - 2, base - 1, right, base + 1, 0.8),
    ]
    page = Page("chart", tuple(cells), tuple(icons), tuple(bars), tuple(bands))
    return _as_scene(rng, level, width, height, page)


def _see(level: Level) -> int:
    return level.see or level.number


def _draw_capital(rng: np.random.Generator, level: Level, pitch: float) -> float:
    """Draw the height of a capital letter, with room between rows."""
    return min(draw_between(rng, _CAPITALS[_see(level) - 1]), 0.8 * pitch)


def _draw_grid(
    rng: np.random.Generator,
    level: Level,
    count: int,
    widths: tuple[int, int],
    columns: int,
    height: int,
    lines: int = 0,
    stretch: int = 0,
) -> _Grid:
    """Draw in how many blocks rows stand, how far apart, and where.

    Args:
        rng: the item's generator.
        level: how close rows may come.
        count: number of rows.
        widths: of a block in tokens, and the same without any space, for small pages.
        columns: of the page, in tokens.
        height: of the page, in pixels.
        lines: of headings, at the top of each block.
        stretch: by how many tokens blocks may be wider.
    """
    block_width, margin = widths[0], 8
    least, most = _ROW_PITCH[_see(level) - 1]
    fitting = _fitting_grids(count, block_width, columns, height, lines)
    if not fitting:
        block_width, margin, stretch = widths[1], 0, 0
        fitting = _fitting_grids(count, block_width, columns, height, lines, is_tight=True)
    wide = [(blocks, pitch) for blocks, pitch in fitting if least <= pitch <= most]
    whole = [(blocks, pitch) for blocks, pitch in wide if pitch % TOKEN == 0]
    closest = [one for one in fitting if one[1] == max(pitch for _, pitch in fitting)]
    chosen = whole or wide or closest or [(1, (height - margin) / (count + lines))]
    blocks, pitch = chosen[int(rng.integers(len(chosen)))]
    per_block = -(-count // blocks)
    # The first line's middle is a token's, where there is room.
    first = -int((TOKEN / 2 - pitch / 2 - margin) // TOKEN)
    last = int((height - margin - pitch * (per_block + lines - 0.5) - TOKEN / 2) // TOKEN)
    top = (height - pitch * (per_block + lines - 1)) / 2
    if last >= first:
        top = (int(rng.integers(first, last + 1)) + 0.5) * TOKEN
    gutter = int(blocks > 1)
    spare = max(0, columns - blocks * (block_width + gutter) + gutter)
    wider = int(rng.integers(0, min(stretch, spare // (2 * blocks)) + 1))
    spare -= blocks * wider
    if blocks > 1 and spare >= blocks:
        gutter, spare = gutter + 1, spare - blocks + 1
    start = int(rng.integers(1, spare)) if spare > 1 else 0
    block_width += wider
    left = [start + n * (block_width + gutter) for n in range(blocks)]
    return _Grid(left, block_width, top, pitch, lines, per_block, count)


def _fitting_grids(
    count: int, block_width: int, columns: int, height: int, lines: int, is_tight: bool = False
) -> list[tuple[int, float]]:
    """Return all numbers of blocks and distances of rows with which rows fit on a page; see `_draw_grid`."""
    margin, edge = (0, -1) if is_tight else (36, 1)
    found: list[tuple[int, float]] = []
    for blocks in range(1, 5):
        per_block = -(-count // blocks)
        is_even = count - per_block * (blocks - 1) >= per_block - 1 and per_block > 2
        if blocks == 1 or (is_even and blocks * (block_width + 1) + edge <= columns):
            pitches = [pitch for pitch in _PITCHES if (per_block + lines) * pitch <= height - margin]
            found += [(blocks, pitch) for pitch in pitches]
    return found


def _number(value: int, row: int, column: int, border: int, y: float, capital: float) -> Cell:
    """Return a number of one or two digits, whose tens stand left of a border between tokens, and units right of it."""
    pitch = _DIGIT_PITCH * capital
    x = border * TOKEN + (0 if value > 9 else pitch / 2)
    return Cell(str(value), row, column, x, y, pitch, capital)


def _row_bands(grid: _Grid, style: str) -> list[Band]:
    """Return hairlines between the rows, or a stripe behind every second row."""
    bands = []
    for row in range(1, grid.count + 1):
        left, y = grid.left[grid.block(row)], grid.y(row)
        x, right = left * TOKEN - 6, (left + grid.width) * TOKEN + 6
        place = (row - 1) % grid.per_block
        if style == "stripes" and place % 2 == 0:
            bands.append(Band(x, y - grid.pitch / 2, right, y + grid.pitch / 2, 0.07))
        elif style == "rules" and place:
            bands.append(Band(x, y - grid.pitch / 2 - 0.5, right, y - grid.pitch / 2 + 0.5, 0.22))
    return bands


def _frame(rng: np.random.Generator, grid: _Grid) -> list[Band]:
    """Return strong rules above and below each block, for some pages."""
    if rng.random() < 0.3:
        return []
    bands = []
    for block, left in enumerate(grid.left):
        x, right = left * TOKEN - 6, (left + grid.width) * TOKEN + 6
        head = grid.top - grid.pitch / 2
        foot = head + grid.pitch * (grid.lines + grid.rows_of(block))
        bands += [Band(x, y - 1, right, y + 1, 0.7) for y in (head, foot)]
    return bands


def _as_scene(rng: np.random.Generator, level: Level, width: int, height: int, page: Page) -> Scene:
    """Return the scene that shows a page, its paper, light and noise drawn."""
    return Scene(
        width=width,
        height=height,
        background=str(rng.choice(PAPERS)),
        light=draw_between(rng, level.light),
        noise=draw_between(rng, level.noise),
        seed=int(rng.integers(2**31)),
        animals=(),
        page=page,
    )
