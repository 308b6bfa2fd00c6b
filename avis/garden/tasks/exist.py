"""Whether there is an animal of a kind that wears something."""

from avis.garden.scenes import KINDS, WEARS
from avis.garden.tasks.base import WORN, Task, how_many, matches, orders, pairs_with
from avis.garden.tasks.extras import furnished


class Exist(Task):
    """Existence, yes or no."""

    name = "exist"
    values = ("yes", "no")

    def subject(self, rng):
        return str(rng.choice(KINDS)), str(rng.choice(WEARS))

    def compose(self, rng, level, width, height, about, answer, extras):
        pairs = pairs_with(rng, *about, int(answer == "yes"), how_many(rng, level))
        return (furnished(rng, level, width, height, pairs, extras),)

    def solve(self, scenes, about):
        return "yes" if any(matches(animal, *about) for animal in scenes[0].animals) else "no"

    def wordings(self, about):
        kind, wears = about
        return [
            f"Is there a {kind} wearing {WORN[wears]}?",
            f"Does any {kind} wear {WORN[wears]}?",
            f"Can you see a wooden {kind} that wears {WORN[wears]}?",
        ]

    def traces(self, scenes, about):
        found = []
        for word, animals in orders(scenes[0]):
            steps = []
            for number, animal in enumerate(animals, start=1):
                hit = matches(animal, *about)
                steps.append(f"{number} {animal.kind} {animal.wears} {'yes' if hit else 'no'}")
                if hit:
                    break
            found.append(f"{word}: {', '.join(steps)}")
        return found
