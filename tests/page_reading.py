"""A second reading of questions about pages: their words are parsed here, and the answer is found again without the
tasks' code, on a sheet that is read from the record's texts and bars or from the dense labels alone.
"""

import re
from typing import NamedTuple

import numpy as np

from avis.garden.labels import LABEL_NAMES
from avis.garden.pages import Page
from avis.garden.scenes import KINDS, SYMBOLS
from avis.garden.tasks import Item

PAGE_TASKS = ("cell", "word", "sum", "gap", "ranked", "above", "order", "whose", "bar", "bars", "taller")
# Least and most number of rows that a question goes through, by think.
TERMS = ((2, 2), (3, 3), (4, 5), (6, 7), (8, 10))


def values_of(task: str, think: int) -> list[str]:
    """Every answer of a task at a level of thinking, each as likely as the others; words and names are not listed."""
    least, most = TERMS[think - 1]
    return {
        "cell": [str(n) for n in range(1, 100)],
        "word": [],
        "whose": [],
        "sum": [str(n) for n in range(most, 9 * least + 1)],
        "gap": [str(n) for n in range(1, 9 * (least // 2) - (most - least // 2) + 1)],
        "ranked": [str(n) for n in range(12, 89)],
        "above": [str(n) for n in range(least + 2)],
        "order": [str(n) for n in range(3 * most - 2, 9 * least + 1)],
        "bar": [str(n) for n in range(1, 13)],
        "bars": [str(n) for n in range(most, 12 * least + 1)],
        "taller": [str(n) for n in range(1, 12 * (least // 2) - (most - least // 2) + 1)],
    }[task]


class Sheet(NamedTuple):
    """What a page says.

    names: of rows, or of bars, by number; headings: of columns, by number; numbers: by row and column, of bars by
    their number and 1; words: of a sign, by line.
    """

    look: str
    names: dict[int, str]
    headings: dict[int, str]
    numbers: dict[tuple[int, int], int]
    words: dict[int, str]


def _as_sheet(look: str, texts: dict[tuple[int, int], str], kinds: dict[tuple[int, int], str], bars: dict[int, int]):
    """A sheet, from what stands at which row and column."""
    if look == "sign":
        numbers = {row: int(text) for (row, column), text in texts.items() if not column}
        return Sheet(look, {}, {}, {}, {numbers[row]: text for (row, column), text in texts.items() if column})
    named = {place: name for place, name in (texts | kinds).items() if 0 in place and any(place)}
    beside = {row: name for (row, column), name in named.items() if not column}
    above = {column: name for (row, column), name in named.items() if not row}
    if look == "chart":
        return Sheet(look, above, {}, {(number, 1): value for number, value in bars.items()}, {})
    numbers = {place: int(text) for place, text in texts.items() if all(place)}
    return Sheet(look, beside, above, numbers, {})


def sheet_of_record(page: Page) -> Sheet:
    """The sheet of a page's texts, icons and bars."""
    texts = {(cell.row, cell.column): cell.text for cell in page.cells}
    kinds = {(icon.row, icon.column): icon.kind for icon in page.icons}
    return _as_sheet(page.look, texts, kinds, {bar.number: bar.value for bar in page.bars})


def sheet_of_labels(labels: np.ndarray) -> Sheet:
    """The sheet that a reader of dense labels, (1, rows, columns, labels), makes out."""
    glyphs: dict[tuple[int, int], dict[int, str]] = {}
    kinds, bars = {}, {}
    for token in labels.reshape(-1, len(LABEL_NAMES)).tolist():
        label = dict(zip(LABEL_NAMES, token, strict=True))
        place = (label["from_top"], label["from_left"])
        if label["glyph"]:
            glyphs.setdefault(place, {})[label["place"]] = SYMBOLS[label["glyph"] - 1]
        if label["kind"]:
            kinds[place] = KINDS[label["kind"] - 1]
        if label["height"]:
            assert bars.setdefault(label["from_left"], label["height"]) == label["height"]
    # A mark of a chart's scale has neither row nor column.
    texts = {place: "".join(text for _, text in sorted(found.items())) for place, found in glyphs.items() if any(place)}
    numbered = {text for (_, column), text in texts.items() if not column}
    looks = (bool(bars), any(not row for row, _ in texts), bool(kinds) or not any(map(str.isdigit, numbered)))
    return _as_sheet(("chart", "table", "list", "sign")[(*looks, True).index(True)], texts, kinds, bars)


KIND = "(?:rabbit|bear|cat|duck)"
NAMES = f"(?:the {KIND}|[A-Z])(?:, (?:the {KIND}|[A-Z]))*(?: and (?:the {KIND}|[A-Z]))?"
WHO = (
    f"(all things on the list|all rows of column [A-Z]|all bars|all {KIND}s|(?:items?|rows?|bars?)(?: of)? {NAMES}"
    f"(?: of column [A-Z])?|the bars? of {NAMES}|{NAMES})"
)
VALUE = f"(?:the price of|the number in|the height of|the sum of) {WHO}"
WHERE = "(on the list|in column [A-Z])"
POSITIONS = f"((?:[123] (?:of [A-Z]|{KIND}s?)(?:, | and )?)+)"
RANK = "(|second |third )(largest|smallest)"
WORDINGS: dict[str, tuple[str, ...]] = {
    "cell": (f"What does {WHO} cost\\?", f"What is the price of {WHO}\\?", f"Find the price of {WHO}\\.")
    + (f"What is the number in {WHO}\\?", f"What stands in {WHO}\\?", f"Find the number in {WHO}\\."),
    "bar": (f"What is the height of {WHO}\\?", f"How high is {WHO}\\?", f"Read the height of {WHO}\\."),
    "word": (r"What is word (\d+)\?", r"What does word (\d+) say\?", r"Read word (\d+)\."),
    "sum": (f"What do {WHO} cost together\\?", f"What is the total price of {WHO}\\?", f"Add up the prices of {WHO}\\.")
    + (f"What is the sum of {WHO}\\?", f"What do {WHO} add up to\\?", f"Add up {WHO}\\."),
    "gap": (f"How much more is {VALUE} than {VALUE}\\?", f"By how much is {VALUE} above {VALUE}\\?")
    + (f"What is left when {VALUE} is taken from {VALUE}\\?",),
    "ranked": (f"What is the {RANK} price\\?", f"Which price on the list is the {RANK}\\?", f"Find the {RANK} price\\.")
    + (f"What is the {RANK} number in column [A-Z]\\?", f"Which number of column [A-Z] is the {RANK}\\?")
    + (f"Find the {RANK} number in column [A-Z]\\.",),
    "above": (f"How many (?:prices|numbers) {WHERE} are (above|below) (\\d+)\\?",)
    + (f"Count the (?:prices|numbers) {WHERE} that are (above|below) (\\d+)\\.",)
    + (f"What is the number of (?:prices|numbers) (above|below) (\\d+) {WHERE}\\?",),
    "order": (f"What do {POSITIONS} cost\\?", f"What is the total of an order of {POSITIONS}\\?")
    + (f"Look up the prices of {POSITIONS}: what do they cost together\\?",),
}
WORDINGS["whose"] = (
    *(r"Which (animal|item) costs (\d+)\?", r"Which (animal|item) has the price (\d+)\?"),
    *(r"Find the (animal|item) that costs (\d+)\.", r"Which (row) has (\d+) in column [A-Z]\?"),
    *(r"In which (row) of column [A-Z] is the number (\d+)\?", r"Find the (row) with (\d+) in column [A-Z]\."),
)
WORDINGS |= {"bars": WORDINGS["sum"][3:], "taller": WORDINGS["gap"]}


def column_of(sheet: Sheet, words: str) -> int:
    """The column that the words name; 1 where there is only one."""
    found = re.search(r"column ([A-Z])\b", words)
    assert bool(found) == (sheet.look == "table"), f"a question about a {sheet.look}: {words!r}"
    (column,) = [number for number, name in sheet.headings.items() if name == found[1]] if found else [1]
    return column


def rows_of(sheet: Sheet, who: str) -> list[int]:
    """The numbers of the rows or bars that the words name; a name must not leave open which."""
    who = re.sub(r" (of|in) column [A-Z]$", "", who)
    if who in ("all things on the list", "all rows", "all bars"):
        return sorted(sheet.names)
    if found := re.fullmatch(f"all ({KIND})s", who):
        return [number for number, name in sheet.names.items() if name == found[1]]
    noun = {"list": "items?", "table": "rows?", "chart": "bars?"}[sheet.look]
    if re.search(r"\b[A-Z]\b", who):
        assert re.match(noun, who), f"{who!r} on a {sheet.look}"
    rows = []
    for name in re.findall(rf"\b[A-Z]\b|{KIND}", who):
        (row,) = [number for number, other in sheet.names.items() if other == name]
        rows.append(row)
    return rows


class Asked(NamedTuple):
    """What has to be done: in which column, each row or bar with what its value counts, how they are combined; and the
    number of the question's wording."""

    column: int
    weights: dict[int, int]
    how: tuple
    wording: int


def read_page_question(task: str, stem: str, sheet: Sheet) -> Asked:
    """The one way in which a question can be read."""
    ((number, match),) = [(n, m) for n, w in enumerate(WORDINGS[task]) if (m := re.fullmatch(w, stem))]
    parts = match.groups()
    if task == "word":
        return Asked(1, {}, ("word", int(parts[0])), number)
    if task == "order":
        named = re.findall(rf"([123]) (?:of ([A-Z])|({KIND}))", parts[0])
        weights = {rows_of(sheet, f"item {letter}" if letter else kind)[0]: int(n) for n, letter, kind in named}
        assert sheet.look == "list" and len(weights) == len(named)
        return Asked(1, weights, ("add",), number)
    column = column_of(sheet, stem)
    if task == "whose":
        (row,) = [n for n in sheet.names if sheet.numbers[n, column] == int(parts[1])]
        assert (parts[0] == "animal") == (sheet.names[row] in KINDS)
        return Asked(column, {row: 1}, ("name",), number)
    if task == "ranked":
        place = ("", "second ", "third ").index(parts[0])
        return Asked(column, dict.fromkeys(sheet.names, 1), ("rank", place, parts[1]), number)
    if task == "above":
        side, limit = parts[:2] if number == 2 else parts[1:]
        return Asked(column, dict.fromkeys(sheet.names, 1), ("count", side, int(limit)), number)
    if task in ("gap", "taller"):
        first, second = (rows_of(sheet, who) for who in (parts[::-1] if number == 2 else parts))
        assert first and second and not set(first) & set(second)
        return Asked(column, dict.fromkeys(first, 1) | dict.fromkeys(second, -1), ("subtract",), number)
    rows = rows_of(sheet, parts[0])
    assert len(rows) == 1 if task in ("cell", "bar") else len(rows) > 1
    return Asked(column, dict.fromkeys(rows, 1), ("read" if task in ("cell", "bar") else "add",), number)


def answer_on(sheet: Sheet, asked: Asked) -> str:
    """The answer, counted again."""
    if asked.how[0] == "name":
        return sheet.names[next(iter(asked.weights))]
    column, weights, how, _ = asked
    if how[0] == "word":
        return sheet.words[how[1]]
    values = {row: sheet.numbers[row, column] for row in weights}
    if how[0] == "rank":
        assert len(set(values.values())) == len(values), "two are as large as each other"
        return str(sorted(values.values(), reverse=how[2] == "largest")[how[1]])
    if how[0] == "count":
        return str(sum(value > how[2] if how[1] == "above" else value < how[2] for value in values.values()))
    return str(sum(weight * values[row] for row, weight in weights.items()))


def order_of_trace(item: Item, sheet: Sheet, asked: Asked) -> tuple[int, ...]:
    """Check every step of a trace against the sheet; the order in which it goes through rows or bars."""
    tail = f"; {item.value}" + (f" {item.answer}" if item.form == "choice" else "")
    assert item.trace.endswith(tail)
    body = item.trace[: -len(tail)]
    if asked.how[0] == "word":
        letters = body.split(", ") if ", " in body else [f"{n} {a}" for n, a in enumerate(body.split(" "), start=1)]
        assert letters == [f"{n} {letter}" for n, letter in enumerate(item.value, start=1)]
        return ()
    steps = [tuple(map(int, step.split(" "))) for step in body.split(", ")]
    rows = [step[0] for step in steps]
    if asked.how[0] in ("read", "name"):
        (row,) = asked.weights
        last = max(sheet.names)
        assert rows in ([row], [*range(1, row + 1)], [*range(last, row - 1, -1)])
        assert steps == [(n, sheet.numbers[n, asked.column]) for n in rows]
        return tuple(rows)
    assert sorted(rows) == sorted(asked.weights), "a row is left out, or gone through twice"
    seen: list[int] = []
    totals = {1: 0, -1: 0}
    for step in steps:
        value, weight = sheet.numbers[step[0], asked.column], asked.weights[step[0]]
        seen.append(value)
        if item.task == "order":
            totals[1] += weight * value
            expected = (weight, value, weight * value, totals[1])
        elif asked.how[0] == "subtract":
            totals[weight] += value
            expected = (value, totals[1], totals[-1])
        elif asked.how[0] == "rank":
            expected = (value, *sorted(seen, reverse=asked.how[2] == "largest")[: asked.how[1] + 1])
        elif asked.how[0] == "count":
            expected = (value, sum(v > asked.how[2] if asked.how[1] == "above" else v < asked.how[2] for v in seen))
        else:
            expected = (value, sum(seen))
        assert step[1:] == expected, f"{step} of {item.trace!r}"
    return tuple(rows)
