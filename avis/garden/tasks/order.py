"""The task "order": what several things of a price list cost, some of them more than once."""

from avis.garden.scenes import KINDS
from avis.garden.tasks.reckoning import (
    PageTask,
    draw_names,
    draw_number,
    draw_total,
    enumerate_words,
    fill_names,
    near_numbers,
    select,
)

_MOST_OF_ONE = 3


class Order(PageTask):
    """Multiplying each price by its quantity and adding up; the number of positions follows `think`."""

    name = "order"
    looks = ("list",)

    def draw_subject_at(self, rng, level, scenes=()):
        series = self.draw_series(rng, scenes)
        if series is None:
            return ()
        look, heading, entries = series
        count = draw_number(rng, level.terms)
        names = draw_names(rng, look, heading, count, entries)
        # One of them is wanted once, so that every total can be had.
        once = int(rng.integers(count))
        quantities = [1 if n == once else draw_number(rng, (1, _MOST_OF_ONE)) for n in range(count)]
        return (look, heading, names, tuple(quantities)) if names else ()

    def answers(self, level, about):
        least = _MOST_OF_ONE * (level.terms[1] - 1) + 1
        return [str(total) for total in range(least, level.terms[0] * self.most + 1)]

    def compose(self, rng, level, width, height, about, answer, extras):
        named, quantities = about[2:]
        prices = dict.fromkeys(named, 0)
        rest, left = int(answer), sum(quantities)
        for quantity, name in sorted(zip(quantities, named, strict=True), reverse=True):
            left -= quantity
            feasible = [p for p in range(1, self.most + 1) if left <= rest - quantity * p <= self.most * left]
            prices[name] = int(rng.choice(feasible))
            rest -= quantity * prices[name]
        total = draw_total(rng, about, named)
        values = [*prices.values(), *(draw_number(rng, (1, self.most)) for _ in range(total - len(named)))]
        return self.set_page(rng, level, width, height, about, fill_names(rng, about, named, total), values, len(named))

    def terms(self, scenes, about):
        entries = self.entries(scenes, about)
        return select(entries, about[2]) if entries else []

    def solve(self, scenes, about):
        terms = self.terms(scenes, about)
        return str(sum(_quantity(entry.name, about) * entry.value for entry in terms)) if terms else None

    def wordings(self, about):
        positions = []
        for name, quantity in zip(*about[2:], strict=True):
            noun = f"{name}s" if name in KINDS and quantity > 1 else name
            positions.append(f"{quantity} {noun}" if name in KINDS else f"{quantity} of {name}")
        listed = enumerate_words(positions)
        return [
            f"What do {listed} cost?",
            f"What is the total of an order of {listed}?",
            f"Look up the prices of {listed}: what do they cost together?",
        ]

    def tell(self, about, terms):
        total, steps = 0, []
        for entry in terms:
            quantity = _quantity(entry.name, about)
            total += quantity * entry.value
            steps.append(f"{entry.number} {quantity} {entry.value} {quantity * entry.value} {total}")
        return ", ".join(steps)

    def near_answers(self, scenes, about):
        return near_numbers(self.solve(scenes, about))


def _quantity(name: str, about: tuple) -> int:
    """Return how many of a name are ordered."""
    return about[3][about[2].index(name)]
