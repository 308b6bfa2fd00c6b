"""The task "afford": how many animals can be bought for a sum, the cheapest first."""

from avis.garden.placement import cast
from avis.garden.scenes import MAX_PRICE
from avis.garden.tasks.extras import place_with_extras
from avis.garden.tasks.steps import OrderedTask, draw_num_terms, draw_terms, tagged_group

SUMS = tuple(range(MAX_PRICE, 16))  # for each of them, one animal can always be bought, and any number may be the most


class Afford(OrderedTask):
    """Reading all tags in any order, then adding up the least ones until the sum is spent."""

    name = "afford"
    values = tuple(map(str, range(1, 10)))

    def draw_subject(self, rng):
        return (int(rng.choice(SUMS)),)

    def answers(self, level, about):
        return [str(count) for count in range(1, level.terms[0] + 2)]

    def compose(self, rng, level, width, height, about, answer, extras):
        prices = self._draw_prices(rng, draw_num_terms(rng, level) + 1, int(answer), about[0])
        return (place_with_extras(rng, level, width, height, cast(rng, len(prices)), extras, prices),)

    def _draw_prices(self, rng, count, bought, paid):
        """Draw `count` prices of which exactly the `bought` least can be paid."""
        least = bought if bought == count else max(bought, paid + 1 - MAX_PRICE)
        spent = int(rng.integers(least, min(paid, bought * MAX_PRICE) + 1))
        cheap = draw_terms(rng, bought, spent)
        above = max(*cheap, paid - spent + 1)
        prices = cheap + [int(rng.integers(above, MAX_PRICE + 1)) for _ in range(count - bought)]
        return [prices[i] for i in rng.permutation(count)]

    def solve(self, scenes, about):
        left, bought = about[0], 0
        for _, animal in sorted(tagged_group(scenes[0], None, None), key=lambda one: one[1].price):
            left -= animal.price
            bought += left >= 0
        return str(bought) if str(bought) in self.values else None

    def wordings(self, about):
        return [
            f"You have {about[0]} and buy the cheapest animals first. How many can you buy?",
            f"How many of the cheapest animals can be bought for {about[0]}?",
            f"What is the largest number of animals that {about[0]} can pay for?",
        ]

    def steps(self, scenes, about):
        return tagged_group(scenes[0], None, None)

    def write(self, scenes, about, order):
        spent, found = 0, []
        for rank, animal in sorted(order, key=lambda one: one[1].price):
            spent += animal.price
            found.append(f"{rank} {animal.price} {spent}")
            if spent > about[0]:
                break
        return f"{', '.join(f'{rank} {animal.price}' for rank, animal in order)}; {', '.join(found)}"
