"""The canonical form of a short answer without options: what kind of answer it is, and its form by that kind.

    >>> canonical_answer("**Three centimetres.**"), canonical_answer("(A) and (C)"), canonical_answer("Yes. It is red.")
    ('3 cm', 'a, c', 'yes')

The kinds, in the order in which they are tried: a verdict, an option's letter, a time or date, a quantity, an equation,
a bracketed list, a list, an expression, a text. Each has rules of its own, so that no rule merges across kinds.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from avis.mathematics import canonical_expression
from avis.quantities import canonical_quantity
from avis.times import canonical_time
from avis.units import differs_by_case
from avis.words import LETTER, PLAIN_WORDS, is_option_text

# A longer answer is prose. It is compared as it stands: the rules below are for short answers, and Unicode's
# own normalisation is quadratic on long runs of combining marks.
MAX_SHORT_ANSWER = 1000
MAX_DEPTH = 20

# ------------------------------------------------------------------------------------------------- folding

_SUPERSCRIPTS = re.compile("[⁰¹²³⁴-⁾ⁿⁱ]+")
_SUBSCRIPTS = re.compile("[₀-₎]+")
_BEFORE_VULGAR_FRACTION = re.compile("(?<=[0-9])(?=[¼-¾⅐-⅞↉])")
_BEFORE_NFKC = str.maketrans({"\u0345": "ι", "′": "'", "″": '"', "‴": "'''", "…": "...", "´": "'"})
_ASCII_OF_LOOKALIKES = str.maketrans("‐‑‒–—−⁄‘’“”٫٬٪、", "------/''\"\".,%,")


def fold_unicode(text: str) -> str:
    """Return a text in one of its Unicode spellings, without invisible characters, and with ASCII digits.

    Case stays, because M is not m.
    """
    visible = "".join(c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    # Before NFKC, which would make 102 of 10² and 11/2 of 1½.
    marked = _SUPERSCRIPTS.sub(lambda found: "^" + _braced(found[0]), visible.translate(_BEFORE_NFKC))
    marked = _SUBSCRIPTS.sub(lambda found: "_" + _braced(found[0]), marked)
    spaced = _BEFORE_VULGAR_FRACTION.sub(" ", marked)
    folded = unicodedata.normalize("NFKC", spaced).translate(_ASCII_OF_LOOKALIKES)
    digits = "".join(c if c.isascii() else str(unicodedata.decimal(c, c)) for c in folded)
    return " ".join(unicodedata.normalize("NFKC", digits).replace("''", '"').split())


def _braced(script: str) -> str:
    return script if len(script) == 1 else f"{{{script}}}"


def _fold_case(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


# --------------------------------------------------------------------------------------- what stands around

_LATEX_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|textstyle|limits)(?![A-Za-z])\.?|\\[()\[\]!]", ""),
        (r"(?<!\\)\\[,;:> ]|\\q?quad(?![a-z])|(?<=[\w}])~(?=[\\\w])", " "),
        (r"\\([$%#&])", r"\1"),
        (r"\{,\}", ","),
        (r"\^ ?(?:\\circ(?![a-z])|\{ ?\\circ ?\})|\\degree(?![a-z])", "°"),
        (r"\\pi(?![a-z])", "π"),
        (r"\\leq?(?![a-z])|<=", "≤"),
        (r"\\geq?(?![a-z])|>=", "≥"),
        (r"\\neq?(?![a-z])|!=", "≠"),
        (r"\\lt(?![a-z])", "<"),
        (r"\\gt(?![a-z])", ">"),
        (r"\^\{(-?[0-9]+|.)\}", r"^\1"),
        (r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|it|rm|sf)|mbox|boxed|fbox|operatorname)\{([^{}]*)\}", r"\1"),
        (r"\$\$([^$]*)\$\$", r"\1"),
        (r"(?<![0-9\\$A-Z])\$(?=[^\s$])([^$]*)(?<=[^\s$\\])\$(?![0-9$])", r"\1"),
        (r"(?<![*\w])\*\*(?=[^\s*])([^*]*)(?<=[^\s*])\*\*(?![*\w])", r"\1"),
        (r"\A(\w+)\)\Z", r"\1"),
    ]
]
_WRAPPERS = "() [] {} ** __ $$ $ ' \" ` * _".split()
_LEADING_ARTICLE = re.compile(
    r"\A(?:the |an? (?!(?:second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|half)\b))"
    r"(?=[^\W\d_]{2}|[A-Za-z]\.|[0-9]+(?:st|nd|rd|th)\b)(?!(?:and|or)\b)",
    re.IGNORECASE,
)
_FACTORIAL = re.compile(r"(?:[0-9)]|(?<![^\W\d_])[a-z])(!+)")


def _strip_layers(text: str) -> str:
    """Remove what surrounds an answer, layer by layer. Each step shortens the text, so the loop ends."""
    while True:
        shorter = text
        for pattern, replacement in _LATEX_RULES:
            shorter = pattern.sub(replacement, shorter)
        shorter = _strip_punctuation(_strip_wrapper(shorter))
        shorter = fold_unicode(_LEADING_ARTICLE.sub("", shorter, count=1))
        if len(shorter) >= len(text):
            return shorter
        text = shorter


def _strip_wrapper(text: str) -> str:
    """Remove one pair of brackets, quotation marks or markdown around the whole."""
    for wrapper in _WRAPPERS:
        left, right = (wrapper, wrapper) if len(set(wrapper)) == 1 else (wrapper[0], wrapper[1])
        inner = text[len(left) : -len(right)]
        # (a) and (b) is not wrapped, and (1, 2) is a point or an interval that [1, 2] is not.
        is_one_span = left not in inner and right not in inner and (left == right or not set(",;") & set(inner))
        if inner and is_one_span and text.startswith(left) and text.endswith(right) and not inner.endswith("\\"):
            return inner
    return text


def _strip_punctuation(text: str) -> str:
    """Remove punctuation around the whole, but for a factorial's mark and a decimal point; a text of it alone stays."""
    core = text.rstrip(" .,;:?!。")
    if core and (factorial := _FACTORIAL.match(text, len(core) - 1)):
        core += factorial[1]
    without_lead = core.lstrip(" .,;:?!=。")
    if core.endswith("." + without_lead) and without_lead[:1].isdigit():
        without_lead = "." + without_lead  # .5
    return without_lead or text


# --------------------------------------------------------------------------------------------------- kinds

_VERDICT = re.compile(r"(yes|true)|no|false", re.IGNORECASE)
_VERDICT_SENTENCE = re.compile(
    r"(yes|true|no|false)(?: ?[,.;:!] ?| - | \(|(?= (?:it|they|there|he|she|this|that|these|those)"
    r"(?:'s|'re| (?:is|are|was|were|does|do|did|has|have|can|will|isn't|aren't|doesn't|don't|cannot|can't))\b))"
    r" ?(?!yes\b|no\b|true\b|false\b)[^ ,]+ \S.*",
    re.IGNORECASE,
)
_VERDICT_LINE = re.compile(r"\A([\s*_]{0,9}(?:yes|no|true|false)[*_.]{0,9})[ \t]{0,9}\n\s{0,9}(?=\w)", re.IGNORECASE)
_SECOND_VERDICT = re.compile(r"[,.;:] ?(?:yes|no|true|false)\b", re.IGNORECASE)
_NUMBERED = re.compile(r"no\.? ?[0-9]", re.IGNORECASE)
_NAMED_LETTER = re.compile(
    rf"(?:options?|choices?|answers?|the letter|letter)(?: is|:)? [(\[]?({LETTER})[)\]]?(?:$|[.):,]? ?[-:.(]? .*)",
    re.IGNORECASE,
)
_NAMED_LETTERS = re.compile(r"(?:both )?(?:options |choices |answers |letters )?(?:both )?", re.IGNORECASE)
_LETTER_LIST = re.compile(r"[(\[]?([A-Za-z])[)\]]?(?:(?: ?[,;&] ?|,? and )[(\[]?[A-Za-z][)\]]?)+(?: only)?")
_LETTER_WITH_TEXT = re.compile(
    r"(?:[(\[]([A-Ja-j])[)\]]|([A-Ja-j])\.?\)|([A-J])(?:[.:]| -)|([a-j])[.:])(?: (?=\S)|$)(.*)"
)
_EQUATION = re.compile(r" ?(=|<|>|≤|≥|≠|≈|\\approx(?![a-z])) ?")
_SEVERAL = re.compile(r",| and | & ", re.IGNORECASE)
_VALUE_OF = re.compile(r"\A(?:the )?value of (\S+) (?:is|equals) (?=\S)", re.IGNORECASE)
_OPENING, _CLOSING = "([{", ")]}"
_AND = re.compile(r",? and |,? ?& ?", re.IGNORECASE)
_FORMULA = re.compile(
    r"(?:\(?[A-Z][a-z]?(?:_?\{?[0-9]+\}?)?(?:\)(?:_?\{?[0-9]+\}?)?)?){2,}|(?:[HNOFSPCI]|Cl|Br)_\{?[0-9]\}?"
)
_SUBSCRIPT_DIGITS = re.compile(r"_\{?([0-9]+)\}?")
_INITIALS = re.compile(r"(?<!\S)(?:(?:[a-z]\. ?){2,}|(?:[a-z]\. ?)+[a-z]\b(?=$|,| ))")
_NAME_RULES = [
    (re.compile(r"\A(?:st\.?|saint) (?=[a-z])"), "saint "),
    (re.compile(r"\A(?:mt\.?|mount) (?=[a-z])"), "mount "),
    (re.compile(r"\A(?:dr\.?|doctor) (?=[a-z])"), "doctor "),
    (re.compile(r"(?<!\S)(?:number|no\.?) ?(?=[0-9])"), "no. "),
    (re.compile(r"(?<!\S)fig\.? ?(?=[0-9])"), "figure "),
    (re.compile(r"(?<!\S)vol\.? ?(?=[0-9])"), "volume "),
    (re.compile(r"(?<!\S)ch\.? ?(?=[0-9])"), "chapter "),
    (re.compile(r"(?<!\S)ph\.d\b"), "phd"),
    # Not of "a.", which would become an article.
    (re.compile(r"(?<!\S)([b-z]|mrs?|ms|sgt|lt|col|gen|prof|rev|gov|sen|jr|sr|vs|inc|co|ltd)\.(?= \S|\Z)"), r"\1"),
]


def canonical_answer(answer: str) -> str:
    """Return the canonical form of an answer without options.

    Args:
        answer: of any length; one longer than `MAX_SHORT_ANSWER` characters is prose, and only its white space is
            normalised.
    """
    text = " ".join(_VERDICT_LINE.sub(r"\1. ", answer).split())
    if len(text) > MAX_SHORT_ANSWER:
        return text
    return _canonical_short(text)


@lru_cache(maxsize=10_000)
def _canonical_short(text: str) -> str:
    """Return the canonical form of a short text. Rollouts say the same again and again, so forms are remembered."""
    form = _canonical_once(text)
    for _ in range(4):  # odd strings may lose a mark that made them mathematics
        again = _canonical_once(form)
        if again == form:
            break
        form = again
    return form


def _canonical_once(text: str) -> str:
    text = _strip_layers(fold_unicode(text))
    for read in (_read_verdict, _read_letter, canonical_time):
        form = read(text)
        if form is not None:
            return form
    return _canonical_value(text)


def _canonical_value(text: str, is_item: bool = False) -> str:
    """Return the canonical form of a quantity, an equation, a list, an expression or a text."""
    readers: tuple[Callable[[str], str | None], ...] = (canonical_quantity, _read_equation, _read_brackets)
    if not is_item:
        readers += (_read_list,)
    for read in (*readers, _read_formula, canonical_expression):
        form = read(text)
        if form is not None:
            return form
    return _canonical_text(text)


def _read_verdict(text: str) -> str | None:
    """Return yes or no for a verdict, alone or with what goes on after it."""
    verdict = _VERDICT.fullmatch(text)
    if not verdict and not _NUMBERED.match(text) and not _SECOND_VERDICT.search(text):
        verdict = _VERDICT_SENTENCE.fullmatch(text)
    if not verdict:
        return None
    return "yes" if (verdict[1] or "no").casefold() in ("yes", "true") else "no"


def _read_letter(text: str) -> str | None:
    """Return an option's letter, which may have its text behind it, or a list of letters."""
    lead = _NAMED_LETTERS.match(text)
    letters = text[lead.end() :] if lead else text
    if _LETTER_LIST.fullmatch(letters):
        return ", ".join(re.findall("[a-z]", _AND.sub(",", letters).replace(" only", "").casefold()))
    named = _NAMED_LETTER.fullmatch(text)
    if named:
        return named[1].casefold()
    with_text = _LETTER_WITH_TEXT.fullmatch(text)
    if with_text is None:
        return None
    in_brackets, before_bracket, upper, lower, rest = with_text.groups()
    is_sure = (
        (in_brackets or before_bracket) and re.match(r"[\w\"'$\\(-]", rest) and not re.match(r"(?:and|or)\b", rest)
    )
    is_year = lower == "c" and re.match("[0-9]{3,4}\\b", rest)  # c. 1900
    if (
        (is_sure or is_option_text(rest, bool(lower)))
        and not is_year
        and not re.search(r"(?:^|[ ,;(])[A-Ja-j][):]", rest)
    ):
        return (in_brackets or before_bracket or upper or lower).casefold()
    return None


def _read_equation(text: str) -> str | None:
    """Return an equation or inequality side by side."""
    parts = _split_outside_brackets(_VALUE_OF.sub(r"\1 = ", text), _EQUATION)
    if len(parts) < 3 or not all(part.strip() for part in parts) or _SEVERAL.search(text) and _read_list(text):
        return None
    sides = [_canonical_side(side.strip()) for side in parts[::2]]
    signs = [sign.strip().replace("\\approx", "≈") for sign in parts[1::2]]
    return sides[0] + "".join(f" {sign} {side}" for sign, side in zip(signs, sides[1:], strict=True))


def _canonical_side(side: str) -> str:
    """Return one side of an equation. Names of one or two letters keep their case: R is not r."""
    if re.fullmatch(r"[^\W\d_]{1,2}|[A-Z]{3}", side):
        return side
    return _canonical_value(side, is_item=True)


def _read_brackets(text: str) -> str | None:
    """Return a point, an interval or a set: the brackets with their canonical items, those of a set in order."""
    text = text.replace("\\{", "{").replace("\\}", "}")
    if len(text) < 3 or text[0] not in _OPENING or text[-1] not in _CLOSING:
        return None
    if "," not in text and ";" not in text or any(map(_depth_changes(text), range(1, len(text) - 1))):
        return None
    items = _split_list(text[1:-1])
    if items is None or len(items) < 2:
        return None
    forms = [_canonical_value(item, is_item=True) for item in items]
    return text[0] + ", ".join(sorted(forms) if text[0] == "{" else forms) + text[-1]


def _depth_changes(text: str) -> Callable[[int], bool]:
    """Return whether, at an index, the outermost bracket of a text is closed or too many are open: as a function."""
    depths, depth = [], 0
    for character in text:
        depth += (character in _OPENING) - (character in _CLOSING)
        depths.append(depth)
    return lambda index: depths[index] <= 0 or depths[index] > MAX_DEPTH


def _split_outside_brackets(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split a text as `re.split` does, but not inside of brackets. Brackets that do not match count as they stand."""
    depth, start, position = 0, 0, 0
    parts: list[str] = []
    while position < len(text):
        found = separator.match(text, position) if depth <= 0 else None
        if found and found.end() > found.start():
            parts += [text[start:position], found[0]]
            start = position = found.end()
            continue
        depth += (text[position] in _OPENING) - (text[position] in _CLOSING)
        position += 1
    return [*parts, text[start:]]


def _split_list(text: str) -> list[str] | None:
    """Return the items of a list; None for a text whose commas cannot be told from those within numbers."""
    if len(parts := _split_outside_brackets(text, re.compile(" ?; ?"))) > 1:
        items = [part.strip() for part in parts[::2]]
        return items if all(items) else None
    parts = _split_outside_brackets(text, _AND)[::2]
    spaced = [item for part in parts for item in _split_outside_brackets(part, re.compile(" ?, +"))[::2]]
    items = []
    for item in spaced:
        pieces = _split_outside_brackets(item, re.compile(" ?,"))[::2]
        is_number = len(spaced) > 1 and "," in item and canonical_quantity(item) is not None
        if not is_number and any(re.fullmatch("0[0-9]+|", piece) for piece in pieces):
            return None
        items += [item] if is_number else pieces
    items = [item.strip() for item in items]
    return items if all(items) else None


def _read_list(text: str) -> str | None:
    """Return a list, its items in canonical form and in their order."""
    if "\\begin" in text:
        return None
    items = _split_list(re.sub(r"\Aboth ", "", text, flags=re.IGNORECASE))
    if items is None or len(items) < 2:
        return None
    forms = [_canonical_item(_LEADING_ARTICLE.sub("", item, count=1)) for item in items]
    # Of two words, "and" and a comma are not the same: Paris and France, Paris, France.
    is_atomic = all(
        " = " in form or form in PLAIN_WORDS or not form.isalpha() and canonical_quantity(form) for form in forms
    )
    is_joined = len(forms) == 2 and not is_atomic and "," not in text and ";" not in text
    return (" and " if is_joined else ", ").join(forms)


def _canonical_item(item: str) -> str:
    verdict = _VERDICT.fullmatch(item)
    if verdict:
        return "yes" if verdict[1] else "no"
    return canonical_time(item) or _canonical_value(item, is_item=True)


def _read_formula(text: str) -> str | None:
    """Return a chemical formula without the marks of subscripts: H_2O is H2O."""
    return _fold_case(_SUBSCRIPT_DIGITS.sub(r"\1", text)) if "_" in text and _FORMULA.fullmatch(text) else None


def _canonical_text(text: str) -> str:
    """Return words in lower case, initials without their points, and a few abbreviated names in full."""
    if len(text) > 1 and differs_by_case(text):
        return text  # MW is not mW without a number either
    form = _fold_case(text)
    form = _INITIALS.sub(_join_initials, form).strip()
    for pattern, replacement in _NAME_RULES:
        form = pattern.sub(replacement, form)
    return form


def _join_initials(found: re.Match[str]) -> str:
    letters = re.sub("[. ]", "", found[0])
    return letters + " " * found[0].endswith(" ")
