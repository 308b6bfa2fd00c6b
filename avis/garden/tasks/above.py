"""The task "above": how many numbers of a page are above or below another one."""

from avis.garden.pages import MAX_NUMBER
from avis.garden.tasks.reckoning import PageTask, draw_number, fill_names, near_numbers


class Above(PageTask):
    """Counting over numbers of two digits; their number follows `think`."""

    name = "above"
    most = MAX_NUMBER

    def draw_subject_at(self, rng, level, scenes=()):
        # On a page that is there already, the limit alone would tell how many are above it.
        series = None if scenes else self.draw_series(rng, scenes)
        return (*series[:2], str(rng.choice(("above", "below"))), draw_number(rng, (20, 80))) if series else ()

    def answers(self, level, about):
        return [str(count) for count in range(level.terms[0] + 2)]

    def compose(self, rng, level, width, height, about, answer, extras):
        side, limit = about[2:]
        count = draw_number(rng, level.terms) + 1
        ends = [(limit + 1, MAX_NUMBER), (1, limit)] if side == "above" else [(1, limit - 1), (limit, MAX_NUMBER)]
        values = []
        for (low, high), size in zip(ends, (int(answer), count - int(answer)), strict=True):
            values += (low + rng.choice(high - low + 1, size=size, replace=False)).tolist()
        return self.set_page(rng, level, width, height, about, fill_names(rng, about, [], count), values, count)

    def terms(self, scenes, about):
        return self.entries(scenes, about)

    def solve(self, scenes, about):
        terms = self.terms(scenes, about)
        return str(sum(_counts(entry.value, about) for entry in terms)) if terms else None

    def wordings(self, about):
        side, limit = about[2:]
        where = "on the list" if about[0] == "list" else f"in column {about[1]}"
        what = "prices" if about[0] == "list" else "numbers"
        return [
            f"How many {what} {where} are {side} {limit}?",
            f"Count the {what} {where} that are {side} {limit}.",
            f"What is the number of {what} {side} {limit} {where}?",
        ]

    def tell(self, about, terms):
        count, steps = 0, []
        for entry in terms:
            count += _counts(entry.value, about)
            steps.append(f"{entry.number} {entry.value} {count}")
        return ", ".join(steps)

    def near_answers(self, scenes, about):
        return near_numbers(self.solve(scenes, about), (1, 2))


def _counts(value: int, about: tuple) -> bool:
    """Return whether a number is on the side of the limit that is asked about."""
    return value > about[3] if about[2] == "above" else value < about[3]
