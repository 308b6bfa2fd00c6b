"""The task "total": what a group of animals costs, tag by tag in any order."""

from avis.garden.scenes import KINDS, MAX_ANIMALS, MAX_PRICE, WEARS
from avis.garden.tasks.base import draw_pairs
from avis.garden.tasks.extras import place_with_extras
from avis.garden.tasks.steps import (
    OrderedTask,
    describe_group,
    draw_group,
    draw_num_terms,
    draw_terms,
    near_totals,
    tagged_group,
    totals_at,
)


def place_group(rng, level, width, height, group, total, extras):
    """Return a scene in which the tags of a group add up to `total`; others, where the group is not all, have tags too.

    Args:
        rng: the item's generator.
        level: of difficulty; `level.terms` is the size of the group.
        width: of the scene in pixels.
        height: of the scene in pixels.
        group: kind and wear; None for any.
        total: of the group's tags.
        extras: whether there is a sign.
    """
    count = draw_num_terms(rng, level)
    others = 0 if group == (None, None) else min(int(rng.integers(1, 4)), MAX_ANIMALS - count)
    kind, wears = group
    pairs = draw_pairs(rng, kind, wears, count, count + others)
    terms = draw_terms(rng, count, total)
    is_asked = [kind in (None, own) and wears in (None, worn) for own, worn in pairs]
    prices = [terms.pop() if asked else int(rng.integers(1, MAX_PRICE + 1)) for asked in is_asked]
    return place_with_extras(rng, level, width, height, pairs, extras, prices)


class Total(OrderedTask):
    """Adding up tags with a running sum."""

    name = "total"
    values = tuple(map(str, range(4, 65)))

    def draw_subject(self, rng):
        return draw_group(rng, KINDS, WEARS)

    def answers(self, level, about):
        return [str(total) for total in totals_at(*level.terms)]

    def compose(self, rng, level, width, height, about, answer, extras):
        return (place_group(rng, level, width, height, about, int(answer), extras),)

    def solve(self, scenes, about):
        total = str(sum(animal.price for _, animal in tagged_group(scenes[0], *about)))
        return total if total in self.values else None

    def wordings(self, about):
        who = describe_group(*about)
        return [
            f"What do you pay for {who} together?",
            f"What is the total of the tags of {who}?",
            f"How much are {who} in all?",
        ]

    def near_answers(self, scenes, about):
        tags = [animal.price for _, animal in tagged_group(scenes[0], *about)]
        return [str(total) for total in near_totals(sum(tags), tags)]

    def steps(self, scenes, about):
        return tagged_group(scenes[0], *about)

    def write(self, scenes, about, order):
        total, found = 0, []
        for rank, animal in order:
            total += animal.price
            found.append(f"{rank} {animal.price} {total}")
        return ", ".join(found)
