"""Canonical forms of numbers with and without a unit, as they stand in short answers::

    >>> canonical_quantity("three centimetres"), canonical_quantity("1,200.50 $"), canonical_quantity("6/4")
    ('3 cm', '1200.5 dollars', '1.5')

Two spellings share a form only when they mean the same: "3 cm" is neither "3 m" nor "3". `avis.numerals` reads numbers,
`avis.units` reads units.
"""

import re

from avis.numerals import read_decimal_comma, read_number, read_ordinal
from avis.units import CURRENCY_SIGN, canonical_unit, differs_by_case, is_currency

_ROUGHLY = re.compile(
    r"(?:c\. ?(?=[0-9]{3,4}\b)|(?:approximately|approx\.?|about|around|roughly|circa|ca\.?)(?= )|[~≈∼]"
    r"|\\(?:approx|sim)(?![a-z])) ?",
    re.IGNORECASE,
)
_SIGN = re.compile(r"\+|-|±|\\pm(?![a-z]) ?|(?:minus|negative) ", re.IGNORECASE)
_SCALE_LETTER = re.compile(r" ?(k|m|mn|b|bn|t|tn)\b", re.IGNORECASE)
_SCALE_OF_LETTER = {"k": "e3", "m": "e6", "b": "e9", "t": "e12"}
_RANGE_SIGN = re.compile(r" - (?![-+])|(?<![^\W\d_])-(?![-+])|-(?![-+]|[^\W\d_])| to | through | and ", re.IGNORECASE)
_RANGE_START = re.compile(r"(between |from )?(?=[^ ])", re.IGNORECASE)
_NO_NOUN = re.compile(r" and |\A pi\Z", re.IGNORECASE)
_RATIO = re.compile(r"[0-9]+(?:\.[0-9]+)?(?: ?: ?[0-9]+(?:\.[0-9]+)?)+")
# A larger unit and the smaller one that may follow it, as in 5 ft 10 in.
_SMALLER = {"ft": ("in",), "h": ("min", "s"), "min": ("s",), "lb": ("oz",), "m": ("cm",), "km": ("m",), "kg": ("g",)}
_SMALLER |= {"days": ("h",), "years": ("months", "days"), "weeks": ("days",), "months": ("days",)}
_SMALLER |= {"dollars": ("cents",), "euros": ("cents",), "pounds": ("pence",)}
_SMALLER_PART = re.compile(r" ?([^\W\d_]+\.?|'|,? and )(?:,? and |, ?| )?(?=[0-9])")


def canonical_quantity(text: str) -> str | None:
    """Return the canonical form of a number with an optional sign, currency, unit or noun, or of a range or ratio.

    Args:
        text: in its own case, with single spaces, as `avis.canonical` has brought it.

    Returns:
        The form; None for all else.
    """
    roughly = _ROUGHLY.match(text)
    form = _canonical_exact(text[roughly.end() :] if roughly else text)
    return "≈" + form if roughly and form else form


def _canonical_exact(text: str) -> str | None:
    """Return the form of a quantity that is not said to be a rough one."""
    if _RATIO.fullmatch(text):
        return text.replace(" ", "")
    rank, rest = read_ordinal(text)
    if rank is not None and (not rest or rest[0] == " "):
        return rank + _phrase(rest)
    form = _read_range(text)
    if form is not None:
        return form
    found = _read_quantity(text)
    return None if found is None else _format(*found)


def _format(number: str, unit: str) -> str:
    """Return a number with what follows it."""
    return f"{number} {unit}" if unit[:1].isalpha() else number + unit


def _read_quantity(text: str) -> tuple[str, str] | None:
    """Return the number and the unit or the phrase of a quantity."""
    sign = _SIGN.match(text)
    start = sign.end() if sign else 0
    currency = CURRENCY_SIGN.match(text, start)
    if currency:
        start = currency.end() + text.startswith(" ", currency.end())
        sign = sign or _SIGN.match(text, start)
        start += len(sign[0]) if sign and sign.start() == start else 0
    found = _read_amount(text[start:], canonical_unit(currency[0]) if currency else None)
    if found is None or not sign or sign[0] == "+" or found[0] == "0":
        return found
    number, unit = found
    if number[0] == "-":
        return None
    return ("±" if sign[0][0] in "±\\" else "-") + number, unit


def _read_amount(text: str, currency: str | None, parts: int = 1) -> tuple[str, str] | None:
    """Return the number and the unit of a quantity without a sign; `currency` stood before the number.

    It is the part of this number of a quantity in larger and smaller units, of which there are three at most.
    """
    number, rest = read_number(text)
    if number is None:
        return None
    if rest[:1] == ",":
        comma_number, comma_rest = read_decimal_comma(text, lakhs=currency == "rupees")
        if comma_number is not None and (currency or canonical_unit(comma_rest)):
            number, rest = comma_number, comma_rest
    if currency:
        scale = _SCALE_LETTER.match(rest)
        if scale and "/" not in number:
            number = read_number(number + _SCALE_OF_LETTER[scale[1][0].lower()])[0] or number
            rest = rest[scale.end() :]
        if rest.strip().casefold() in ("usd", "us dollars", "dollars") and currency == "dollars":
            rest = ""
        if rest and canonical_unit(currency + rest) is None:
            return None
        return number, canonical_unit(currency + rest) or currency
    if not rest:
        return number, ""
    unit = canonical_unit(rest)
    if unit is not None:
        return number, unit
    return (_read_smaller(number, rest, parts + 1) if parts < 3 else None) or _read_noun(number, rest)


def _read_noun(number: str, rest: str) -> tuple[str, str] | None:
    """Return a number with a noun, or with a symbol whose case is kept."""
    if rest[0] == " " and rest[1:3].isalpha() and len(rest) > 2 and "," not in rest and not _NO_NOUN.search(rest):
        return number, _phrase(rest)
    if rest.isalpha() and differs_by_case(rest):
        return number + rest, ""
    return None


def _phrase(rest: str) -> str:
    """Return words in lower case, but for those that may be units of another case."""
    return " ".join(word if differs_by_case(word) else word.casefold() for word in rest.split(" "))


def _read_smaller(number: str, rest: str, parts: int) -> tuple[str, str] | None:
    """Return a quantity in a larger and a smaller unit, such as 5 ft 10 in."""
    larger = _SMALLER_PART.match(rest)
    unit = larger and canonical_unit(larger[1])
    if not larger or unit not in _SMALLER:
        return None
    smaller = _read_amount(rest[larger.end() :], None, parts)
    if smaller is None or smaller[1].split(" ")[0] not in _SMALLER[unit]:
        return None
    return number, f"{unit} {_format(*smaller)}"


def _read_range(text: str) -> str | None:
    """Return the form of a range of two quantities."""
    start = _RANGE_START.match(text)
    word = (start[1] or "").casefold() if start else ""
    begin = len(word)
    for sign in _RANGE_SIGN.finditer(text, begin + 1):
        is_between = sign[0].casefold() == " and "
        if is_between != (word == "between "):
            continue
        left, right = _read_quantity(text[begin : sign.start()]), _read_quantity(text[sign.end() :])
        if left is None or right is None or (word and sign[0].strip() == "-"):
            continue
        (low, low_unit), (high, high_unit) = left, right
        if high_unit == low_unit or not low_unit or (is_currency(low_unit) and not high_unit):
            return _format(f"{low}-{high}", high_unit or low_unit)
    return None
