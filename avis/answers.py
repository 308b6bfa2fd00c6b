"""From the text of a rollout to its answer, and from the answer to its canonical form.

    >>> extract_answer("<think>a, b, c</think><answer>3 cm</answer>")
    '3 cm'
    >>> normalise_answer("3 cm") == normalise_answer("three centimetres")
    True

Plain Python, linear in the length of a text, and without exceptions whatever a model writes. Two answers are one vote
when their canonical forms are equal, so a rule that merges two spellings has to be lossless: "3 cm" is "three
centimetres" but neither "3 m" nor "3".

The formats read are `<answer>` (R1-like models), `\\boxed{}` (mathematics models) and plain sentences (all others).
"""

import re
import unicodedata
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import gcd
from string import ascii_lowercase, ascii_uppercase

Options = Mapping[str, str] | Sequence[str] | None

# A longer answer is prose. It is compared as it stands: the rules below are for short answers, and Unicode's
# own normalisation is quadratic on long runs of combining marks.
MAX_SHORT_ANSWER = 1000

# ---------------------------------------------------------------------------------------------- extraction

# Unlike str.lower() this keeps every index where it was.
_ASCII_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)
_ANSWER_TAG = re.compile("</?answer>")
_BOX = "\\boxed{"
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# "the answer is", "correct option is", "Answer:", "**Final answer**" with the markdown that follows.
_PHRASE = re.compile(
    r"\b(?:final[\s*_]{1,3}answer|(?:answer|(?:correct|right|best)\s{1,3}(?:option|choice))(?=[\s*_]{0,9}(?:is\b|[:=])))"
    r"[\s*_]{0,9}(?:is\b|[:=])?[\s*_:]{0,9}",
    re.IGNORECASE,
)
_PHRASE_LETTER = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:]|\s*$)")
_PHRASE_END = re.compile(r"[.!?;](?=\s|$)|\n|\s(?:because|since)\b")


def extract_answer(text: str, options: Options = None, finished: bool = True) -> str | None:
    """Find the answer that a rollout ends with.

    The first of these that exists, read after the last `</think>` (the prompt may have opened the thought):
    the last closed `<answer>..</answer>`; the last balanced `\\boxed{..}`; the letter or value of the last
    final-answer phrase; the whole stripped text, unless an answer tag stands in it. A box or a phrase inside
    an answer tag is unwrapped too. An answer tag inside the thought counts only when nothing follows the
    thought. What is found but empty abstains.

    Args:
        text: what the model generated. When the prompt opened `<think>`, put it in front of the text, so
            that a thought that never ends is seen as one.
        options: the choices, as {"A": "two", ..} or as texts lettered A, B, ..; with them a phrase's letter
            has to be one of theirs.
        finished: False when the rollout was cut off. It then abstains even if an answer is closed by then,
            since the last answer is the one that counts and it may not have been written yet.

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
    tag = _last_answer_tag(lowered, start, len(text))
    if tag is None and not text[start:].strip():
        tag = _last_answer_tag(lowered, 0, start)
    body = text[start:] if tag is None else text[slice(*tag)]
    found = _last_boxed(body)
    if found is None:
        found = _phrase_value(body, options)
    if found is None and (tag is not None or not _ANSWER_TAG.search(lowered, start)):
        found = body
    return (found or "").strip() or None


def _last_answer_tag(lowered: str, start: int, end: int) -> tuple[int, int] | None:
    close = lowered.rfind("</answer>", start, end)
    opening = lowered.rfind("<answer>", start, max(close, start))
    if opening == -1:
        return None
    inside = opening + len("<answer>")
    return inside, lowered.find("</answer>", inside)


def _last_boxed(text: str) -> str | None:
    end = len(text)
    while (start := text.rfind(_BOX, 0, end)) != -1:
        inside = start + len(_BOX)
        depth = 1
        for brace in _BRACE.finditer(text, inside, end):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                return text[inside : brace.start()]
        # An earlier box that held this unclosed one would be unclosed as well, so it has to end before it.
        # The windows scanned are disjoint, which keeps the search linear.
        end = start
    return None


def _phrase_value(text: str, options: Options) -> str | None:
    last = deque(_PHRASE.finditer(text), maxlen=1)
    if not last:
        return None
    value = text[last[0].end() :]
    letter = _PHRASE_LETTER.match(value)
    if letter and (options is None or letter[1].upper() in map(str.upper, _lettered(options))):
        return letter[1]
    end = _PHRASE_END.search(value)
    return value[: end.start() if end else None].strip(" *_")


# ------------------------------------------------------------------------------------------- normalisation

_SUPERSCRIPT = re.compile("[⁰¹²³⁴-⁹⁺⁻]+")
_VULGAR_FRACTION = re.compile("(?<=[0-9])(?=[¼-¾⅐-⅞↉])")
_LOOKALIKES = str.maketrans("‐‑‒–—−⁄‘’“”", "------/''\"\"")

_NOTATION = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\(?:left|right|displaystyle)(?![a-z])|\\[()\[\]!]", ""),
        (r"\\[,;:> ]", " "),
        (r"\\([$%#&_{}])", r"\1"),
        (r"\{,\}", ","),
        (r"\^(?:\\circ(?![a-z])|\{\\circ\})", "°"),
        (r"\\pi(?![a-z])", "π"),
        (r"\^\{([^{}]*)\}", r"^\1"),
        (r"\\(?:text(?:bf|it|rm)?|math(?:bf|it|rm)|mbox|boxed|operatorname)\{([^{}]*)\}", r"\1"),
        # The space keeps the mixed number 3\frac{1}{2} from reading as 31/2.
        (r"([0-9])\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}", r"\1 \2/\3"),
        (r"\\[dt]?frac\{(-?[\w.]+)\}\{([\w.]+)\}", r"\1/\2"),
        (r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1)/(\2)"),
        (r"\A(\w+)\)\Z", r"\1"),
    ]
]
_WRAPPERS = "() [] {} ** __ $$ $ ' \" ` * _".split()
_ARTICLE = re.compile(r"\A(?:an?|the) (?=[^\W\d_]{2})(?!(?:and|or)\b)")
_VERDICT = re.compile(r"(yes|true)|no|false")
_VERDICT_SENTENCE = re.compile(r"(yes|true|no|false) ?, ?[^ ,]+ [^,]+")

_SIGN_AND_CURRENCY = re.compile(r"(\+|-|minus |negative )?(?:([$€£¥]) ?)?")
_FRACTION = re.compile(r"(?:([0-9]{1,9}) )?([0-9]{1,9}) ?/ ?([0-9]{1,9})")
_DECIMAL = re.compile(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+")
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_WORDS = {word: value for value, word in enumerate(_SMALL.split())}
_WORDS |= {word: 10 * tens for tens, word in enumerate(_TENS.split(), 2)}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_ANY_WORD = rf"(?:{'|'.join([*_WORDS, *_SCALES, 'hundred'])})\b"
_NUMBER_WORDS = re.compile(rf"{_ANY_WORD}(?:(?: and |[ -]){_ANY_WORD})*")
_UNITS = {
    "%": "percent, per cent",
    "°": "degree, degrees, deg",
    "°c": "° c, degrees c, degrees celsius",
    "°f": "° f, degrees f, degrees fahrenheit",
    "dollars": "dollar, $",
    "euros": "euro, €",
    "gbp": "£",
    "yen": "¥",
    "mm": "millimeter, millimeters, millimetre, millimetres",
    "cm": "centimeter, centimeters, centimetre, centimetres",
    "m": "meter, meters, metre, metres",
    "km": "kilometer, kilometers, kilometre, kilometres",
    "in": "inch, inches",
    "ft": "foot, feet",
    "g": "gram, grams",
    "kg": "kilogram, kilograms",
    "s": "sec, secs, second, seconds",
    "min": "mins, minute, minutes",
    "h": "hr, hrs, hour, hours",
    "km/h": "kph",
}
_UNIT = {alias: unit for unit, aliases in _UNITS.items() for alias in (unit, *aliases.split(", "))}


def normalise_answer(answer: str, options: Options = None) -> str:
    """Bring an answer into the form in which votes are counted and answers graded.

    Merged: case, white space, Unicode compatibility forms, invisible characters, punctuation and brackets
    around the whole, leading articles, LaTeX wrappers; number words, "1,234", "3.0", ".5", "+5" and leading
    zeros; fractions, reduced, and written as decimals where these end; spellings of common units, and
    "3cm"; true with yes and false with no, also as "yes, it is"; the spacing of lists.
    Kept apart: a number with a unit or noun and the bare number ("3 cats", "3 dogs", "3"); 50% and 0.5;
    5! and 5; "1,2", which is a list, and 12; the order of a list.
    With options, all ways to name one give its letter as the options write it. A letter counts before a
    text, so "B) three" is B whatever stands at B.

    Args:
        answer: an extracted answer, or a reference answer. One longer than `MAX_SHORT_ANSWER` characters is
            prose, and only its white space is normalised.
        options: as in `extract_answer`.

    Returns:
        The normal form, empty when nothing visible is left. Normalising it again changes nothing.

    Raises:
        ValueError: more than 26 unlettered options.
    """
    form = _free_form(answer)
    return form if options is None else _option_letter(form, _lettered(options)) or form


def answers_match(a: str | None, b: str | None, options: Options = None) -> bool:
    """Whether two answers have the same normal form; an abstention or empty answer matches nothing.

    Args:
        a, b: answers as extracted, or references; None for an abstention.
        options: as in `extract_answer`.

    Returns:
        True when they would be one vote.

    Raises:
        ValueError: more than 26 unlettered options.
    """
    form = a and normalise_answer(a, options)
    return bool(form) and bool(b) and form == normalise_answer(b, options)


def vote_key(answer: str | None, options: Options = None) -> str | None:
    """Return the canonical form under which an extracted answer is counted; None when it abstains.

    Args:
        answer: as extracted; None for an abstention.
        options: as in `extract_answer`.

    Raises:
        ValueError: more than 26 unlettered options.
    """
    return normalise_answer(answer, options) or None if answer else None


def _lettered(options: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    if isinstance(options, Mapping):
        return dict(options)
    if len(options) > len(ascii_uppercase):
        raise ValueError(f"{len(options)} options without letters; pass a dict to name more than 26")
    return dict(zip(ascii_uppercase, options, strict=False))


def _option_letter(form: str, options: dict[str, str]) -> str | None:
    letters: dict[str, str] = {}
    texts: dict[str, str] = {}
    for letter, text in options.items():
        letters.setdefault(_free_form(letter), letter)
        texts.setdefault(_free_form(text), letter)
    for letter, text in options.items():
        texts.setdefault(_free_form(f"{letter} {text}"), letter)
    if form in letters or form in texts:
        return letters.get(form) or texts.get(form)
    named = re.match(r"(?:(?:option|choice) )?[(\[]?(\w+)(?:[)\]]|[.:] | - | \(|$)", form)
    return letters.get(named[1]) if named else None


def _free_form(answer: str) -> str:
    text = " ".join(answer.split())
    return text if len(text) > MAX_SHORT_ANSWER else _canonical(_bare(_folded(text)))


def _folded(text: str) -> str:
    visible = "".join(c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    # Before NFKC, which would make 102 of 10² and 11/2 of 1½.
    spaced = _VULGAR_FRACTION.sub(" ", _SUPERSCRIPT.sub(lambda digits: "^" + digits.group(), visible))
    folded = unicodedata.normalize("NFKC", spaced).translate(_LOOKALIKES).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def _bare(text: str) -> str:
    """Remove what surrounds an answer, layer by layer. Each step shortens the text, so the loop ends."""
    while True:
        shorter = text
        for pattern, replacement in _NOTATION:
            shorter = pattern.sub(replacement, shorter)
        shorter = _folded(_ARTICLE.sub("", _unpunctuated(_unwrapped(shorter)), count=1))
        if len(shorter) >= len(text):
            return shorter
        text = shorter


def _unwrapped(text: str) -> str:
    for wrapper in _WRAPPERS:
        left, right = (wrapper, wrapper) if len(set(wrapper)) == 1 else (wrapper[0], wrapper[1])
        inner = text[len(left) : -len(right)]
        # (a) and (b) is not wrapped, and (1, 2) is a point or an interval that [1, 2] is not.
        is_one_span = left not in inner and right not in inner and (left == right or "," not in inner)
        if inner and is_one_span and text.startswith(left) and text.endswith(right):
            return inner
    return text


def _unpunctuated(text: str) -> str:
    core = text.rstrip(" .,;:?!。")
    if core[-1:].isdigit() and text[len(core) :].startswith("!"):
        core += "!"  # a factorial
    without_lead = core.lstrip(" .,;:?!=。")
    if core.endswith("." + without_lead) and without_lead[:1].isdigit():
        without_lead = "." + without_lead  # .5
    return without_lead or text


def _canonical(text: str) -> str:
    verdict = _VERDICT.fullmatch(text) or _VERDICT_SENTENCE.fullmatch(text)
    if verdict:
        return "yes" if verdict[1] in ("yes", "true") else "no"
    whole = _quantity(text)
    if whole is not None:
        return whole
    items = [item.strip() for item in text.split(",")]
    quantities = [_quantity(item) for item in items]
    return ", ".join(items if None in quantities else quantities).strip()


def _quantity(text: str) -> str | None:
    """The normal form of a number with an optional sign, currency, unit or noun; None for all else."""
    sign, currency = (lead := _SIGN_AND_CURRENCY.match(text)).groups("")
    number, rest = _leading_number(text[lead.end() :])
    if number is None:
        return None
    if sign not in ("", "+") and number != "0":
        number = "-" + number
    if currency:
        if rest.strip() not in ("", *_SCALES):
            return None
        rest += " " + _UNIT[currency]
    noun, caret, power = rest.strip().partition("^")
    unit = _UNIT.get(noun, "") + caret + power
    if not rest:
        return number
    if noun in _UNIT:
        return f"{number} {unit}" if unit[0].isalpha() else number + unit
    is_phrase = rest.startswith(" ") and noun[:1].isalpha() and "," not in rest
    return number + rest if is_phrase else None


def _leading_number(text: str) -> tuple[str | None, str]:
    if match := _FRACTION.match(text):
        whole, top, bottom = (int(part or 0) for part in match.groups())
        number = _fraction(whole * bottom + top, bottom) if bottom else None
    elif match := _DECIMAL.match(text):
        # Digits stay text: int() refuses long ones.
        integer, _, decimals = match.group().replace(",", "").partition(".")
        number = f"{integer.lstrip('0') or '0'}.{decimals.rstrip('0')}".rstrip(".")
    elif match := _NUMBER_WORDS.match(text):
        number = _words_to_number(match.group().replace("-", " ").split())
    else:
        return None, text
    return number, text[match.end() :]


def _fraction(top: int, bottom: int) -> str:
    divisor = gcd(top, bottom)
    top, bottom = top // divisor, bottom // divisor
    # 30 places hold every decimal that ends, because `_FRACTION` admits no denominator above 2**30.
    scaled, remainder = divmod(top * 10**30, bottom)
    if remainder:
        return f"{top}/{bottom}"
    return f"{scaled // 10**30}.{scaled % 10**30:030d}".rstrip("0").rstrip(".")


def _words_to_number(words: list[str]) -> str | None:
    """Read English number words; None for a sequence that is no number, such as "two three"."""
    total = group = 0
    room, scale = 1000, 10**12  # what may follow: a number below `room`, a scale below `scale`
    for previous, word in pairwise([None, *words]):
        starts = previous is None
        if word in _WORDS and _WORDS[word] < room and (_WORDS[word] or starts):
            group += _WORDS[word]
            room = 10 if _WORDS[word] >= 20 else 0
        elif word == "hundred" and (0 < group < 100 or starts):
            group, room = (group or 1) * 100, 100
        elif word in _SCALES and _SCALES[word] < scale and (group or starts) and previous != "and":
            scale = _SCALES[word]
            total, group, room = total + (group or 1) * scale, 0, 1000
        elif word != "and" or previous not in ("hundred", *_SCALES):
            return None
    return str(total + group)
