"""The task "displacement": how many steps further in a direction an animal of a video ends than it began."""

from dataclasses import replace

import numpy as np

from avis.garden.placement import cast, draw_between
from avis.garden.scenes import KINDS, MAX_STEPS, MOVES
from avis.garden.tasks.base import find_only, kinds_except
from avis.garden.tasks.steps import OrderedTask, draw_num_terms
from avis.garden.tasks.videos import as_video, place_for_video, seen_places, step_times

WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
BACK = {"left": "right", "right": "left", "up": "down", "down": "up"}
STRIDE = 0.45  # an animal's step, as a share of its height


class Displacement(OrderedTask):
    """Adding up moves in any order: those that go on in the direction, and those that go back.

    An animal makes at most one move in a time step of the video, between its two frames.
    """

    name = "displacement"
    medium = "video"
    values = tuple(map(str, range(9)))

    def draw_subject(self, rng):
        return str(rng.choice(KINDS)), str(rng.choice(MOVES))

    def answers(self, level, about):
        return [str(steps) for steps in range(level.terms[0] + 1)]

    def compose(self, rng, level, width, height, about, answer, extras):
        kind, direction = about
        count = draw_num_terms(rng, level)
        seconds = min(count + int(rng.integers(1, 3)), MAX_STEPS)
        pairs = [(str(rng.choice(kinds_except([kind]))), wears) for _, wears in cast(rng, 2 + level.think // 3)]
        pairs[0] = (kind, pairs[0][1])
        scene = as_video(place_for_video(rng, level, width, height, pairs), float(seconds))
        ways = []
        for animal in scene.animals:
            moves = self._draw_moves(rng, count, direction, int(answer))
            if animal.kind != kind:
                moves = [str(move) for move in rng.choice(MOVES, size=int(rng.integers(0, 4)))]
            steps = sorted(rng.choice(seconds, size=min(len(moves), seconds), replace=False).tolist())
            ways.append(dict(zip(steps, moves, strict=False)))
        return (replace(scene, animals=tuple(self._set_going(rng, scene, ways))),)

    def _draw_moves(self, rng, count, direction, steps):
        """Draw `count` moves of which `steps` more go in the direction than back."""
        along = int(rng.choice(range(steps, count + 1, 2)))
        across = [move for move in MOVES if move not in (direction, BACK[direction])]
        moves = [direction] * ((along + steps) // 2) + [BACK[direction]] * ((along - steps) // 2)
        moves += [str(rng.choice(across)) for _ in range(count - along)]
        return [moves[i] for i in rng.permutation(count)]

    def _set_going(self, rng, scene, ways):
        """Return the animals on their ways, {time step: move}, none of which crosses another one's."""
        sizes = [animal.size for animal in scene.animals]
        while True:
            boxes: list[tuple[float, float, float, float]] = []
            going = []
            for animal, size, way in zip(scene.animals, sizes, ways, strict=True):
                for _ in range(40):
                    moved = self._draw_track(rng, scene, replace(animal, size=size), way)
                    if moved is None:
                        break
                    (xs, ys), half_w, half_h = list(zip(*moved.track, strict=True))[1:], 0.375 * size, 0.5 * size
                    box = (min(xs) - half_w, min(ys) - half_h, max(xs) + half_w, max(ys) + half_h)
                    if all(box[2] < b[0] or b[2] < box[0] or box[3] < b[1] or b[3] < box[1] for b in boxes):
                        boxes.append(box)
                        going.append(moved)
                        break
            if len(going) == len(ways):
                return sorted(going, key=lambda animal: animal.x)
            sizes = [0.93 * size for size in sizes]

    def _draw_track(self, rng, scene, animal, way):
        """Return the animal somewhere in the image with a track; None when its way is too long."""
        x = y = 0.0
        track = [(0.0, x, y)]
        for step, (first, last) in enumerate(step_times(scene)):
            if step in way:
                dx, dy = (STRIDE * animal.size * part for part in WAYS[way[step]])
                track += [(first, x, y), (last, x + dx, y + dy)]
                x, y = x + dx, y + dy
        ends = []
        for side, half, places in (
            (scene.width, 0.375 * animal.size, [x for _, x, _ in track]),
            (scene.height, 0.5 * animal.size, [y for *_, y in track]),
        ):
            least, most = half - min(places), side - half - max(places)
            if least > most:
                return None
            ends.append(draw_between(rng, (least, most)))
        points = {time: (time, ends[0] + x, ends[1] + y) for time, x, y in track}
        return replace(animal, x=ends[0], y=ends[1], track=tuple(points.values()))

    def _moves(self, scene, kind):
        """Return {time step: move} of the only animal of a kind; {} when it moves otherwise than in equal steps."""
        animal = find_only(scene, kind)
        if not scene.seconds or animal is None or not animal.track or animal.hops:
            return {}
        places = seen_places(scene, animal)
        steps = (places[:, 1] - places[:, 0]) / (STRIDE * animal.size)
        whole = steps.round().astype(int)
        is_even = np.abs(steps - whole).max() < 0.01 and np.abs(whole).sum(axis=1).max() <= 1
        if not is_even or (places[1:, 0] != places[:-1, 1]).any():  # or it moves between two steps
            return {}
        names = {way: move for move, way in WAYS.items()}
        return {step: names[tuple(way)] for step, way in enumerate(whole.tolist(), start=1) if any(way)}

    def solve(self, scenes, about):
        moves = list(self._moves(scenes[0], about[0]).values())
        steps = str(moves.count(about[1]) - moves.count(BACK[about[1]]))
        return steps if moves and steps in self.values else None

    def wordings(self, about):
        kind, direction = about
        where = f"to the {direction}" if direction in ("left", "right") else direction
        return [
            f"The {kind} takes equal steps. How many steps further {where} is it at the end?",
            f"Count the steps of the {kind}: how many more go {direction} than {BACK[direction]}?",
            f"By how many of its steps has the {kind} moved {where} in all?",
        ]

    def steps(self, scenes, about):
        return list(self._moves(scenes[0], about[0]).items())

    def write(self, scenes, about, order):
        counts, found = [0, 0], []
        for step, move in order:
            counts = [counts[0] + (move == about[1]), counts[1] + (move == BACK[about[1]])]
            found.append(f"{step} {move} {counts[0]} {counts[1]}")
        return ", ".join(found)
