"""The task "sum": what some rows of a list, or of a table's column, add up to."""

from avis.garden.scenes import KINDS
from avis.garden.tasks.reckoning import (
    Group,
    PageTask,
    describe,
    draw_names,
    draw_number,
    draw_terms,
    draw_total,
    fill_names,
    near_numbers,
    select,
)


class Sum(PageTask):
    """Adding up all rows, those that are named, or those of one kind; the number of rows follows `think`."""

    name = "sum"

    def draw_subject_at(self, rng, level, scenes=()):
        series = self.draw_series(rng, scenes)
        if series is None:
            return ()
        look, heading, entries = series
        form = rng.random()
        group: Group = None
        if look == "list" and form < 0.3:
            group = str(rng.choice(KINDS))
        elif form < 0.65:
            group = draw_names(rng, look, heading, draw_number(rng, level.terms), entries)
        return (look, heading, group) if group != () else ()

    def fits_level(self, level, scenes, about):
        return level.terms[0] <= len(self.terms(scenes, about)) <= level.terms[1]

    def answers(self, level, about):
        return [str(total) for total in range(level.terms[1], level.terms[0] * self.most + 1)]

    def compose(self, rng, level, width, height, about, answer, extras):
        group = about[2]
        count = len(group) if isinstance(group, tuple) else draw_number(rng, level.terms)
        values = draw_terms(rng, count, int(answer), self.most)
        if group is None:
            names = fill_names(rng, about, [], count)
        else:
            named = [group] * count if isinstance(group, str) else list(group)
            total = draw_total(rng, about, named)
            names = fill_names(rng, about, named, total)
            values += [draw_number(rng, (1, self.most)) for _ in range(total - count)]
        return self.set_page(rng, level, width, height, about, names, values, count)

    def terms(self, scenes, about):
        entries = self.entries(scenes, about)
        return select(entries, about[2]) if entries else []

    def solve(self, scenes, about):
        terms = self.terms(scenes, about)
        return str(sum(entry.value for entry in terms)) if len(terms) > 1 else None

    def wordings(self, about):
        who = describe(about, about[2])
        if about[0] == "list":
            return [
                f"What do {who} cost together?",
                f"What is the total price of {who}?",
                f"Add up the prices of {who}.",
            ]
        return [f"What is the sum of {who}?", f"What do {who} add up to?", f"Add up {who}."]

    def tell(self, about, terms):
        total, steps = 0, []
        for entry in terms:
            total += entry.value
            steps.append(f"{entry.number} {entry.value} {total}")
        return ", ".join(steps)

    def near_answers(self, scenes, about):
        return near_numbers(self.solve(scenes, about))
