"""The task "motion": in which direction an animal of a video moves."""

from dataclasses import replace

from avis.garden.placement import cast
from avis.garden.scenes import KINDS, MOVES
from avis.garden.tasks.base import Task, find_only, kinds_except
from avis.garden.tasks.videos import as_video, place_for_video


class Motion(Task):
    """Direction of motion: the others stand still at first levels, and move about at later ones."""

    name = "motion"
    medium = "video"
    values = MOVES

    def draw_subject(self, rng):
        return (str(rng.choice(KINDS)),)

    def compose(self, rng, level, width, height, about, answer, extras):
        count = min(5, 1 + level.crowd)
        pairs = [(str(rng.choice(kinds_except(about))), wears) for _, wears in cast(rng, count)]
        pairs[0] = (about[0], pairs[0][1])
        scene = as_video(place_for_video(rng, level, width, height, pairs), float(rng.integers(2, 7)))
        animals = []
        for animal in scene.animals:
            if animal.kind == about[0]:
                animals.append(self._moved(rng, level, scene, animal, answer))
            elif level.crowd > 2 and rng.random() < 0.7:
                animals.append(self._moved(rng, level, scene, animal, str(rng.choice(MOVES))))
            else:
                animals.append(animal)
        return (replace(scene, animals=tuple(animals)),)

    def _moved(self, rng, level, scene, animal, direction):
        """Return the animal on its way: for the whole video at first levels, for a part of it at later ones."""
        across = direction in ("left", "right")
        room = scene.width if across else scene.height
        margin = (0.375 if across else 0.5) * animal.size
        far = min(room - 2 * margin, room * (0.75, 0.65, 0.5, 0.35, 0.22)[level.number - 1])
        start = margin + float(rng.uniform(0, max(0.0, room - 2 * margin - far)))
        ends = (start + far, start) if direction in ("left", "up") else (start, start + far)
        going = scene.seconds * (1.0, 1.0, 0.8, 0.65, 0.5)[level.number - 1]
        begin = float(rng.uniform(0, scene.seconds - going))
        points = [(end, animal.y) if across else (animal.x, end) for end in ends]
        (x0, y0), (x1, y1) = points
        return replace(animal, track=((begin, x0, y0), (begin + going, x1, y1)), x=x0, y=y0)

    def solve(self, scenes, about):
        animal = find_only(scenes[0], about[0])
        if not scenes[0].seconds or animal is None or len(animal.track) != 2 or animal.hops:
            return None
        (_, x0, y0), (_, x1, y1) = animal.track
        if abs(x1 - x0) > abs(y1 - y0):
            return "left" if x1 < x0 else "right"
        return "up" if y1 < y0 else "down"

    def wordings(self, about):
        kind = about[0]
        return [
            f"In which direction does the {kind} move?",
            f"Which way does the {kind} go?",
            f"Where is the {kind} going: left, right, up or down?",
        ]

    def traces(self, scenes, about):
        scene, kind = scenes[0], about[0]
        seen = scene.at(0.0).from_left()
        move = self.solve(scenes, about)
        number = next(n for n, animal in enumerate(seen, start=1) if animal.kind == kind)
        return [f"{kind} {move}", f"left: {number} {kind} {move}"]
