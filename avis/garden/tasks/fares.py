"""The task "fares": what the tags of the animals that pass in a video add up to."""

from dataclasses import replace

from avis.garden.placement import PATCH, cast, draw_between, snap_tag
from avis.garden.scenes import MAX_PRICE, MAX_STEPS, TONES, Animal
from avis.garden.tasks.steps import OrderedTask, draw_num_terms, draw_terms, near_totals, totals_at
from avis.garden.tasks.videos import SECOND_SPAN, as_video, place_for_video, seen_places, step_times

LANES = 3  # animals that are in view at once walk in lanes of their own
MOST = MAX_STEPS - 2  # of them: each stands in view for one time step, and comes and goes in the ones beside it
SIDES = ("left", "right")


class Fares(OrderedTask):
    """Adding up the tags of those that cross the scene, in any order; others turn back.

    A subject is the side from which they come, or None for both. Each animal stands still for one time step, by which
    it is named in a trace.
    """

    name = "fares"
    medium = "video"
    values = tuple(map(str, range(4, 65)))

    def draw_subject(self, rng):
        return (None if rng.random() < 0.5 else str(rng.choice(SIDES)),)

    def answers(self, level, about):
        least, most = level.terms
        return [str(total) for total in totals_at(least, min(most, MOST))]

    def compose(self, rng, level, width, height, about, answer, extras):
        count = min(draw_num_terms(rng, level), MOST)
        others = min(int(rng.integers(0, 3)), MOST - count)
        fares = draw_terms(rng, count, int(answer)) + [int(rng.integers(1, MAX_PRICE + 1)) for _ in range(others)]
        scene = as_video(place_for_video(rng, level, width, height, []), float(count + others + 2))
        crossings = [self._draw_crossing(rng, about[0], number < count) for number in range(count + others)]
        animals = []
        for step, number in enumerate(rng.permutation(count + others), start=1):
            size = min(SECOND_SPAN * draw_between(rng, level.size), 0.95 * height / LANES)
            room = (height / LANES - size) / 2
            y = (step % LANES + 0.5) * height / LANES + draw_between(rng, (-room, room))
            middle = draw_between(rng, (0.3 * width, 0.7 * width))
            if level.is_readable:
                middle, y = snap_tag(level, middle, y, size)
                y += PATCH * ((y < size / 2) - (y > height - size / 2))
            animal = self._draw_animal(rng, level, size, fares[number], y)
            animals.append(self._with_track(scene, animal, crossings[number], step, middle))
        return (replace(scene, animals=tuple(sorted(animals, key=lambda animal: animal.x))),)

    def _draw_crossing(self, rng, side, is_asked):
        """Draw from which side an animal comes and to which one it goes."""
        ways = [(one, other) for one in SIDES for other in SIDES]
        asked = [(one, other) for one, other in ways if one != other and side in (None, one)]
        pool = asked if is_asked else [way for way in ways if way not in asked]
        return pool[int(rng.integers(len(pool)))]

    def _draw_animal(self, rng, level, size, fare, y):
        """Return an animal of that size and fare, wherever it will walk."""
        ((kind, wears),) = cast(rng, 1)
        return Animal(
            kind=kind,
            wears=wears,
            tone=str(rng.choice(TONES)),
            x=0.0,
            y=y,
            size=size,
            flip=False,
            tilt=draw_between(rng, (-6, 6)),
            colour=int(rng.integers(4)),
            price=fare,
            tag=level.tag,
        )

    def _with_track(self, scene, animal, crossing, step, middle):
        """Return the animal on its way: it comes in the step before (from 0), stands, and goes in the one after."""
        times, out = step_times(scene), 0.45 * animal.size
        begin, end = ({"left": -out, "right": scene.width + out}[side] for side in crossing)
        (come, _), (first, last), (_, gone) = times[step - 1 : step + 2]
        track = ((come, begin, animal.y), (first, middle, animal.y), (last, middle, animal.y), (gone, end, animal.y))
        return replace(animal, x=begin, flip=crossing[0] == "right", track=track)

    def _passing(self, scene, side):
        """Return (time step at which it stands, animal) of those that cross; [] where that is not clear."""
        found = []
        for animal in scene.animals if scene.seconds else ():
            ends = [animal.track[0][1], animal.track[-1][1]] if animal.track else [0.0, 0.0]
            if min(ends) >= 0 or max(ends) <= scene.width or side == SIDES[ends[0] < 0]:
                continue
            shown = seen_places(scene, animal)[:, :, 0]
            stands = [step for step, (x, later) in enumerate(shown, start=1) if x == later and 0 < x < scene.width]
            found += [(step, animal) for step in stands[:1]] if len(stands) == 1 and animal.price else [(0, animal)]
        steps = [step for step, _ in found]
        return sorted(found, key=lambda one: one[0]) if len(set(steps)) == len(steps) and 0 not in steps else []

    def solve(self, scenes, about):
        passing = self._passing(scenes[0], about[0])
        total = str(sum(animal.price for _, animal in passing))
        return total if len(passing) > 1 and total in self.values else None

    def wordings(self, about):
        (side,) = about
        who = "the animals that cross the picture"
        if side:
            who += f" from {side} to {SIDES[side == 'left']}"
        return [
            f"Each tag is a fare. What do {who} pay together?",
            f"What is the total of the tags of {who}?",
            f"Add up the fares of {who}.",
        ]

    def near_answers(self, scenes, about):
        fares = [animal.price for _, animal in self._passing(scenes[0], about[0])]
        return [str(total) for total in near_totals(sum(fares), fares)]

    def steps(self, scenes, about):
        return self._passing(scenes[0], about[0])

    def write(self, scenes, about, order):
        total, found = 0, []
        for step, animal in order:
            total += animal.price
            found.append(f"{step} {animal.price} {total}")
        return ", ".join(found)
