"""The task "gap": how much more some rows of a page are than others."""

from avis.garden.tasks.base import draw_two_kinds
from avis.garden.tasks.reckoning import (
    PageTask,
    describe,
    draw_names,
    draw_number,
    draw_terms,
    draw_total,
    fill_names,
    is_in,
    near_numbers,
    select,
)


class Gap(PageTask):
    """Difference of two sums, each of one row or more; the number of rows follows `think`."""

    name = "gap"

    def draw_subject_at(self, rng, level, scenes=()):
        series = self.draw_series(rng, scenes)
        if series is None:
            return ()
        look, heading, entries = series
        if look == "list" and rng.random() < 0.4:
            return (look, heading, *draw_two_kinds(rng))
        count = draw_number(rng, level.terms)
        names = draw_names(rng, look, heading, count, entries)
        first = (count + int(rng.integers(2))) // 2
        return (look, heading, names[:first], names[first:]) if names else ()

    def fits_level(self, level, scenes, about):
        return level.terms[0] <= len(self.terms(scenes, about)) <= level.terms[1]

    def answers(self, level, about):
        # What any split of the level's numbers of rows can have.
        least, most = level.terms[0] // 2, level.terms[1] - level.terms[0] // 2
        return [str(gap) for gap in range(1, least * self.most - most + 1)]

    def compose(self, rng, level, width, height, about, answer, extras):
        groups, gap = about[2:], int(answer)
        if isinstance(groups[0], str):
            count = draw_number(rng, level.terms)
            first = (count + int(rng.integers(2))) // 2
            groups = ((groups[0],) * first, (groups[1],) * (count - first))
        more, less = map(len, groups)
        low = max(less, more - gap)
        subtrahend = draw_number(rng, (low, min(less * self.most, more * self.most - gap)))
        values = draw_terms(rng, more, subtrahend + gap, self.most) + draw_terms(rng, less, subtrahend, self.most)
        named = [*groups[0], *groups[1]]
        total = draw_total(rng, about, named)
        values += [draw_number(rng, (1, self.most)) for _ in range(total - len(named))]
        return self.set_page(rng, level, width, height, about, fill_names(rng, about, named, total), values, len(named))

    def terms(self, scenes, about):
        entries = self.entries(scenes, about)
        groups = [select(entries, group) for group in about[2:]] if entries else []
        return groups[0] + groups[1] if all(groups) and groups else []

    def solve(self, scenes, about):
        totals = [0, 0]
        terms = self.terms(scenes, about)
        for entry in terms:
            totals[not is_in(entry, about[2])] += entry.value
        return str(totals[0] - totals[1]) if terms and totals[0] > totals[1] else None

    def wordings(self, about):
        first, second = (_value_of(about, group) for group in about[2:])
        return [
            f"How much more is {first} than {second}?",
            f"By how much is {first} above {second}?",
            f"What is left when {second} is taken from {first}?",
        ]

    def tell(self, about, terms):
        totals, steps = [0, 0], []
        for entry in terms:
            totals[not is_in(entry, about[2])] += entry.value
            steps.append(f"{entry.number} {entry.value} {totals[0]} {totals[1]}")
        return ", ".join(steps)

    def near_answers(self, scenes, about):
        return near_numbers(self.solve(scenes, about))


def _value_of(about, group) -> str:
    """Return what a question calls the value, or the sum of values, of a group."""
    single = {"list": "the price of", "table": "the number in", "chart": "the height of"}[about[0]]
    is_single = isinstance(group, tuple) and len(group) == 1
    words = single if is_single else {"list": "the price of"}.get(about[0], "the sum of")
    return f"{words} {describe(about, group)}"
