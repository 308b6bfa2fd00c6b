"""The task "word": one of the words that stand on a page."""

from avis.garden.scenes import GLYPHS, TOKEN
from avis.garden.tasks.read import Read
from avis.garden.tasks.reckoning import draw_number, most_think
from avis.garden.typesetting import most_entries, set_sign


class Word(Read):
    """Finding a word by its number and spelling it, with the options of `Read`; how many there are follows `think`."""

    name = "word"
    is_alone = True

    def most_think(self, columns, rows):
        return most_think(("sign",), columns, rows)

    def draw_subject_at(self, rng, level, scenes=()):
        return (draw_number(rng, (1, level.terms[0] + 1)),)

    def draw_answer(self, rng, level, about):
        return _draw_word(rng)

    def compose(self, rng, level, width, height, about, answer, extras):
        room = most_entries("sign", width // TOKEN, height // TOKEN)
        count = max(about[0], min(room, draw_number(rng, level.terms) + 1))
        words = [_draw_word(rng) for _ in range(count)]
        words[about[0] - 1] = answer
        return (set_sign(rng, level, width, height, words),)

    def solve(self, scenes, about):
        page = scenes[0].page
        words = {cell.row: cell.text for cell in page.cells if cell.column} if page and page.look == "sign" else {}
        return words.get(about[0])

    def wordings(self, about):
        return [f"What is word {about[0]}?", f"What does word {about[0]} say?", f"Read word {about[0]}."]

    def traces(self, scenes, about):
        text = self.solve(scenes, about)
        return [", ".join(f"{n} {letter}" for n, letter in enumerate(text, start=1)), " ".join(text)]


def _draw_word(rng) -> str:
    """Draw a word of two to four letters and digits, each evenly."""
    return "".join(rng.choice(list(GLYPHS), size=draw_number(rng, (2, 4))))
