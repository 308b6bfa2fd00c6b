"""The task "changed": which animal of a video changes what it wears."""

from dataclasses import replace

from avis.garden.scenes import KINDS, WEARS
from avis.garden.tasks.base import Task
from avis.garden.tasks.videos import as_video, place_for_video


class Changed(Task):
    """Change over time: all stand still, and one of them suddenly wears something else."""

    name = "changed"
    medium = "video"
    values = KINDS

    def compose(self, rng, level, width, height, about, answer, extras):
        count = (2, 3, 4, 4, 4)[level.crowd - 1]
        rest = [str(kind) for kind in rng.permutation([kind for kind in KINDS if kind != answer])]
        pairs = [(kind, str(rng.choice(WEARS))) for kind in [answer] + rest[: count - 1]]
        scene = as_video(place_for_video(rng, level, width, height, pairs), float(rng.integers(3, 8)))
        when = scene.seconds * float(rng.uniform(0.3, 0.7))
        animals = []
        for animal in scene.animals:
            if animal.kind == answer:
                later = str(rng.choice([wears for wears in WEARS if wears != animal.wears]))
                animal = replace(animal, later=later, changes=when)
            animals.append(animal)
        return (replace(scene, animals=tuple(animals)),)

    def solve(self, scenes, about):
        changing = [animal.kind for animal in scenes[0].animals if animal.later]
        return changing[0] if len(changing) == 1 else None

    def wordings(self, about):
        return [
            "Which animal changes what it wears?",
            "Whose clothes are not the same at the end?",
            "One animal wears something else at the end. Which one?",
        ]

    def traces(self, scenes, about):
        found = []
        for word, animals in (("left", scenes[0].from_left()), ("top", scenes[0].from_top())):
            steps = []
            for number, animal in enumerate(animals, start=1):
                steps.append(f"{number} {animal.kind} {animal.wears} {animal.later or animal.wears}")
                if animal.later:
                    break
            found.append(f"{word}: {', '.join(steps)}")
        return found
