"""Tests of avis/answers.py and the modules below it: extraction, canonical forms, and odd texts.

The batteries of tests/test_answer_battery.py have more pairs and texts, each with a reason.
"""

import doctest
import unicodedata
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avis import answers, canonical, choices, mathematics, numerals, quantities, times, units
from avis.answers import answers_match, extract_answer, normalise_answer
from avis.voting import majority_vote

pytestmark = pytest.mark.unit

fuzz = settings(max_examples=300, deadline=None, derandomize=True)

OPTIONS = {"A": "two rabbits", "B": "three", "C": "1,234 cm", "D": "the cat"}

# Pieces that the rules look for, so that random sequences of them meet in every order.
FRAGMENTS = [
    *"()[]{}*_$'\"`,.;:!?-+=/^\\%°²½ⅷßſİ̸ͅ\u200b\ud800",
    *["\\frac{", "}{", "\\text{", "\\boxed{", "\\left", "\\circ", "\\,", "{,}", "$$", "**", "\\{", "\\pi"],
    *["3", "0", "1,234", "007", "1/2", ".5", "2.50", "one", "hundred", "thousand", "and", "twenty", "minus"],
    *["cm", "metres", "dollars", "degrees", "cats", "the ", "a ", "an ", "yes", "no", "true", "b", "B)"],
    *[" ", " ", " ", "\n", "answer is", "option "],
]
messy = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join) | st.text(max_size=30)


def test_module_example_runs():
    """Guards against an example in a module docstring that no longer says what the code does."""
    for module in (answers, canonical, choices, mathematics, numerals, quantities, times, units):
        results = doctest.testmod(module)
        assert results.attempted > 0 and results.failed == 0


# ---------------------------------------------------------------------------------------------- extraction


@pytest.mark.parametrize(
    "text, expected",
    [
        ("<answer>2</answer> no, wait: <answer> 3 </answer>", "3"),
        ("<ANSWER>3</Answer>", "3"),
        ("<answer>3</answer></answer>", "3"),
        ("<answer>2<answer>3</answer>", "3"),
        ("<answer>3</answer> and <answer>4", "3"),
        ("\\boxed{2} then <answer>3</answer>", "3"),
        ("<answer>so \\boxed{3}</answer>", "3"),
        ("<answer>The final answer is 3.</answer>", "3"),
        ("İİİ<answer>3</answer>", "3"),
    ],
)
def test_answer_tag(text, expected):
    """Guards against the first tag winning, a stray tag shifting the span, a box or sentence left inside it,
    and lower-casing that moves indices (İ becomes two characters)."""
    assert extract_answer(text) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        (r"\boxed{2} and \boxed{3}", "2, 3"),
        (r"\boxed{2}. Then \boxed{3}", "3"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}} is the set", r"\{1, 2\}"),
        (r"\boxed{\}}", r"\}"),
        (r"\boxed{x = \boxed{3}}", "3"),
        (r"\boxed{3} but then \boxed{4", "3"),
        (r"\boxed{\text{open} \boxed{3}", "3"),
        (r"The answer is \boxed{3}. So the answer is above.", "3"),
    ],
)
def test_boxed(text, expected):
    """Guards against a regex that stops at the first closing brace, counts escaped braces, lets an unclosed box hide
    the closed one before it, or drops a box of the last sentence that has one."""
    assert extract_answer(text) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("So the answer is C", "C"),
        ("Answer: 4", "4"),
        ("final answer is (B), as the rabbit wears it", "B"),
        ("The answer is B. three rabbits", "B"),
        ("**Final answer: 4**", "4"),
        ("**Final Answer**\n\n4", "4"),
        ("The answer is:\n **three rabbits**.\nThey sit.", "three rabbits"),
        ("The answer is 3.5 cm. Done.", "3.5 cm"),
        ("the answer is -5", "-5"),
        ("The answer is 2. No, the answer is 3 because I forgot one.", "3"),
        ("The correct option is (d).", "d"),
        ("The answer is C. Every other option is wrong.", "C"),
        ("The answer is $1,234$.", "$1,234$"),
    ],
)
def test_final_answer_phrase(text, expected):
    """Guards against strict parsers that lose an answer "C" given as a sentence, and against a decimal
    point, a sign or a bracket being cut off it."""
    assert extract_answer(text) == expected


def test_phrase_letter_has_to_be_an_option():
    """Guards against "E. coli" being read as option E where there is none."""
    assert extract_answer("The answer is (E) coli", ["yes", "no"]) == "(E) coli"
    assert extract_answer("The answer is (b) no", ["yes", "no"]) == "b"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("<think><answer>2</answer></think><answer>3</answer>", "3"),
        ("<think>\\boxed{2}</think> 3", "3"),
        ("opened in the prompt, the answer is 2</think>3", "3"),
        ("<think>hm <think>hm</think> 3", "3"),
        ("<think>so <answer>2</answer></think>\n", "2"),
        ("<think>2</think><answer>3</answer></think>", "3"),
        ("<think><answer>2</answer></think> 3", "3"),
        ("<think>1</think> 2 <think>so</think> 3", "3"),
        ("<think>three rabbits</think>", None),
        ("<think>the answer is 2</think>  ", None),
    ],
)
def test_thought_is_not_the_answer(text, expected):
    """Guards against answers taken from the thought although one follows, and against templates that open the
    thought in the prompt."""
    assert extract_answer(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "<think>I count <answer>3</answer> and",
        "<THINK>the answer is 3",
        "<think>a</think><answer>3</answer> wait <think> no",
        "<answer>3",
        "3</answer>",
        "<answer></answer>",
        "<answer>2</answer><answer> </answer>",
        "the answer is \\boxed{}",
        "I do not know what the answer is.",
        "",
        " \n",
    ],
)
def test_abstains(text):
    """Guards against votes from a thought that never ended, half a tag, or nothing at all."""
    assert extract_answer(text) is None


@given(messy)
@fuzz
def test_cut_off_rollout_abstains(text):
    """Guards against a cut-off rollout voting, even one that had closed an answer: it may have changed it."""
    assert extract_answer(text, finished=False) is None
    assert extract_answer(f"<think>{text}</think><answer>3</answer>", finished=False) is None
    assert extract_answer(f"<think>{text}</think><answer>3</answer>", finished=True) == "3"


def test_plain_text_is_the_last_resort():
    """Guards against direct answers without any format being dropped, or prose being cut short."""
    prose = "A long description. " * 200
    assert extract_answer("  three rabbits \n") == "three rabbits"
    assert extract_answer(prose) == prose.strip()


# ------------------------------------------------------------------------------------------- normalisation

SAME = [
    ["b", "B", " (b) ", "B.", "b)", "**B**", "$B$", "[B]", '"B"', "“B”", r"\text{B}", r"\boxed{\text{(B)}}"],
    ["the cat", "Cat", "a cat.", "CAT!", "c\u00adat", "ca\u200bt"],
    ["straße", "STRASSE"],
    ["café", "cafe\u0301", "CAFÉ"],
    ["3", "three", "3.0", "03", "+3", "Three.", "\u200b3", "３", "6/2", r"\frac{6}{2}", "$3$", r"\(3\)"],
    ["0", "zero", "-0", "0.00"],
    ["21", "twenty-one", "Twenty one"],
    ["105", "one hundred and five", "a hundred five", "hundred five"],
    ["12345", "12,345", "twelve thousand three hundred and forty-five", r"12{,}345", "12,345.0"],
    ["2500", "twenty-five hundred", "two thousand five hundred"],
    ["3000000", "three million"],
    ["-5", "−5", "minus five", "negative 5", "–5", r"\(-5\)"],
    ["0.5", ".5", "0.50", "1/2", "½", r"\frac{1}{2}", r"\dfrac{2}{4}", "3 / 6"],
    ["-3.5", "-3 1/2", "-3½", r"-3\frac{1}{2}", r"\frac{-7}{2}"],
    ["2/3", "4/6"],
    ["0.0009765625", "1/1024"],
    ["50%", "50 %", r"50\%", "fifty percent", "50.0 per cent"],
    ["3 cm", "3cm", "3.0 centimetres", "three centimeters", r"3\,\text{cm}"],
    ["5 m^2", "5 m²", "5m²", "5 metres^2", "5 m^{2}"],
    ["90°", "90 degrees", r"90^\circ", r"90^{\circ}", "90 deg"],
    ["25°C", "25 ℃", r"25^\circ C", "25 degrees Celsius"],
    ["$1,200", "1200 dollars", r"\$1200.00", "1200$", "$ 1200"],
    ["$5 million", "5 million dollars"],
    ["3 rabbits", "three rabbits", "3.0 rabbits."],
    ["yes", "Yes.", "TRUE", "Yes, it is.", "Yes,there are three"],
    ["no", "No!", "false", "No, there is none"],
    ["1,2", "1, 2", "one, two", "1 ,2.0"],
    ["3 cats, 2 dogs", "three cats,two dogs"],
    ["(1,2)", "(1, 2)"],
    ["a/b", r"\frac{a}{b}"],
    [r"\pi", "π"],
]


@pytest.mark.parametrize("spellings", SAME, ids=lambda spellings: spellings[0])
def test_spellings_of_one_answer(spellings):
    """Guards against votes split over spellings."""
    assert {normalise_answer(spelling) for spelling in spellings} == {normalise_answer(spellings[0])}


def test_different_answers_stay_different():
    """Guards against lossy merging: every group above against every other, and near misses."""
    near_misses = [
        *["3 m", "3 s", "3 min", "3 in", "3 cats", "3 dogs", "cm", "12", "1.2", "(1, 2]", "[1, 2]", "2, 1"],
        *["5!", "5!!", "5", "10²", "102", "1/3", "31/2", "13/2", "50", "1,2345", "1 234", "0,123", "123", "1.2.3"],
        *["12:30", "1/0", "3 3/0", "-x", "x", "?", "...", "- 5", "3-5", "3rd", "£3", "€3", "$3 each"],
        *["no, yes", "yes, no", "A and C", "a+1/b", r"\frac{a+1}{b}"],
    ]
    groups = Counter(normalise_answer(answer) for answer in [group[0] for group in SAME] + near_misses)
    assert [form for form, count in groups.items() if count > 1] == []


@pytest.mark.parametrize(
    "text",
    [
        *["two three", "five twenty", "twenty zero", "one hundred hundred", "two thousand three million"],
        *["two million thousand", "three-legged", "three's company", "cats and dogs", "salt and pepper"],
        *["03d", "2/4/2024", "2/4.5", "1,234.5.6", "cat on the mat", "a b", "www.a.com", "a@b.com", "on/off"],
    ],
)
def test_left_alone(text):
    """Guards against rules that take part of a text for a number, a bracket pair, a list or an article."""
    assert normalise_answer(text) == text.replace(",", ", ")


@pytest.mark.parametrize(
    "value, words",
    [
        (19, "nineteen"),
        (110, "one hundred ten"),
        (999, "nine hundred ninety-nine"),
        (40_017, "forty thousand seventeen"),
        (1_000_000_001, "one billion and one"),
        (2_003_004, "two million three thousand and four"),
    ],
)
def test_number_words(value, words):
    """Guards against places lost or added twice in long number words."""
    assert normalise_answer(words) == str(value)


@given(st.integers(min_value=-(10**12), max_value=10**12), st.sampled_from(["", ".0", ".250"]))
@fuzz
def test_number_formats_agree(value, decimals):
    """Guards against thousands separators, leading zeros or trailing zeros that change a value."""
    expected = str(value) + (".25" if decimals == ".250" else "")
    if value == 0 and decimals != ".250":
        expected = "0"
    plain, grouped = f"{value}{decimals}", f"{value:,}{decimals}"
    assert normalise_answer(plain) == normalise_answer(grouped) == expected


@given(st.integers(0, 10**9 - 1), st.integers(1, 10**9 - 1), st.integers(1, 9))
@fuzz
def test_fractions_are_exact(top, bottom, factor):
    """Guards against rounding: a fraction's form is equal in value to it, and the same after expansion."""
    form = normalise_answer(f"{top}/{bottom}")
    assert Fraction(form) == Fraction(top, bottom)
    if factor * max(top, bottom) < 10**9:
        assert normalise_answer(f"{factor * top}/{factor * bottom}") == form


@given(messy)
@settings(fuzz, max_examples=1000)
def test_normal_form_is_stable(text):
    """Guards against forms that change when graded again, so that a winner would not match itself."""
    form = normalise_answer(text)
    assert normalise_answer(form) == form
    with_options = normalise_answer(text, OPTIONS)
    assert normalise_answer(with_options, OPTIONS) == with_options


def test_every_character_is_stable():
    """Guards against Unicode folding that is not a fixed point (U+0345, U+1E9E), or ends half composed."""
    # Letters that no folding touches are all read alike: some are enough.
    odd = [c for c in map(chr, range(0x20000)) if not c.isalpha() or unicodedata.normalize("NFKC", c).casefold() != c]
    forms_of_one = {normalise_answer(c) for c in [*odd[:6000], *odd[6000::10], *map(chr, range(0x3000))]}
    assert [form for form in forms_of_one if normalise_answer(form) != form] == []
    assert [form for form in forms_of_one if not unicodedata.is_normalized("NFKC", form)] == []


@pytest.mark.parametrize(
    "letter, spellings",
    [
        ("A", ["A", "(a)", "two rabbits", "2 rabbits", "A) two rabbits", "A. 2 rabbits", "a - two rabbits"]),
        ("B", ["B", "(b)", "B.", "B) three", "three", "3", "option B", "B three", "B: three", "B (three)"]),
        ("B", ["B) two rabbits", "(B) something else", r"\text{(B)}"]),
        ("C", ["C", "1234 cm", "1,234cm", "C. 1234.0 centimetres"]),
        ("D", ["D", "cat", "a cat", "The cat.", "Choice D", "D the cat", "[D] the cat"]),
    ],
)
def test_option_letters_and_texts(letter, spellings):
    """Guards against a letter and the text of its option counting as two answers."""
    assert {normalise_answer(spelling, OPTIONS) for spelling in spellings} == {letter}
    assert {normalise_answer(spelling, list(OPTIONS.values())) for spelling in spellings} == {letter}


def test_options_that_look_like_letters():
    """Guards against an article read as option A, initials read as letters, and texts that name a letter."""
    assert normalise_answer("A rabbit", {"A": "cat", "B": "rabbit"}) == "B"
    assert normalise_answer("a rabbit", {"A": "cat", "B": "dog"}) == "rabbit"
    assert normalise_answer("B. anthracis", {"A": "B. anthracis", "B": "E. coli"}) == "A"
    assert normalise_answer("a x", {"A": "x", "B": "a x"}) == "B"
    assert normalise_answer("B", {"A": "B", "B": "A"}) == "B"
    assert normalise_answer("3", {"1": "three", "3": "one"}) == "3"
    assert normalise_answer("E", OPTIONS) == "e"


def test_too_many_options():
    """Guards against options silently lost past Z."""
    with pytest.raises(ValueError, match="27 options"):
        normalise_answer("x", ["x"] * 27)


def test_answers_match():
    """Guards against abstentions or empty answers that are graded as right."""
    assert answers_match("(B)", "Three", OPTIONS)
    assert not answers_match("B", "Three")
    assert not answers_match(None, None)
    assert not answers_match("", "")
    assert not answers_match("\u200b", "\u200b")
    assert not answers_match("3", None)


# ------------------------------------------------------------------------------------------- hostile texts


@given(st.lists(st.sampled_from([*FRAGMENTS, "<think>", "</think>", "<answer>", "</answer>"]), max_size=15))
@fuzz
def test_any_text_is_read_without_exceptions(pieces):
    """Guards against exceptions on odd input, and against tags or white space around what is extracted."""
    text = "".join(pieces)
    for options in (None, OPTIONS, ["3", "x"]):
        answer = extract_answer(text, options)
        assert answer is None or answer == answer.strip() != "" and answer in text
        majority_vote([answer, text], options)
