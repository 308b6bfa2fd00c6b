"""The task "third": what the second or third cheapest, or dearest, animal costs."""

import numpy as np

from avis.garden.placement import cast
from avis.garden.scenes import MAX_PRICE
from avis.garden.tasks.extras import place_with_extras
from avis.garden.tasks.steps import OrderedTask, draw_num_terms, tagged_group

PLACES = ("second", "third")


class Third(OrderedTask):
    """Reading all tags in any order, then picking the least or the greatest ones in turn."""

    name = "third"
    values = tuple(map(str, range(2, MAX_PRICE)))

    def draw_subject(self, rng):
        return str(rng.choice(PLACES)), str(rng.choice(("cheapest", "dearest")))

    def answers(self, level, about):
        number = PLACES.index(about[0]) + 2
        prices = range(number, MAX_PRICE)  # one price at least is left for those beyond
        return [str(price if about[1] == "cheapest" else MAX_PRICE + 1 - price) for price in prices]

    def compose(self, rng, level, width, height, about, answer, extras):
        count, number = draw_num_terms(rng, level) + 1, PLACES.index(about[0]) + 2
        is_cheap = about[1] == "cheapest"
        price = int(answer) if is_cheap else MAX_PRICE + 1 - int(answer)
        # Those before it have prices of their own, so that there is no doubt which is which.
        before = rng.choice(np.arange(1, price), size=number - 1, replace=False)
        beyond = rng.integers(price + 1, MAX_PRICE + 1, size=count - number)
        prices = rng.permutation([price, *before, *beyond])
        prices = [int(price if is_cheap else MAX_PRICE + 1 - price) for price in prices]
        return (place_with_extras(rng, level, width, height, cast(rng, count), extras, prices),)

    def _picked(self, order, about):
        """Return the animals that are picked in turn, the last of them the one asked for; [] where that is open."""
        picked = sorted(order, key=lambda one: one[1].price, reverse=about[1] == "dearest")
        number = PLACES.index(about[0]) + 2
        prices = [animal.price for _, animal in picked[: number + 1]]
        return picked[:number] if len(picked) >= number and len(set(prices)) == len(prices) else []

    def solve(self, scenes, about):
        picked = self._picked(tagged_group(scenes[0], None, None), about)
        return str(picked[-1][1].price) if picked and str(picked[-1][1].price) in self.values else None

    def wordings(self, about):
        who = f"{about[0]} {about[1]} animal"
        return [f"What does the {who} cost?", f"What is the price of the {who}?", f"How much is the {who}?"]

    def steps(self, scenes, about):
        return tagged_group(scenes[0], None, None)

    def write(self, scenes, about, order):
        parts = (order, self._picked(order, about))
        return "; ".join(", ".join(f"{rank} {animal.price}" for rank, animal in part) for part in parts)
