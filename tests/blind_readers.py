"""Readers that answer questions without looking, to show that questions do not reveal their answers."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from garden_reading import LETTERS, stem

from avis.garden.tasks import Item


@dataclass(frozen=True)
class Asked:
    """A question with its answer, and what a glance at its image tells."""

    stem: str
    options: tuple[str, ...]
    value: str
    answer: str
    level: int
    size: tuple[int, int] = (0, 0)
    background: str = ""
    fullness: float = 0.0


def what_is_asked(item: Item) -> tuple:
    """The first fields of `Asked`."""
    return stem(item), item.options, item.value, item.answer, item.level


def assert_even(seen: Counter, expected: tuple | str, total: int):
    """Each share lies within five standard errors of an even draw: odds of 6e-7 against a fair one."""
    even = 1 / len(expected)
    allowed = 5 * (total * even * (1 - even)) ** 0.5
    assert set(seen) == set(expected)
    assert all(abs(n - total * even) < allowed for n in seen.values()), seen


def words_of(row: Asked) -> set[str]:
    """What a blind reader of a free question goes by: its words, its pairs of words, and the whole of it."""
    words = re.findall(r"\w+", row.stem.lower())
    return {*words, *zip(words, words[1:], strict=False), row.stem}


def option_marks(row: Asked) -> list[set]:
    """What tells a blind reader one option from the others: words, letter, rank among them, and likeness to them."""
    words = words_of(row)
    key = (lambda o: int(o)) if all(o.isdigit() for o in row.options) else str
    ranks = sorted(row.options, key=key)
    alike = [
        sum(a == b for other in row.options for a, b in zip(option, other, strict=False)) for option in row.options
    ]
    marks = []
    for letter, option, like in zip(LETTERS, row.options, alike, strict=False):
        own = {("letter", letter), ("value", option), ("rank", ranks.index(option)), ("like", like == max(alike))}
        own |= {("rank", ranks.index(option), word) for word in words}  # as "cheapest" with the least
        marks.append(own | {(option, word) for word in words} | {(option, other) for other in row.options})
    return marks


def log_odds(bags: list[set], right: list[bool]) -> tuple[dict, float]:
    """Naive Bayes of two classes: what each mark adds for the class `right`, and what its absence leaves."""
    yes, no = Counter(), Counter()
    for bag, is_right in zip(bags, right, strict=True):
        (yes if is_right else no).update(bag)
    count, total = sum(right), len(right)
    weights = {m: math.log((yes[m] + 1) / (count + 2)) - math.log((no[m] + 1) / (total - count + 2)) for m in yes | no}
    return weights, math.log((count + 1) / (total - count + 1))


def score(bag: set, weights: dict, prior: float) -> float:
    return prior + sum(weights.get(mark, 0.0) for mark in bag)


def commonest(rows: Sequence[Asked], key) -> dict:
    """The most common answer to each question text, or whatever `key` makes of a question."""
    answers = defaultdict(Counter)
    for row in rows:
        answers[key(row)][row.answer] += 1
    return {text: seen.most_common(1)[0][0] for text, seen in answers.items()}


def assert_blind_readers_fail(learnt: Sequence[Asked], tested: Sequence[Asked]):
    """Blind readers learn from some questions and are tested on others: a naive Bayes over the question's words (for
    multiple choice: over each option's marks), and the most common answer to each text. None may beat the best
    constant guess by more than 2 points and three standard errors of a share of the tested questions."""
    choice = bool(tested[0].options)
    constant = Counter(row.answer for row in tested).most_common(1)[0][1] / len(tested)
    if choice:
        marks = [(mark, row.options[n] == row.value) for row in learnt for n, mark in enumerate(option_marks(row))]
        model = log_odds([mark for mark, _ in marks], [right for _, right in marks])
        guesses = []
        for row in tested:
            scores = [score(mark, *model) for mark in option_marks(row)]
            guesses.append(LETTERS[scores.index(max(scores))])
    else:
        bags = [words_of(row) for row in learnt]
        values = Counter(row.value for row in learnt).most_common(50)  # of signs hardly one comes twice
        models = {value: log_odds(bags, [row.value == value for row in learnt]) for value, _ in values}
        guesses = [max(models, key=lambda v: score(words_of(row), *models[v])) for row in tested]
    readers = {"bayes": guesses}
    for name, key in (("stem", lambda row: row.stem), ("text", lambda row: (row.stem, row.options))):
        answers = commonest(learnt, key)
        readers[name] = [answers.get(key(row), "") for row in tested]
    allowed = constant + 0.02 + 3 * (max(constant, 0.01) * (1 - constant) / len(tested)) ** 0.5
    for name, answers in readers.items():
        blind = sum(guess == row.answer for guess, row in zip(answers, tested, strict=True)) / len(tested)
        assert blind <= allowed, f"{name}: {blind:.3f} blind, {constant:.3f} constant, {allowed:.3f} allowed"
