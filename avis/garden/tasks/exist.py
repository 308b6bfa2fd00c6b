"""The task "exist": whether there is an animal of a kind that wears something."""

from avis.garden.scenes import KINDS, WEARS
from avis.garden.tasks.base import WORN, Task, draw_count, draw_pairs, matches, reading_orders
from avis.garden.tasks.extras import place_with_extras


class Exist(Task):
    """Existence, yes or no."""

    name = "exist"
    values = ("yes", "no")

    def draw_subject(self, rng):
        return str(rng.choice(KINDS)), str(rng.choice(WEARS))

    def compose(self, rng, level, width, height, about, answer, extras):
        kind, wears = about
        pairs = draw_pairs(rng, kind, wears, int(answer == "yes"), draw_count(rng, level))
        return (place_with_extras(rng, level, width, height, pairs, extras),)

    def solve(self, scenes, about):
        kind, wears = about
        return "yes" if any(matches(animal, kind, wears) for animal in scenes[0].animals) else "no"

    def wordings(self, about):
        kind, wears = about
        return [
            f"Is there a {kind} wearing {WORN[wears]}?",
            f"Does any {kind} wear {WORN[wears]}?",
            f"Can you see a wooden {kind} that wears {WORN[wears]}?",
        ]

    def traces(self, scenes, about):
        kind, wears = about
        found = []
        for word, animals in reading_orders(scenes[0]):
            steps = []
            for number, animal in enumerate(animals, start=1):
                hit = matches(animal, kind, wears)
                steps.append(f"{number} {animal.kind} {animal.wears} {'yes' if hit else 'no'}")
                if hit:
                    break
            found.append(f"{word}: {', '.join(steps)}")
        return found
