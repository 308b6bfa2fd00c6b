"""The task "price": what animals cost together, the garden's MathVista."""

from avis.garden.placement import cast
from avis.garden.scenes import MAX_PRICE, WEARS
from avis.garden.tasks.base import Task, draw_count, draw_two_kinds, find_only, kinds_except, reading_orders
from avis.garden.tasks.extras import place_with_extras


class Price(Task):
    """Adding up the numbers on two animals' tags, or on all of them."""

    name = "price"
    values = tuple(str(total) for total in range(6, 19))

    def draw_subject(self, rng):
        return draw_two_kinds(rng) if rng.random() < 0.6 else ()

    def compose(self, rng, level, width, height, about, answer, extras):
        if not about:
            pairs = cast(rng, level.steps)
            prices = _draw_terms(rng, len(pairs), int(answer))
            return (place_with_extras(rng, level, width, height, pairs, extras, prices),)
        total = draw_count(rng, level)
        kinds = list(about) + [str(rng.choice(kinds_except(about))) for _ in range(total - 2)]
        prices = _draw_terms(rng, 2, int(answer)) + [int(rng.integers(1, MAX_PRICE + 1)) for _ in range(total - 2)]
        order = rng.permutation(total)
        pairs = [(kinds[i], str(rng.choice(WEARS))) for i in order]
        return (place_with_extras(rng, level, width, height, pairs, extras, [prices[i] for i in order]),)

    def _animals_to_add(self, scene, about):
        animals = [find_only(scene, kind) for kind in about] if about else list(scene.animals)
        return animals if animals and all(a and a.price for a in animals) else None

    def solve(self, scenes, about):
        animals = self._animals_to_add(scenes[0], about)
        total = str(sum(animal.price for animal in animals)) if animals else None
        return total if total in self.values else None

    def wordings(self, about):
        who = f"the {about[0]} and the {about[1]}" if about else "all animals"
        return [f"What do {who} cost together?", f"What is the price of {who}?", f"Add up the tags of {who}."]

    def traces(self, scenes, about):
        if about:
            lists = [self._animals_to_add(scenes[0], about), self._animals_to_add(scenes[0], about[::-1])]
        else:
            lists = [animals for _, animals in reading_orders(scenes[0])]
        words = ["", ""] if about else ["left: ", "top: "]
        found = []
        for word, animals in zip(words, lists, strict=True):
            total, steps = 0, []
            for number, animal in enumerate(animals, start=1):
                total += animal.price
                steps.append(f"{animal.kind if about else number} {animal.price} {total}")
            found.append(word + ", ".join(steps))
        return found


def _draw_terms(rng, count: int, total: int) -> list[int]:
    """Draw `count` prices that add up to `total`, each way to do so evenly."""
    while True:
        terms = [int(n) for n in rng.integers(1, MAX_PRICE + 1, size=count - 1)]
        if 1 <= total - sum(terms) <= MAX_PRICE:
            return terms + [total - sum(terms)]
