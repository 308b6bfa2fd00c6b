"""The task "read": what a sign says, the garden's DocVQA."""

from avis.garden.placement import cast
from avis.garden.scenes import GLYPHS
from avis.garden.tasks.base import Task, draw_count
from avis.garden.tasks.extras import draw_sign_text, place_with_extras


class Read(Task):
    """Reading a sign with letters and digits."""

    name = "read"

    def draw_answer(self, rng, level, about):
        return draw_sign_text(rng, level)

    def compose(self, rng, level, width, height, about, answer, extras):
        return (place_with_extras(rng, level, width, height, cast(rng, draw_count(rng, level)), extras, text=answer),)

    def solve(self, scenes, about):
        return scenes[0].sign.text if scenes[0].sign else None

    def wordings(self, about):
        return ["What is written on the sign?", "What does the sign say?", "Read the sign."]

    def traces(self, scenes, about):
        text = scenes[0].sign.text
        return [", ".join(f"{n} {letter}" for n, letter in enumerate(text, start=1)), " ".join(text)]

    def draw_options(self, rng, answer, among):
        # Two places with two letters each, in all four combinations: none of the four is the middle of the others.
        first, second = sorted(int(i) for i in rng.choice(len(answer), size=2, replace=False))
        swaps = {i: [answer[i], str(rng.choice([g for g in GLYPHS if g != answer[i]]))] for i in (first, second)}
        chosen = [
            answer[:first] + one + answer[first + 1 : second] + two + answer[second + 1 :]
            for one in swaps[first]
            for two in swaps[second]
        ]
        return [chosen[i] for i in rng.permutation(4)]
