"""The task "cell": one number of a list or table, the garden's plainest DocVQA."""

from avis.garden.pages import MAX_NUMBER
from avis.garden.tasks.reckoning import (
    PageTask,
    describe,
    draw_names,
    draw_total,
    fill_names,
    near_numbers,
    select,
)


class Cell(PageTask):
    """Finding a row by its name (and a column by its heading); the number of rows follows `think`."""

    name = "cell"
    most = MAX_NUMBER
    slips = (*range(1, 10), 10, 20, 30)

    def draw_subject_at(self, rng, level, scenes=()):
        series = self.draw_series(rng, scenes)
        if series is None:
            return ()
        look, heading, entries = series
        names = draw_names(rng, look, heading, 1, entries, total=level.terms[0] + 1)
        return (look, heading, names) if names else ()

    def answers(self, level, about):
        return [str(number) for number in range(1, self.most + 1)]

    def compose(self, rng, level, width, height, about, answer, extras):
        count = draw_total(rng, about, about[2], level.terms)
        names = fill_names(rng, about, about[2], count)
        others = [number for number in range(1, self.most + 1) if number != int(answer)]
        # Numbers of two digits differ, so that they can be ranked, too.
        values = [int(answer), *rng.choice(others, size=count - 1, replace=self.most < MAX_NUMBER).tolist()]
        return self.set_page(rng, level, width, height, about, names, values, 1)

    def terms(self, scenes, about):
        entries = self.entries(scenes, about)
        return select(entries, about[2]) if entries else []

    def solve(self, scenes, about):
        terms = self.terms(scenes, about)
        return str(terms[0].value) if terms else None

    def wordings(self, about):
        who = describe(about, about[2])
        if about[0] == "list":
            return [f"What does {who} cost?", f"What is the price of {who}?", f"Find the price of {who}."]
        if about[0] == "chart":
            return [f"What is the height of {who}?", f"How high is {who}?", f"Read the height of {who}."]
        return [f"What is the number in {who}?", f"What stands in {who}?", f"Find the number in {who}."]

    def traces(self, scenes, about):
        # Straight to the row, or from the first or the last one to it.
        entries, (found,) = self.entries(scenes, about), self.terms(scenes, about)
        at = entries.index(found)
        return [self.tell(about, steps) for steps in ([found], entries[: at + 1], entries[at:][::-1])]

    def draw_trace(self, rng, scenes, about):
        return super(PageTask, self).draw_trace(rng, scenes, about)

    def tell(self, about, terms):
        return ", ".join(f"{entry.number} {entry.value}" for entry in terms)

    def near_answers(self, scenes, about):
        return near_numbers(self.solve(scenes, about), self.slips)
