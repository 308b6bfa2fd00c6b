"""From the text of a rollout to its answer, and from the answer to its canonical form::

    >>> extract_answer("<think>a, b, c</think><answer>3 cm</answer>")
    '3 cm'
    >>> normalise_answer("3 cm") == normalise_answer("three centimetres")
    True
    >>> answers_match("dog", "(B)", question="What is it? A. cat B. dog")
    True

Plain Python, linear in the length of a text, and without exceptions whatever a model writes. Two answers are one vote
when their canonical forms are equal, so a rule that merges two spellings has to be lossless: "3 cm" is "three
centimetres" but neither "3 m" nor "3". `avis.extraction` finds answers in texts, `avis.canonical` has the rules for
their forms, `avis.choices` those for options.

The formats read are `<answer>` (R1-like models), `\\boxed{}` (mathematics models), JSON, and plain sentences.
"""

import re
from string import ascii_lowercase, ascii_uppercase

from avis.canonical import MAX_SHORT_ANSWER, canonical_answer
from avis.choices import Options, find_asked_names, find_options, name_option, options_by_letter
from avis.extraction import (
    find_boxes,
    find_conclusion,
    find_json_answer,
    find_last_line,
    find_lone_letter,
    find_phrase_value,
)

__all__ = ["MAX_SHORT_ANSWER", "Options", "answers_match", "extract_answer", "normalise_answer", "vote_key"]

# Unlike str.lower() this keeps every index where it was.
_ASCII_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)
_ANSWER_TAG = re.compile("</?answer>")


def extract_answer(
    text: str, options: Options = None, finished: bool = True, question: str | None = None
) -> str | None:
    """Return the answer that a rollout ends with.

    It is read in the last closed `<answer>..</answer>` after the last `</think>` (the prompt may have opened the
    thought), else in all that follows the thought. There it is the first of these that exists: the balanced
    `\\boxed{..}` of the last sentence that has one, several joined by commas; the value of a JSON key `answer`; the
    letter or value of the last final-answer phrase; a last line that begins with `####`; a short value after a last
    "therefore"; an option's letter on a line of its own; the whole stripped text, unless it has an answer tag. An
    answer tag inside the thought counts only when nothing follows the thought. An empty answer is an abstention.

    Args:
        text: what the model generated. When the prompt opened `<think>`, put it in front of the text, so that a thought
            that never ends is seen as one.
        options: the choices, as {"A": "two", ..} or as texts lettered A, B, ..; with them the letter of a phrase has to
            be one of theirs.
        finished: False when the rollout was cut off. It then abstains even if an answer is closed by then, since the
            last answer counts and may not have been written yet.
        question: as put to the model; without `options`, those in its text are used.

    Returns:
        The answer in the model's own spelling, never shortened; None when the rollout abstains.

    Raises:
        ValueError: more than 26 unlettered options.
    """
    if not finished:
        return None
    lowered = text.translate(_ASCII_LOWER)
    close = lowered.rfind("</think>")
    start = 0 if close == -1 else close + len("</think>")
    if lowered.find("<think>", start) != -1:
        return None
    tag = _find_last_answer_tag(lowered, start, len(text))
    if tag is None and not text[start:].strip():
        tag = _find_last_answer_tag(lowered, 0, start)
    body = text[start:] if tag is None else text[slice(*tag)]
    found = _find_answer(body, _options(options, question))
    if found is None and (tag is not None or not _ANSWER_TAG.search(lowered, start)):
        found = body
    return (found or "").strip() or None


def _find_last_answer_tag(lowered: str, start: int, end: int) -> tuple[int, int] | None:
    """Return where the content of the last closed answer tag begins and ends."""
    close = lowered.rfind("</answer>", start, end)
    opening = lowered.rfind("<answer>", start, max(close, start))
    if opening == -1:
        return None
    inside = opening + len("<answer>")
    return inside, lowered.find("</answer>", inside)


def _find_answer(body: str, options: dict[str, str] | None) -> str | None:
    """Return the answer of a text by its form; None when no form is found and the whole text is the answer."""
    box = find_boxes(body)
    if box is not None:
        return find_phrase_value(box, options) or box
    found = find_json_answer(body)
    if found is None:
        found = find_phrase_value(body, options)
    if found is None:
        found = find_last_line(body)
    if found is None:
        found = find_conclusion(body)
    return find_lone_letter(body, options) if found is None else found


def normalise_answer(answer: str, options: Options = None, question: str | None = None) -> str:
    """Return the canonical form in which votes are counted and answers graded.

    Merged: case of words, white space, Unicode compatibility forms, digits of all scripts, invisible characters,
    punctuation and brackets around the whole, leading articles, markdown and LaTeX wrappers; number words and formats,
    powers of ten, fractions, reduced, and written as decimals where these end; spellings of common units, currencies,
    times and dates; true with yes and false with no, also as "yes, it is"; spellings of a mathematical expression; the
    spacing of lists; an option's letter with and without its text.
    Kept apart: a number with a unit or noun and the bare number ("3 cats", "3 dogs", "3"); the case of units (MW, mW);
    50% and 0.5; 5! and 5; "1,2", which is a list, and 12; the order of a list, but not of a set in braces.
    With options, every way to name one gives its letter as the options write it. A letter counts before a text, so
    "B) three" is B whatever the text of B is.

    Args:
        answer: an extracted answer, or a reference answer. One longer than `MAX_SHORT_ANSWER` characters is prose, and
            only its white space is normalised.
        options: as in `extract_answer`.
        question: as in `extract_answer`; where it asks for x, "x = 5" is 5.

    Returns:
        The canonical form, empty when nothing visible is left. Normalising it again changes nothing.

    Raises:
        ValueError: more than 26 unlettered options.
    """
    form = canonical_answer(answer)
    choices = _options(options, question)
    if choices is not None:
        return name_option(answer, choices) or form
    name, sign, value = form.partition(" = ")
    if question is not None and sign and " = " not in value and "," not in form:
        return value if name.casefold() in find_asked_names(question) else form
    return form


def answers_match(a: str | None, b: str | None, options: Options = None, question: str | None = None) -> bool:
    """Return whether two answers have the same canonical form; an abstention or empty answer matches nothing.

    Args:
        a: an answer as extracted, or a reference; None for an abstention.
        b: the other one.
        options: as in `extract_answer`.
        question: as in `normalise_answer`.

    Returns:
        True when they would be one vote.

    Raises:
        ValueError: more than 26 unlettered options.
    """
    key = vote_key(a, options, question)
    return key is not None and key == vote_key(b, options, question)


def vote_key(answer: str | None, options: Options = None, question: str | None = None) -> str | None:
    """Return the canonical form under which an extracted answer is counted; None when it abstains.

    Args:
        answer: as extracted; None for an abstention.
        options: as in `extract_answer`.
        question: as in `normalise_answer`.

    Raises:
        ValueError: more than 26 unlettered options.
    """
    return normalise_answer(answer, options, question) or None if answer else None


def _options(options: Options, question: str | None) -> dict[str, str] | None:
    """Return the options by letter: those given, else those in the question's text."""
    if options is not None:
        return options_by_letter(options)
    return None if question is None else find_options(question)
