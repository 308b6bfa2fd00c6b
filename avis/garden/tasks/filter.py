"""The task "filter": how many animals meet conditions joined by and, or, not."""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

from avis.garden.scenes import KINDS, MAX_ANIMALS, MAX_PRICE, WEARS
from avis.garden.tasks.base import WORN, pluralize
from avis.garden.tasks.extras import place_with_extras
from avis.garden.tasks.steps import OrderedTask, draw_num_terms, ranked


class Form(NamedTuple):
    """One way to join conditions.

    Attributes:
        kinds: number of kinds that it names.
        wears: number of things to wear that it names.
        has_price: whether it names a price.
        words: whom it asks for; {k} and {l} are kinds, {w} and {v} are worn, {p} is a price.
        fits: whether an animal is meant that is one of the kinds, wears one of the things, costs more than the price.
    """

    kinds: int
    wears: int
    has_price: bool
    words: str
    fits: Callable[[bool, bool, bool], bool]


JOINS = (
    Form(1, 1, False, "{k} that do not wear {w}", lambda kind, worn, dear: kind and not worn),
    Form(1, 1, False, "animals that are {k} or wear {w}", lambda kind, worn, dear: kind or worn),
    Form(1, 1, False, "animals that are not {k} and do not wear {w}", lambda kind, worn, dear: not (kind or worn)),
    Form(1, 2, False, "{k} that wear {w} or {v}", lambda kind, worn, dear: kind and worn),
    Form(2, 1, False, "{k} and {l} that do not wear {w}", lambda kind, worn, dear: kind and not worn),
    Form(1, 0, True, "{k} that do not cost more than {p}", lambda kind, worn, dear: kind and not dear),
    Form(1, 0, True, "animals that are {k} or cost more than {p}", lambda kind, worn, dear: kind or dear),
    Form(0, 1, True, "animals that wear {w} and cost more than {p}", lambda kind, worn, dear: worn and dear),
)


class Filter(OrderedTask):
    """Looking at all animals in any order, with a running count of those that are meant.

    A subject has one place for each of `JOINS`, of which one holds (kinds, wears, price) and the others None.
    """

    name = "filter"
    values = tuple(map(str, range(10)))

    def draw_subject(self, rng):
        number = int(rng.integers(len(JOINS)))
        kinds, wears = (
            rng.choice(KINDS, size=JOINS[number].kinds, replace=False),
            WEARS[:-1],
        )  # "not nothing" is a riddle
        worn = rng.choice(wears, size=JOINS[number].wears, replace=False)
        price = int(rng.integers(3, 8)) if JOINS[number].has_price else 0
        subject = (tuple(map(str, kinds)), tuple(map(str, worn)), price)
        return tuple(subject if n == number else None for n in range(len(JOINS)))

    def answers(self, level, about):
        return [str(count) for count in range(level.terms[0] + 2)]

    def compose(self, rng, level, width, height, about, answer, extras):
        count = min(draw_num_terms(rng, level) + 2, MAX_ANIMALS)
        join, (kinds, wears, price) = _join_of(about)
        prices = range(1, MAX_PRICE + 1) if price or extras.prices else (0,)
        wanted: list = []
        near: list = []
        others: list = []
        for kind, worn, tag in product(KINDS, WEARS, prices):
            marks = (kind in kinds, worn in wears, bool(price) and tag > price)
            (wanted if join.fits(*marks) else near if any(marks) else others).append((kind, worn, tag))
        chosen = [wanted[int(rng.integers(len(wanted)))] for _ in range(int(answer))]
        for _ in range(count - int(answer)):
            # Half of those that are not meant meet a part of the conditions, where that is possible.
            pool = near if near and (rng.random() < 0.5 or not others) else others
            chosen.append(pool[int(rng.integers(len(pool)))])
        chosen = [chosen[i] for i in rng.permutation(count)]
        tags = [tag for *_, tag in chosen]
        pairs = [(kind, worn) for kind, worn, _ in chosen]
        return (place_with_extras(rng, level, width, height, pairs, extras, tags if any(tags) else None),)

    def solve(self, scenes, about):
        join, (kinds, wears, price) = _join_of(about)
        if price and not all(animal.price for animal in scenes[0].animals):
            return None
        found = sum(join.fits(a.kind in kinds, a.wears in wears, a.price > price) for a in scenes[0].animals)
        return str(found) if str(found) in self.values else None

    def wordings(self, about):
        join, (kinds, wears, price) = _join_of(about)
        names = dict(zip("kl", map(pluralize, kinds))) | dict(zip("wv", (WORN[one] for one in wears)))
        who = join.words.format(p=price, **names)
        return [f"How many {who} are there?", f"Count all {who}.", f"What is the number of {who}?"]

    def steps(self, scenes, about):
        return ranked(scenes[0])

    def write(self, scenes, about, order):
        join, (kinds, wears, price) = _join_of(about)
        count, found = 0, []
        for rank, animal in order:
            count += join.fits(animal.kind in kinds, animal.wears in wears, animal.price > price)
            seen = [animal.kind] * bool(kinds) + [animal.wears] * bool(wears) + [str(animal.price)] * bool(price)
            found.append(f"{rank} {' '.join(seen)} {count}")
        return ", ".join(found)


def _join_of(about: tuple) -> tuple[Form, tuple]:
    """Return how a subject joins its conditions, and their kinds, wears and price."""
    return next((join, part) for join, part in zip(JOINS, about, strict=True) if part)
