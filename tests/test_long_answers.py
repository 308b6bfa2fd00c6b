"""Tests of avis/answers.py with texts of a million characters and answers around the length limit.

Work may grow by little more than the length of a text, whatever it repeats; no time is compared with a clock's.
"""

import time

import pytest

from avis.answers import MAX_SHORT_ANSWER, answers_match, extract_answer, normalise_answer
from avis.voting import majority_vote

SIZE = 10**6

# What the rules look for, repeated without end.
REPEATED = [
    *[
        "the answer is ",
        "answer ",
        "B is the correct answer. ",
        "is the correct answer ",
        "therefore ",
        "so ",
        "clearly, ",
    ],
    *[
        "Mr. ",
        "St. ",
        "A. ",
        "no. 5 ",
        ".",
        "! ",
        "; ",
        ": ",
        "- ",
        ", which ",
        "because ",
        "\n",
        "x,\n",
        "\n- a",
        "1. ",
    ],
    *[
        "\\boxed{3} ",
        "\\boxed{3}. ",
        "\\boxed ",
        '{"answer": "',
        '"answer": ',
        "the answer: (A) ",
        "####",
        "\n#",
        "(A) ",
    ],
    *["**", "$", "$$", "\\[", "“", "答案：", "a", "0", " ", "{"],
]


@pytest.mark.parametrize(
    "unit, expected",
    [
        ("<answer>", None),
        ("</answer>", None),
        ("<answer></answer>", None),
        ("<think>", None),
        ("</think>", None),
        ("\\boxed{", "whole"),
        ("the answer is ", None),
        ("<answer></think>", None),
        ("answer ", "whole"),
        ("\x00\ud800\u0301", "whole"),
    ],
    ids=ascii,
)
def test_a_million_characters_of(unit, expected):
    """Guards against rescanning: each of these is quadratic in a parser that looks for a partner from every
    opening, or whose regex backtracks. Prose is kept whole."""
    text = (unit * (SIZE // len(unit))).strip()
    answer = extract_answer(text)
    assert answer == (text if expected == "whole" else expected)
    vote = majority_vote([answer, "3", "3"])
    assert vote.winner == "3"


@pytest.mark.parametrize("filler", [" ", "*", "{", "\\"], ids=ascii)
def test_long_tail_after_an_opening(filler):
    """Guards against backtracking over what follows an opening, and against a box that nothing closes."""
    tail = filler * SIZE
    assert extract_answer(f"The answer is B{tail}.") == f"B{tail}".rstrip(" *")
    assert extract_answer(f"\\boxed{{3{tail}.") == f"\\boxed{{3{tail}."


def test_deeply_nested_boxes():
    """Guards against recursion and against one scan per box: many boxes, closed or all but one."""
    depth = 10**5
    assert extract_answer("\\boxed{" * depth + "3" + "}" * depth) == "3"
    assert extract_answer("\\boxed{2}" + "\\boxed{" * depth) == "2"
    braces = "{" * depth + "3" + "}" * depth
    assert extract_answer(f"\\boxed{{{braces}}}") == braces


@pytest.mark.parametrize("unit", ["9", "\u0301\u0327", "(", "1,", "one ", " ", "\x00", "\\frac{"], ids=ascii)
def test_long_answers_are_compared_whole(unit):
    """Guards against int() refusing long digit strings, quadratic Unicode reordering, and shortened answers
    that agree only because their ends were cut off."""
    long = unit * (SIZE // len(unit))
    assert normalise_answer(long) == " ".join(long.split())
    assert not answers_match(long + "1", long + "2")


def seconds(text: str) -> float:
    """The process's time for a text, the least of three."""
    found = []
    for _ in range(3):
        start = time.process_time()
        extract_answer(text)
        found.append(time.process_time() - start)
    return min(found)


@pytest.mark.parametrize("lead", ["", "The answer is ", "\\boxed{3} "], ids=ascii)
@pytest.mark.parametrize("unit", REPEATED, ids=ascii)
def test_work_grows_with_the_length_alone(unit, lead):
    """Guards against: a rule that is quadratic. Sixteen times the text takes sixteen times as long, and not 256."""
    short, long = (seconds(lead + unit * (size // len(unit))) for size in (2_000, 32_000))
    assert long < 80 * max(short, 1e-4)


@pytest.mark.parametrize("length", [MAX_SHORT_ANSWER - 1, MAX_SHORT_ANSWER, MAX_SHORT_ANSWER + 1])
@pytest.mark.parametrize("unit", ["9", "(", "\u0301\u0327", "ﷺ", "1,", "${", "\\text{", "one "], ids=ascii)
def test_stable_around_the_length_limit(unit, length):
    """Guards against a form that crosses the limit (one character may become 18) and changes when reread."""
    text = (unit * length)[:length]
    form = normalise_answer(text)
    assert normalise_answer(form) == form
