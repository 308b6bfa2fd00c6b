"""How many animals there are of a kind, wearing something, or both."""

from avis.garden.scenes import KINDS, WEARS
from avis.garden.tasks.base import WORN, Task, how_many, matches, orders, pairs_with, plural
from avis.garden.tasks.extras import furnished


class Count(Task):
    """Counting by one attribute (kind or wear) or two."""

    name = "count"
    values = ("0", "1", "2", "3", "4")

    def subject(self, rng):
        form = rng.random()
        kind = str(rng.choice(KINDS)) if form < 0.8 else None
        wears = str(rng.choice(WEARS)) if form < 0.5 or form >= 0.8 else None
        return kind, wears

    def compose(self, rng, level, width, height, about, answer, extras):
        total = how_many(rng, level, int(answer))
        return (furnished(rng, level, width, height, pairs_with(rng, *about, int(answer), total), extras),)

    def solve(self, scenes, about):
        found = str(sum(matches(animal, *about) for animal in scenes[0].animals))
        return found if found in self.values else None

    def wordings(self, about):
        kind, wears = about
        if wears is None:
            return [
                f"How many wooden {plural(kind)} are there?",
                f"Count the {plural(kind)}.",
                f"What is the number of {plural(kind)}?",
            ]
        return [
            f"How many wooden {plural(kind)} are wearing {WORN[wears]}?",
            f"How many {plural(kind)} wear {WORN[wears]}?",
            f"Count the {plural(kind)} that wear {WORN[wears]}.",
        ]

    def traces(self, scenes, about):
        found = []
        for word, animals in orders(scenes[0]):
            seen, steps, hits = 0, [], []
            for number, animal in enumerate(animals, start=1):
                if matches(animal, *about):
                    seen += 1
                    hits.append(str(number))
                steps.append(f"{number} {animal.kind} {animal.wears} {seen}")
            listing = f"{word}: {', '.join(steps)}"
            found += [listing, f"{listing}; check: {', '.join(hits) or 'nothing'}"]
        return found
