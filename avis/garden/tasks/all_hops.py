"""The task "all_hops": how many times the animals of a group hop in all."""

from dataclasses import replace

from avis.garden.placement import draw_between
from avis.garden.scenes import KINDS, MAX_ANIMALS, WEARS
from avis.garden.tasks.base import draw_pairs, matches
from avis.garden.tasks.steps import OrderedTask, describe_group, draw_group, ranked
from avis.garden.tasks.videos import SECOND_SPAN, as_video, place_for_video, step_times

AIRTIME = (0.65, 0.85)  # seconds: a hop begins and ends within one time step, whose second frame shows it
GAP = 0.02  # seconds on the ground, at least, at both ends of a step


class AllHops(OrderedTask):
    """Counting hops in any order, each by who hops and in which time step."""

    name = "all_hops"
    medium = "video"
    values = tuple(map(str, range(1, MAX_ANIMALS + 1)))

    def draw_subject(self, rng):
        return draw_group(rng, KINDS, WEARS)

    def answers(self, level, about):
        least, most = level.terms
        return [str(count) for count in range(max(1, least - 2), most + 3)]

    def compose(self, rng, level, width, height, about, answer, extras):
        kind, wears = about
        count = 2 + level.think // 2
        others = 0 if about == (None, None) else int(rng.integers(1, 3))
        pairs = draw_pairs(rng, kind, wears, count, count + others)
        # Nobody hops out of the image.
        drop = round(0.45 * SECOND_SPAN * level.size[1])
        scene = as_video(place_for_video(rng, level, width, height - drop, pairs), float(rng.integers(5, 9)))
        props = tuple(replace(prop, y=prop.y + drop) for prop in scene.props)
        animals = [replace(animal, y=animal.y + drop) for animal in scene.animals]
        last = len(step_times(scene)) - 1  # a hop in the last step would be cut off
        group = [number for number, animal in enumerate(animals) if matches(animal, kind, wears)]
        chosen = rng.choice(len(group) * last, size=int(answer), replace=False)
        hops = {number: [int(n) % last for n in chosen if group[n // last] == number] for number in group}
        for number, animal in enumerate(animals):
            steps = hops.get(number, rng.choice(last, size=int(rng.integers(0, 4)), replace=False))
            animals[number] = self._with_hops(rng, scene, animal, sorted(int(step) for step in steps))
        return (replace(scene, height=height, animals=tuple(animals), props=props),)

    def _with_hops(self, rng, scene, animal, steps):
        """Return the animal with a hop in each of these time steps."""
        begins, airtime = [first for first, _ in step_times(scene)], draw_between(rng, AIRTIME)
        free = [(begins[step] + GAP, begins[step + 1] - airtime - GAP) for step in steps]
        return replace(animal, hops=tuple(draw_between(rng, ends) for ends in free), airtime=airtime)

    def solve(self, scenes, about):
        hops = self.steps(scenes, about) if scenes[0].seconds else []
        group = [animal for animal in scenes[0].animals if matches(animal, *about)]
        is_clear = len(set(hops)) == len(hops) == sum(len(animal.hops) for animal in group)
        return str(len(hops)) if is_clear and len(group) > 1 and str(len(hops)) in self.values else None

    def wordings(self, about):
        who = describe_group(*about)
        return [
            f"How many hops do {who} make in all?",
            f"Count the hops of {who}.",
            f"How often do {who} hop, taken together?",
        ]

    def near_answers(self, scenes, about):
        hops = len(self.steps(scenes, about))
        return [str(hops + slip) for slip in (-3, -2, -1, 1, 2, 3)]

    def steps(self, scenes, about):
        """Return (place from the left, time step) of all hops that begin and end within a step."""
        times, found = step_times(scenes[0]), []
        ends = [first for first, _ in times[1:]] + [scenes[0].seconds]
        for rank, animal in ranked(scenes[0]):
            if matches(animal, *about) and not animal.track:
                for start in animal.hops:
                    for step, ((first, last), end) in enumerate(zip(times, ends, strict=True), start=1):
                        if first <= start < last < start + animal.airtime <= end:
                            found.append((rank, step))
        return found

    def write(self, scenes, about, order):
        return ", ".join(f"{rank} {step} {count}" for count, (rank, step) in enumerate(order, start=1))
