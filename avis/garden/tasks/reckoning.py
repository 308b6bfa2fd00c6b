"""What tasks on pages share: which values a question is about, how they are named, and pages that have them.

The subject of such a question begins with the page's look and the heading of a table's column (None on other pages).
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from avis.garden.pages import MAX_ENTRIES, NAME_LETTERS, Entry, Page
from avis.garden.scenes import KINDS, THINK, TOKEN, Level, Scene
from avis.garden.tasks.base import Task
from avis.garden.typesetting import most_columns, most_entries, set_chart, set_list, set_table

Group = str | tuple[str, ...] | None  # all of a kind, those that are named, or all
SLIPS = range(1, 10)  # by how much a number is wrong when one digit is misread, or a price left out


class PageTask(Task):
    """A question about the values of a list, of a table's column or of a chart.

    Attributes:
        looks: of the pages that it is asked about.
        most: the largest value on a page that is drawn for it. It asks about pages of the same range only: else small
            answers would be the likely ones.
    """

    looks: tuple[str, ...] = ("list", "table")
    most: int = 9

    def most_think(self, columns: int, rows: int) -> int:
        return most_think(self.looks, columns, rows)

    def suits(self, page: Page) -> bool:
        """Return whether the page is one that the task asks about."""
        return page.look in self.looks and page.most == self.most

    def entries(self, scenes: tuple[Scene, ...], about: tuple) -> list[Entry]:
        """Return the values that the question could be about; [] when it does not fit the page."""
        page = scenes[0].page
        if not about or page is None or page.look != about[0] or not self.suits(page):
            return []
        return page.entries(about[1] or "")

    @abstractmethod
    def terms(self, scenes: tuple[Scene, ...], about: tuple) -> list[Entry]:
        """Return the values that have to be gone through, in any order; [] when the question does not fit."""

    @abstractmethod
    def tell(self, about: tuple, terms: Sequence[Entry]) -> str:
        """Return the reasoning that goes through the values in this order."""

    def traces(self, scenes: tuple[Scene, ...], about: tuple) -> list[str]:
        terms = self.terms(scenes, about)
        return [self.tell(about, terms), self.tell(about, terms[::-1])]

    def draw_trace(self, rng: np.random.Generator, scenes: tuple[Scene, ...], about: tuple) -> str:
        terms = self.terms(scenes, about)
        return self.tell(about, [terms[i] for i in rng.permutation(len(terms))])

    def draw_series(
        self, rng: np.random.Generator, scenes: tuple[Scene, ...]
    ) -> tuple[str, str | None, list[Entry]] | None:
        """Draw the look of a page, the heading of a column, and the values there.

        Args:
            rng: the item's generator.
            scenes: () when there is no page yet; then there are no values.

        Returns:
            None when the page is not one of the task's.
        """
        if not scenes:
            look = str(rng.choice(self.looks))
            return look, str(rng.choice(list(NAME_LETTERS))) if look == "table" else None, []
        page = scenes[0].page
        if page is None or not self.suits(page):
            return None
        heading = str(rng.choice(page.headings)) if page.headings else None
        return page.look, heading, page.entries(heading or "")

    def set_page(
        self,
        rng: np.random.Generator,
        level: Level,
        width: int,
        height: int,
        about: tuple,
        names: Sequence[str],
        values: Sequence[int],
        needed: int,
    ) -> tuple[Scene, ...]:
        """Lay out a page of the subject's look with values in random order; other columns are drawn.

        The first `needed` values are on it whatever its size; a small page has only as many others as it holds.
        """
        look, heading = about[:2]
        count = min(len(names), max(needed, most_entries(look, width // TOKEN, height // TOKEN)))
        order = rng.permutation(count)
        names, values = [names[i] for i in order], [values[i] for i in order]
        if look != "table":
            lay_out = set_list if look == "list" else set_chart
            return (self._with_range(lay_out(rng, level, width, height, names, values)),)
        others = int(rng.integers(0, most_columns(level, len(names), width, height)))
        headings = [heading, *draw_letters(rng, others, [heading, *names])]
        headings = [headings[i] for i in rng.permutation(len(headings))]
        rows = [[v if h == heading else int(rng.integers(1, self.most + 1)) for h in headings] for v in values]
        return (self._with_range(set_table(rng, level, width, height, names, headings, rows)),)

    def _with_range(self, scene: Scene) -> Scene:
        """Return the scene with the range of its page's values."""
        assert scene.page is not None, "a page was laid out"
        return replace(scene, page=replace(scene.page, most=self.most))


def most_think(looks: Sequence[str], columns: int, rows: int) -> int:
    """Return the largest `think` whose rows, or bars, pages of these looks hold at a size in tokens.

    It is at least 1, for which a page needs 6 x 6 tokens.
    """
    room = min(most_entries(look, columns, rows) for look in looks)
    return max(1, sum(think.terms[1] < room for think in THINK))


def draw_number(rng: np.random.Generator, ends: tuple[int, int]) -> int:
    """Draw a whole number evenly between two ends, both included."""
    return int(rng.integers(ends[0], ends[1] + 1))


def draw_letters(rng: np.random.Generator, count: int, besides: Sequence[str | None] = ()) -> list[str]:
    """Draw different letters for names, besides those that are taken."""
    free = [letter for letter in NAME_LETTERS if letter not in besides]
    return [str(letter) for letter in rng.choice(free, size=count, replace=False)]


def draw_names(
    rng: np.random.Generator,
    look: str,
    heading: str | None,
    count: int,
    entries: Sequence[Entry] = (),
    total: int = 0,
) -> tuple[str, ...]:
    """Draw different names of values: letters or kinds of animals.

    Args:
        rng: the item's generator.
        look: of the page.
        heading: of the column, which names no row.
        count: how many.
        entries: of the page, when there is one; only names that occur once are drawn.
        total: number of values that the page has at least; a chart has each kind once.

    Returns:
        The names; () when the page has too few.
    """
    if entries:
        names = [entry.name for entry in entries]
        single = [name for name in names if names.count(name) == 1]
        return tuple(str(n) for n in rng.choice(single, size=count, replace=False)) if len(single) >= count else ()
    has_room = look == "list" or (look == "chart" and total <= len(KINDS))
    if has_room and count <= 3 and rng.random() < 0.5:
        return tuple(str(kind) for kind in rng.choice(KINDS, size=count, replace=False))
    return tuple(draw_letters(rng, count, [heading]))


def fill_names(rng: np.random.Generator, about: tuple, named: Sequence[str], count: int) -> list[str]:
    """Return `count` names for the values of a page, the named ones first; no other value has one of these.

    Beside a named kind of animals, several values of a list may have the same name; else each has its own.

    Args:
        rng: the item's generator.
        about: the question's subject: look and heading.
        named: all letters, or all kinds; [] leaves open which.
        count: of all values.
    """
    look, heading = about[:2]
    free = [kind for kind in KINDS if kind not in named]
    has_kinds = named[0] in KINDS if named else look != "table" and count <= len(KINDS) and bool(rng.random() < 0.5)
    if has_kinds:
        may_repeat = look == "list" and len(named) > 0
        drawn = rng.choice(free, size=count - len(named), replace=may_repeat) if count > len(named) else []
        return [*named, *(str(kind) for kind in drawn)]
    return [*named, *draw_letters(rng, count - len(named), [heading, *named])]


def draw_total(rng: np.random.Generator, about: tuple, named: Sequence[str], others: tuple[int, int] = (1, 2)) -> int:
    """Draw how many values a page has.

    Args:
        rng: the item's generator.
        about: the question's subject.
        named: names of the values that matter; a chart has at most one bar for each kind.
        others: least and most number of other values.
    """
    most = len(KINDS) if about[0] == "chart" and named[0] in KINDS else MAX_ENTRIES
    return min(most, len(named) + draw_number(rng, others))


def draw_terms(rng: np.random.Generator, count: int, total: int, most: int) -> list[int]:
    """Draw `count` numbers from 1 to `most` that add up to `total`, in random order."""
    terms: list[int] = []
    for left in range(count - 1, -1, -1):
        rest = total - sum(terms)
        terms.append(draw_number(rng, (max(1, rest - most * left), min(most, rest - left))))
    return [terms[i] for i in rng.permutation(count)]


def select(entries: Sequence[Entry], group: Group) -> list[Entry]:
    """Return the values of a group; [] when a name of it occurs twice or not at all."""
    found = [entry for entry in entries if is_in(entry, group)]
    return [] if isinstance(group, tuple) and len(found) != len(group) else found


def is_in(entry: Entry, group: Group) -> bool:
    """Return whether a value is of a group."""
    return group is None or (entry.name == group if isinstance(group, str) else entry.name in group)


def near_numbers(value: str, slips: Sequence[int] = SLIPS) -> list[str]:
    """Return the numbers that are one slip away."""
    return [str(int(value) + sign * slip) for slip in slips for sign in (-1, 1)]


def enumerate_words(words: Sequence[str]) -> str:
    """Return "A", "A and C" or "A, C and E"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def describe(about: tuple, group: Group) -> str:
    """Return what a question calls the values of a group: "items A and C", "all cats", "row A of column E"."""
    look, heading = about[:2]
    if isinstance(group, str):
        return f"all {group}s"
    if group is None:
        return {"list": "all things on the list", "table": f"all rows of column {heading}", "chart": "all bars"}[look]
    has_kinds = group[0] in KINDS
    names = enumerate_words([f"the {name}" for name in group] if has_kinds else group)
    if look == "list" and has_kinds:
        return names
    noun = {"list": "item", "table": "row", "chart": "bar"}[look] + ("s" if len(group) > 1 else "")
    if has_kinds:
        return f"the {noun} of {names}"
    return f"{noun} {names}" + (f" of column {heading}" if look == "table" else "")
