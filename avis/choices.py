"""Options: those given, those in a question's own text, and which of them an answer names.

>>> find_options("What is it?\\nA. cat\\nB. dog\\nAnswer with the letter.")
{'A': 'cat', 'B': 'dog'}
>>> name_option("a dog", {"A": "cat", "B": "dog"})
'B'
"""

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from avis.canonical import canonical_answer

Options = Mapping[str, str] | Sequence[str] | None

_NAMED_OPTION = re.compile(r"(?:(?:option|choice) )?[(\[]?(\w+)(?:[)\]]|[.:] | - | \(|$)")
_MARKER = re.compile(
    r"(?:(?<=[\s,;:.?!])|^|(?<=[：？。]))(?:[(（]([A-Za-z])[)）]|\**([A-Za-z])\**(?:[.):：]|、|．))\**\s*"
)
_LINE_START = re.compile(r"(?:\A|\n)[\s*_>-]*\Z")


def options_by_letter(options: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    """Return options by letter: A, B, .. for those without.

    Raises:
        ValueError: more than 26 unlettered options.
    """
    if isinstance(options, Mapping):
        return dict(options)
    if len(options) > len(ascii_uppercase):
        raise ValueError(f"{len(options)} options without letters; pass a dict to name more than 26")
    return dict(zip(ascii_uppercase, options, strict=False))


def find_options(question: str) -> dict[str, str] | None:
    """Return the options that stand in a question's text, by letter; None when there are none.

    They are lettered one after another from A (or a), two at least, on lines of their own or in one line: `A. cat`,
    `(A) cat`, `A) cat`, `A: cat`. The last such sequence counts. The last option ends with its line.

    Args:
        question: as put to the model.
    """
    markers = list(_MARKER.finditer(question))
    for first in range(len(markers) - 1, -1, -1):
        if (markers[first][1] or markers[first][2]) in "Aa" and _may_begin(question, markers[first]):
            chosen = _follow(markers[first:])
            options = _texts(question, chosen)
            if len(options) > 1 and all(options.values()):
                return options
    return None


def _may_begin(question: str, marker: re.Match[str]) -> bool:
    """Return whether options may begin here: on a new line, after a sentence, or with a letter in brackets."""
    before = question[max(0, marker.start() - 20) : marker.start()]
    return bool(
        marker[1] or _LINE_START.search(before) or before.rstrip()[-1:] in (".", "?", "!", ":", "：", "？", "。")
    )


def _follow(markers: list[re.Match[str]]) -> list[re.Match[str]]:
    """Return the markers of the letters in order, all in the style of the first."""
    chosen = markers[:1]
    for marker in markers[1:]:
        letter, last = marker[1] or marker[2], chosen[-1][1] or chosen[-1][2]
        same_style = bool(marker[1]) == bool(chosen[0][1])
        if same_style and ord(letter) == ord(last) + 1:
            chosen.append(marker)
    return chosen


def _texts(question: str, markers: list[re.Match[str]]) -> dict[str, str]:
    ends = [marker.start() for marker in markers[1:]] + [len(question)]
    texts = [question[marker.end() : end] for marker, end in zip(markers, ends, strict=True)]
    return {
        marker[1] or marker[2]: text.strip().partition("\n")[0].strip(" ,;*")
        for marker, text in zip(markers, texts, strict=True)
    }


def name_option(answer: str, options: dict[str, str]) -> str | None:
    """Return the letter of the option that an answer names by its letter, its text, or both; several are joined.

    Args:
        answer: in any spelling.
        options: by letter.

    Returns:
        The letter as the options write it; None when the answer names none.
    """
    letters: dict[str, str] = {}
    texts: dict[str, str] = {}
    for letter, text in options.items():
        letters.setdefault(canonical_answer(letter), letter)
        texts.setdefault(canonical_answer(text), letter)
    for letter, text in options.items():
        texts.setdefault(canonical_answer(f"{letter} {text}"), letter)
    form = canonical_answer(answer)
    if form in letters or form in texts:
        return letters.get(form) or texts.get(form)
    items = re.split(", | and ", form)
    if len(items) > 1:
        named = [letters.get(item) or texts.get(item) for item in items]
        if all(named):
            return ", ".join(filter(None, named))
    named_letter = _NAMED_OPTION.match(form)
    return letters.get(named_letter[1]) if named_letter else None


# "find x", "the value of x", "solve for x", "x = ?", "what is the length of AB"
_NAME = r"(\\?[A-Za-z]{1,12}(?:_\{?\w\}?)?(?: [A-Z]{1,4})?|∠ ?[A-Z]{1,3})"
_ASKED = [
    re.compile(pattern)
    for pattern in (
        r"(?:[Ff]ind|[Cc]alculate|[Cc]ompute|[Dd]etermine|[Ee]valuate|[Ww]hat is|[Ww]hat's|[Gg]ive"
        r"|[Ss]olve(?: [^.?]{1,80}?)? for)(?: the)?"
        rf"(?: (?:value|length|measure|size|degree measure|magnitude|area|angle) of)?(?: the)? \$?(?:\\\()?{_NAME}",
        rf"(?:value|length|measure|size) of \$?(?:\\\()?{_NAME}",
        rf"{_NAME}\$? ?= ?(?:\?|_+)",
        rf"[Ff]or \$?(?:\\\()?{_NAME}\$?[:,.?]",
    )
]
_SEVERAL = re.compile(r"\A\$? ?(?:,|and|or) \$?[A-Za-z]{1,2}\b")


def find_asked_names(question: str) -> set[str]:
    """Return the canonical names of the one value that a question asks for: x of "Solve for x."; empty for several.

    Args:
        question: as put to the model.
    """
    names = set()
    for pattern in _ASKED:
        for found in pattern.finditer(question[:4000]):
            if _SEVERAL.match(question[found.end() : found.end() + 12]):
                return set()
            names.add(canonical_answer(found[1]).casefold())
    return names
