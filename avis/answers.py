"""From the text of a rollout to its answer, and from the answer to its canonical form::

    >>> extract_answer("<think>a, b, c</think><answer>3 cm</answer>")
    '3 cm'
    >>> normalise_answer("3 cm") == normalise_answer("three centimetres")
    True

Plain Python, linear in the length of a text, and without exceptions whatever a model writes. Two answers are one vote
when their canonical forms are equal, so a rule that merges two spellings has to be lossless: "3 cm" is "three
centimetres" but neither "3 m" nor "3". `avis.quantities` has the rules for numbers and units.

The formats read are `<answer>` (R1-like models), `\\boxed{}` (mathematics models) and plain sentences (all others).
"""

import re
import unicodedata
from collections import deque
from collections.abc import Mapping, Sequence
from string import ascii_lowercase, ascii_uppercase

from avis.quantities import canonical_quantity

Options = Mapping[str, str] | Sequence[str] | None

# A longer answer is prose. It is compared as it stands: the rules below are for short answers, and Unicode's
# own normalisation is quadratic on long runs of combining marks.
MAX_SHORT_ANSWER = 1000

# ---------------------------------------------------------------------------------------------- extraction

# Unlike str.lower() this keeps every index where it was.
_ASCII_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)
_ANSWER_TAG = re.compile("</?answer>")
_BOX_START = "\\boxed{"
_BRACE_OR_ESCAPE = re.compile(r"\\.|[{}]", re.DOTALL)
# "the answer is", "correct option is", "Answer:", "**Final answer**" with the markdown that follows.
_FINAL_ANSWER_PHRASE = re.compile(
    r"\b(?:final[\s*_]{1,3}answer|(?:answer|(?:correct|right|best)\s{1,3}(?:option|choice))(?=[\s*_]{0,9}(?:is\b|[:=])))"
    r"[\s*_]{0,9}(?:is\b|[:=])?[\s*_:]{0,9}",
    re.IGNORECASE,
)
_PHRASE_LETTER = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:]|\s*$)")
_PHRASE_END = re.compile(r"[.!?;](?=\s|$)|\n|\s(?:because|since)\b")


def extract_answer(text: str, options: Options = None, finished: bool = True) -> str | None:
    """Return the answer that a rollout ends with.

    It is the first of these that exists after the last `</think>` (the prompt may have opened the thought): the last
    closed `<answer>..</answer>`; the last balanced `\\boxed{..}`; the letter or value of the last final-answer phrase;
    the whole stripped text, unless it has an answer tag. A box or a phrase inside an answer tag is unwrapped, too. An
    answer tag inside the thought counts only when nothing follows the thought. An empty answer is an abstention.

    Args:
        text: what the model generated. When the prompt opened `<think>`, put it in front of the text, so that a thought
            that never ends is seen as one.
        options: the choices, as {"A": "two", ..} or as texts lettered A, B, ..; with them the letter of a phrase has to
            be one of theirs.
        finished: False when the rollout was cut off. It then abstains even if an answer is closed by then, since the
            last answer counts and may not have been written yet.

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
    found = _find_last_box(body)
    if found is None:
        found = _find_phrase_value(body, options)
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


def _find_last_box(text: str) -> str | None:
    """Return the content of the last box whose braces balance."""
    end = len(text)
    while (start := text.rfind(_BOX_START, 0, end)) != -1:
        inside = start + len(_BOX_START)
        depth = 1
        for brace in _BRACE_OR_ESCAPE.finditer(text, inside, end):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                return text[inside : brace.start()]
        # An earlier box around this unclosed one would be unclosed as well, so it has to end before it.
        # The windows scanned are disjoint, which keeps the search linear.
        end = start
    return None


def _find_phrase_value(text: str, options: Options) -> str | None:
    """Return the option letter or the value that follows the last final-answer phrase."""
    last = deque(_FINAL_ANSWER_PHRASE.finditer(text), maxlen=1)
    if not last:
        return None
    value = text[last[0].end() :]
    letter = _PHRASE_LETTER.match(value)
    if letter and (options is None or letter[1].upper() in map(str.upper, _options_by_letter(options))):
        return letter[1]
    end = _PHRASE_END.search(value)
    return value[: end.start() if end else None].strip(" *_")


# ------------------------------------------------------------------------------------------- normalisation

_SUPERSCRIPT_DIGITS = re.compile("[⁰¹²³⁴-⁹⁺⁻]+")
_BEFORE_VULGAR_FRACTION = re.compile("(?<=[0-9])(?=[¼-¾⅐-⅞↉])")
_ASCII_OF_LOOKALIKES = str.maketrans("‐‑‒–—−⁄‘’“”", "------/''\"\"")

_LATEX_RULES = [
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
_LEADING_ARTICLE = re.compile(r"\A(?:an?|the) (?=[^\W\d_]{2})(?!(?:and|or)\b)")
_YES_OR_NO = re.compile(r"(yes|true)|no|false")
_YES_OR_NO_SENTENCE = re.compile(r"(yes|true|no|false) ?, ?[^ ,]+ [^,]+")
_NAMED_OPTION = re.compile(r"(?:(?:option|choice) )?[(\[]?(\w+)(?:[)\]]|[.:] | - | \(|$)")


def normalise_answer(answer: str, options: Options = None) -> str:
    """Return the canonical form in which votes are counted and answers graded.

    Merged: case, white space, Unicode compatibility forms, invisible characters, punctuation and brackets around the
    whole, leading articles, LaTeX wrappers; number words, "1,234", "3.0", ".5", "+5" and leading zeros; fractions,
    reduced, and written as decimals where these end; spellings of common units, and "3cm"; true with yes and false with
    no, also as "yes, it is"; the spacing of lists.
    Kept apart: a number with a unit or noun and the bare number ("3 cats", "3 dogs", "3"); 50% and 0.5; 5! and 5;
    "1,2", which is a list, and 12; the order of a list.
    With options, every way to name one gives its letter as the options write it. A letter counts before a text, so
    "B) three" is B whatever the text of B is.

    Args:
        answer: an extracted answer, or a reference answer. One longer than `MAX_SHORT_ANSWER` characters is prose, and
            only its white space is normalised.
        options: as in `extract_answer`.

    Returns:
        The canonical form, empty when nothing visible is left. Normalising it again changes nothing.

    Raises:
        ValueError: more than 26 unlettered options.
    """
    form = _canonical_free_answer(answer)
    return form if options is None else _find_option(form, _options_by_letter(options)) or form


def answers_match(a: str | None, b: str | None, options: Options = None) -> bool:
    """Return whether two answers have the same canonical form; an abstention or empty answer matches nothing.

    Args:
        a: an answer as extracted, or a reference; None for an abstention.
        b: the other one.
        options: as in `extract_answer`.

    Returns:
        True when they would be one vote.

    Raises:
        ValueError: more than 26 unlettered options.
    """
    key = vote_key(a, options)
    return key is not None and key == vote_key(b, options)


def vote_key(answer: str | None, options: Options = None) -> str | None:
    """Return the canonical form under which an extracted answer is counted; None when it abstains.

    Args:
        answer: as extracted; None for an abstention.
        options: as in `extract_answer`.

    Raises:
        ValueError: more than 26 unlettered options.
    """
    return normalise_answer(answer, options) or None if answer else None


def _options_by_letter(options: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    if isinstance(options, Mapping):
        return dict(options)
    if len(options) > len(ascii_uppercase):
        raise ValueError(f"{len(options)} options without letters; pass a dict to name more than 26")
    return dict(zip(ascii_uppercase, options, strict=False))


def _find_option(form: str, options: dict[str, str]) -> str | None:
    """Return the letter of the option that a canonical form names by its letter, its text, or both."""
    letters: dict[str, str] = {}
    texts: dict[str, str] = {}
    for letter, text in options.items():
        letters.setdefault(_canonical_free_answer(letter), letter)
        texts.setdefault(_canonical_free_answer(text), letter)
    for letter, text in options.items():
        texts.setdefault(_canonical_free_answer(f"{letter} {text}"), letter)
    if form in letters or form in texts:
        return letters.get(form) or texts.get(form)
    named = _NAMED_OPTION.match(form)
    return letters.get(named[1]) if named else None


def _canonical_free_answer(answer: str) -> str:
    """Return the canonical form of an answer without options."""
    text = " ".join(answer.split())
    return text if len(text) > MAX_SHORT_ANSWER else _canonical_value(_strip_layers(_fold_unicode(text)))


def _fold_unicode(text: str) -> str:
    """Return a text in lower case, in one of its Unicode spellings, without invisible characters."""
    visible = "".join(c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    # Before NFKC, which would make 102 of 10² and 11/2 of 1½.
    marked = _SUPERSCRIPT_DIGITS.sub(lambda digits: "^" + digits.group(), visible)
    spaced = _BEFORE_VULGAR_FRACTION.sub(" ", marked)
    folded = unicodedata.normalize("NFKC", spaced).translate(_ASCII_OF_LOOKALIKES).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def _strip_layers(text: str) -> str:
    """Remove what surrounds an answer, layer by layer. Each step shortens the text, so the loop ends."""
    while True:
        shorter = text
        for pattern, replacement in _LATEX_RULES:
            shorter = pattern.sub(replacement, shorter)
        shorter = _strip_punctuation(_strip_wrapper(shorter))
        shorter = _fold_unicode(_LEADING_ARTICLE.sub("", shorter, count=1))
        if len(shorter) >= len(text):
            return shorter
        text = shorter


def _strip_wrapper(text: str) -> str:
    """Remove one pair of brackets, quotation marks or markdown around the whole."""
    for wrapper in _WRAPPERS:
        left, right = (wrapper, wrapper) if len(set(wrapper)) == 1 else (wrapper[0], wrapper[1])
        inner = text[len(left) : -len(right)]
        # (a) and (b) is not wrapped, and (1, 2) is a point or an interval that [1, 2] is not.
        is_one_span = left not in inner and right not in inner and (left == right or "," not in inner)
        if inner and is_one_span and text.startswith(left) and text.endswith(right):
            return inner
    return text


def _strip_punctuation(text: str) -> str:
    """Remove punctuation around the whole, but for a factorial's mark and a decimal point; a text of it alone stays."""
    core = text.rstrip(" .,;:?!。")
    if core[-1:].isdigit() and text[len(core) :].startswith("!"):
        core += "!"  # a factorial
    without_lead = core.lstrip(" .,;:?!=。")
    if core.endswith("." + without_lead) and without_lead[:1].isdigit():
        without_lead = "." + without_lead  # .5
    return without_lead or text


def _canonical_value(text: str) -> str:
    """Return the canonical form of a verdict, a quantity or a list of quantities; all else stays as it is."""
    verdict = _YES_OR_NO.fullmatch(text) or _YES_OR_NO_SENTENCE.fullmatch(text)
    if verdict:
        return "yes" if verdict[1] in ("yes", "true") else "no"
    whole = canonical_quantity(text)
    if whole is not None:
        return whole
    items = [item.strip() for item in text.split(",")]
    quantities = [form for item in items if (form := canonical_quantity(item)) is not None]
    return ", ".join(quantities if len(quantities) == len(items) else items).strip()
