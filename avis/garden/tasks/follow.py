"""The task "follow": tags that send from animal to animal, until one of a kind is reached."""

from dataclasses import replace

from avis.garden.scenes import KINDS, MAX_ANIMALS, MAX_PRICE, WEARS
from avis.garden.tasks.base import kinds_except
from avis.garden.tasks.extras import place_with_extras
from avis.garden.tasks.steps import OrderedTask, draw_num_terms, ranked

STARTS = ("leftmost", "rightmost")
LONGEST = MAX_PRICE - 1  # links of a way: its animals are the ones whose places a tag can name


class Follow(OrderedTask):
    """Following links: each tag is the place, from the left, of the animal to go to next.

    The way ends at the first animal of a kind; others of that kind stand beside the way. A subject is (where the way
    begins, the kind).
    """

    name = "follow"
    values = tuple(map(str, range(1, MAX_PRICE + 1)))

    def draw_subject(self, rng):
        return str(rng.choice(STARTS)), str(rng.choice(KINDS))

    def answers(self, level, about):
        least = 2 if about[0] == "leftmost" else 1
        return [str(place) for place in range(least, min(least + level.terms[0], MAX_PRICE) + 1)]

    def compose(self, rng, level, width, height, about, answer, extras):
        start, kind = about
        links = min(draw_num_terms(rng, level), LONGEST)
        count = min(links + 2 + int(rng.integers(0, 2)), MAX_ANIMALS)
        way = self._draw_way(rng, count, links, 1 if start == "leftmost" else count, int(answer))
        reach = range(1, min(count, MAX_PRICE) + 1)
        tags = [int(rng.choice([place for place in reach if place != own])) for own in range(1, count + 1)]
        for here, there in zip(way, way[1:]):
            tags[here - 1] = there
        beside = [place for place in range(1, count + 1) if place not in way]
        kinds = [str(rng.choice(KINDS)) for _ in range(count)]
        for place in way[:-1]:
            kinds[place - 1] = str(rng.choice(kinds_except([kind])))
        kinds[way[-1] - 1] = kinds[int(rng.choice(beside)) - 1] = kind
        wears = [str(rng.choice(WEARS)) for _ in range(count)]
        scene = place_with_extras(rng, level, width, height, list(zip(kinds, wears)), extras, [1] * count)
        animals = [
            replace(animal, kind=kinds[n], wears=wears[n], price=tags[n]) for n, animal in enumerate(scene.from_left())
        ]
        return (replace(scene, animals=tuple(animals)),)

    def _draw_way(self, rng, count, links, start, end):
        """Draw the places of a way, none twice, all but the first within reach of a tag."""
        places = [place for place in range(1, min(count, MAX_PRICE) + 1) if place not in (start, end)]
        between = [int(place) for place in rng.permutation(places)]
        return [start, *between[: links - 1], end]

    def _way(self, scene, about):
        """Return the animals on the way with their places; [] where it does not end, or begins at its end."""
        animals = ranked(scene)
        way = [animals[0 if about[0] == "leftmost" else -1]]
        while way[-1][1].kind != about[1]:
            tag = way[-1][1].price
            if not 1 <= tag <= len(animals) or animals[tag - 1] in way:
                return []
            way.append(animals[tag - 1])
        return way if len(way) > 1 else []

    def solve(self, scenes, about):
        way = self._way(scenes[0], about)
        place = str(way[-1][0]) if way else None
        return place if place in self.values else None

    def wordings(self, about):
        start, kind = about
        rule = "Each tag gives the place, from the left, of the next animal."
        what = f"What is the place of the first {kind} that you reach?"
        return [
            f"{rule} Start at the {start} animal. {what}",
            f"{rule} Follow the tags from the {start} animal. {what}",
            f"Go from the {start} animal to the place, from the left, on its tag, and on in the same way. {what}",
        ]

    def steps(self, scenes, about):
        return [one for one in ranked(scenes[0]) if one[1].price]

    def write(self, scenes, about, order):
        *way, (last, animal) = self._way(scenes[0], about)
        found = [f"{rank} {one.kind} {one.price}" for rank, one in way] + [f"{last} {animal.kind}"]
        return f"{', '.join(f'{rank} {one.price}' for rank, one in order)}; {', '.join(found)}"
