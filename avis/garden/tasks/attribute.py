"""The task "attribute": what the animal at a place wears."""

from dataclasses import replace

from avis.garden.placement import cast
from avis.garden.scenes import WEARS
from avis.garden.tasks.base import NUMBERS, Task, draw_count
from avis.garden.tasks.extras import place_with_extras


class Attribute(Task):
    """Attribute of the animal at a place: counted from the left or the top, or the last from there."""

    name = "attribute"
    values = WEARS

    def draw_subject(self, rng):
        return str(rng.choice(("left", "top"))), int(rng.choice((0, 1, 2, -1)))

    def _line(self, scene, about):
        return scene.from_left() if about[0] == "left" else scene.from_top()

    def compose(self, rng, level, width, height, about, answer, extras):
        scene = place_with_extras(rng, level, width, height, cast(rng, draw_count(rng, level, 3)), extras)
        chosen = self._line(scene, about)[about[1]]
        animals = tuple(replace(a, wears=answer) if a is chosen else a for a in scene.animals)
        return (replace(scene, animals=animals),)

    def solve(self, scenes, about):
        line = self._line(scenes[0], about)
        return line[about[1]].wears if len(line) > max(0, about[1]) else None

    def wordings(self, about):
        side, number = about
        place = {-1: {"left": "rightmost", "top": "lowest"}, 0: {"left": "leftmost", "top": "topmost"}}.get(number, {})
        who = f"{place[side]} animal" if place else f"{NUMBERS[number]} animal from the {side}"
        return [f"What does the {who} wear?", f"What is the {who} wearing?", f"Look at the {who}: what does it wear?"]

    def traces(self, scenes, about):
        line = self._line(scenes[0], about)
        steps = [f"{n} {a.kind} {a.wears}" for n, a in enumerate(line, start=1)]
        last = len(line) if about[1] == -1 else about[1] + 1
        return [f"{about[0]}: {', '.join(steps[:last])}", f"{about[0]}: {steps[last - 1]}"]
