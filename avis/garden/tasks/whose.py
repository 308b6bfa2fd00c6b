"""The task "whose": which row of a list or table has a number."""

from avis.garden.pages import NAME_LETTERS
from avis.garden.scenes import KINDS
from avis.garden.tasks.cell import Cell
from avis.garden.tasks.reckoning import draw_number, draw_total, fill_names


class Whose(Cell):
    """Finding a row by its number and reading its name; the number of rows follows `think`."""

    name = "whose"

    def suits(self, page):
        return page.look in self.looks  # the answer is a name, whatever the range of the values

    def draw_subject_at(self, rng, level, scenes=()):
        series = self.draw_series(rng, scenes)
        if series is None:
            return ()
        look, heading, entries = series
        values = [entry.value for entry in entries]
        single = [entry for entry in entries if values.count(entry.value) == 1]
        if single:
            chosen = single[int(rng.integers(len(single)))]
            return (look, heading, _noun(look, chosen.name), chosen.value)
        if scenes:
            return ()
        noun = _noun(look, "cat" if look == "list" and rng.random() < 0.5 else "A")
        return (look, heading, noun, draw_number(rng, (1, self.most)))

    def shape(self, about):
        return about[:3]  # the number stands for a row, as a name does

    def answers(self, level, about):
        is_animal = about[2:3] == ("animal",)
        return KINDS if is_animal else [letter for letter in NAME_LETTERS if letter not in about[1:2]]

    def compose(self, rng, level, width, height, about, answer, extras):
        names = fill_names(rng, about, [answer], draw_total(rng, about, [answer], level.terms))
        others = [number for number in range(1, self.most + 1) if number != about[3]]
        values = [about[3], *rng.choice(others, size=len(names) - 1, replace=False).tolist()]
        return self.set_page(rng, level, width, height, about, names, values, 1)

    def terms(self, scenes, about):
        found = [entry for entry in self.entries(scenes, about) if entry.value == about[3]]
        return found if len(found) == 1 and _noun(about[0], found[0].name) == about[2] else []

    def solve(self, scenes, about):
        terms = self.terms(scenes, about)
        return terms[0].name if terms else None

    def wordings(self, about):
        look, heading, noun, number = about
        if look == "list":
            return [
                f"Which {noun} costs {number}?",
                f"Which {noun} has the price {number}?",
                f"Find the {noun} that costs {number}.",
            ]
        return [
            f"Which row has {number} in column {heading}?",
            f"In which row of column {heading} is the number {number}?",
            f"Find the row with {number} in column {heading}.",
        ]

    def near_answers(self, scenes, about):
        return []


def _noun(look: str, name: str) -> str:
    """Return what a question calls a row: "animal", "item" or "row"."""
    return "row" if look == "table" else "animal" if name in KINDS else "item"
