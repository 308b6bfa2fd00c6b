"""The task "count": how many animals there are of a kind, wearing something, or both."""

from avis.garden.scenes import KINDS, WEARS
from avis.garden.tasks.base import WORN, Task, draw_count, draw_pairs, matches, pluralize, reading_orders
from avis.garden.tasks.extras import place_with_extras


class Count(Task):
    """Counting by one attribute (kind or wear) or two."""

    name = "count"
    values = ("0", "1", "2", "3", "4")

    def draw_subject(self, rng):
        form = rng.random()
        kind = str(rng.choice(KINDS)) if form < 0.8 else None
        wears = str(rng.choice(WEARS)) if form < 0.5 or form >= 0.8 else None
        return kind, wears

    def compose(self, rng, level, width, height, about, answer, extras):
        kind, wears = about
        pairs = draw_pairs(rng, kind, wears, int(answer), draw_count(rng, level, int(answer)))
        return (place_with_extras(rng, level, width, height, pairs, extras),)

    def solve(self, scenes, about):
        kind, wears = about
        found = str(sum(matches(animal, kind, wears) for animal in scenes[0].animals))
        return found if found in self.values else None

    def wordings(self, about):
        kind, wears = about
        if wears is None:
            return [
                f"How many wooden {pluralize(kind)} are there?",
                f"Count the {pluralize(kind)}.",
                f"What is the number of {pluralize(kind)}?",
            ]
        return [
            f"How many wooden {pluralize(kind)} are wearing {WORN[wears]}?",
            f"How many {pluralize(kind)} wear {WORN[wears]}?",
            f"Count the {pluralize(kind)} that wear {WORN[wears]}.",
        ]

    def traces(self, scenes, about):
        kind, wears = about
        found = []
        for word, animals in reading_orders(scenes[0]):
            seen, steps, hits = 0, [], []
            for number, animal in enumerate(animals, start=1):
                if matches(animal, kind, wears):
                    seen += 1
                    hits.append(str(number))
                steps.append(f"{number} {animal.kind} {animal.wears} {seen}")
            listing = f"{word}: {', '.join(steps)}"
            found += [listing, f"{listing}; check: {', '.join(hits) or 'nothing'}"]
        return found
