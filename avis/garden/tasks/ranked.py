"""The task "ranked": the largest or smallest number of a page, the second or the third."""

from avis.garden.pages import MAX_NUMBER
from avis.garden.tasks.reckoning import PageTask, draw_number, fill_names, near_numbers

_PLACES, _SIDES = ("", "second ", "third "), ("largest", "smallest")


class Ranked(PageTask):
    """Going through numbers of two digits with the best of them in mind; their number follows `think`."""

    name = "ranked"
    most = MAX_NUMBER

    def draw_subject_at(self, rng, level, scenes=()):
        series = self.draw_series(rng, scenes)
        subjects = [(*series[:2], place, side) for place in range(len(_PLACES)) for side in _SIDES] if series else []
        if scenes:
            subjects = [about for about in subjects if self.solve(scenes, about) in self.answers(level, about)]
        return subjects[int(rng.integers(len(subjects)))] if subjects else ()

    def answers(self, level, about):
        # Enough room on both sides for all numbers of a page, whichever place is asked for.
        return [str(number) for number in range(12, MAX_NUMBER - 11 + 1)]

    def compose(self, rng, level, width, height, about, answer, extras):
        place, side = about[2:]
        count, value = draw_number(rng, level.terms) + 1, int(answer)
        ends = [(value + 1, MAX_NUMBER), (1, value - 1)]
        (before, after) = ends if side == "largest" else ends[::-1]
        values = [value]
        for (low, high), size in ((before, place), (after, count - 1 - place)):
            values += (low + rng.choice(high - low + 1, size=size, replace=False)).tolist()
        return self.set_page(rng, level, width, height, about, fill_names(rng, about, [], count), values, count)

    def terms(self, scenes, about):
        entries = self.entries(scenes, about)
        is_distinct = len({entry.value for entry in entries}) == len(entries)
        return entries if is_distinct and len(entries) >= len(_PLACES) else []

    def solve(self, scenes, about):
        terms = self.terms(scenes, about)
        values = sorted((entry.value for entry in terms), reverse=about[3] == "largest") if terms else []
        return str(values[about[2]]) if values else None

    def wordings(self, about):
        which = f"{_PLACES[about[2]]}{about[3]}"
        if about[0] == "list":
            return [
                f"What is the {which} price?",
                f"Which price on the list is the {which}?",
                f"Find the {which} price.",
            ]
        column = f"column {about[1]}"
        return [
            f"What is the {which} number in {column}?",
            f"Which number of {column} is the {which}?",
            f"Find the {which} number in {column}.",
        ]

    def tell(self, about, terms):
        place, side = about[2:]
        best: list[int] = []
        steps = []
        for entry in terms:
            best = sorted([*best, entry.value], reverse=side == "largest")[: place + 1]
            steps.append(" ".join(map(str, (entry.number, entry.value, *best))))
        return ", ".join(steps)

    def near_answers(self, scenes, about):
        return near_numbers(self.solve(scenes, about), (*range(1, 10), 10, 20, 30))
