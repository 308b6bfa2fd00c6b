"""Canonical forms of numbers with and without a unit, as they stand in short answers::

    >>> canonical_quantity("three centimetres"), canonical_quantity("1,200.50 $"), canonical_quantity("6/4")
    ('3 cm', '1200.5 dollars', '1.5')

Two spellings share a form only when they mean the same: "3 cm" is neither "3 m" nor "3".
"""

import re
from itertools import pairwise
from math import gcd

_SIGN_AND_CURRENCY = re.compile(r"(\+|-|minus |negative )?(?:([$€£¥]) ?)?")
_FRACTION = re.compile(r"(?:([0-9]{1,9}) )?([0-9]{1,9}) ?/ ?([0-9]{1,9})")  # with a whole number before it or without
_DECIMAL = re.compile(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+")
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_BELOW_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_NUMBER_WORDS = {word: value for value, word in enumerate(_BELOW_TWENTY.split())}
_NUMBER_WORDS |= {word: 10 * tens for tens, word in enumerate(_TENS.split(), 2)}
_SCALE_WORDS = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_ANY_NUMBER_WORD = rf"(?:{'|'.join([*_NUMBER_WORDS, *_SCALE_WORDS, 'hundred'])})\b"
_SPELLED_NUMBER = re.compile(rf"{_ANY_NUMBER_WORD}(?:(?: and |[ -]){_ANY_NUMBER_WORD})*")

# By canonical unit, its other spellings.
_UNIT_SPELLINGS = {
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
_CANONICAL_UNITS = {
    spelling: unit for unit, spellings in _UNIT_SPELLINGS.items() for spelling in (unit, *spellings.split(", "))
}


def canonical_quantity(text: str) -> str | None:
    """Return the canonical form of a number with an optional sign, currency, unit or noun.

    Args:
        text: in lower case, with single spaces, as `avis.answers.normalise_answer` has brought it.

    Returns:
        The form; None for all else.
    """
    lead = _SIGN_AND_CURRENCY.match(text)
    assert lead is not None, "every part of the pattern is optional"
    sign, currency = lead.groups("")
    number, rest = _read_leading_number(text[lead.end() :])
    if number is None:
        return None
    if sign not in ("", "+") and number != "0":
        number = "-" + number
    if currency:
        if rest.strip() not in ("", *_SCALE_WORDS):
            return None
        rest += " " + _CANONICAL_UNITS[currency]
    if not rest:
        return number
    noun, caret, power = rest.strip().partition("^")
    if noun in _CANONICAL_UNITS:
        unit = _CANONICAL_UNITS[noun] + caret + power
        return f"{number} {unit}" if unit[0].isalpha() else number + unit
    is_phrase = rest.startswith(" ") and noun[:1].isalpha() and "," not in rest
    return number + rest if is_phrase else None


def _read_leading_number(text: str) -> tuple[str | None, str]:
    """Return the number that a text begins with, None when there is none, and the rest of the text."""
    number: str | None
    if match := _FRACTION.match(text):
        whole, top, bottom = (int(part or 0) for part in match.groups())
        number = _reduce_fraction(whole * bottom + top, bottom) if bottom else None
    elif match := _DECIMAL.match(text):
        # Digits stay text: int() refuses long ones.
        integer, _, decimals = match.group().replace(",", "").partition(".")
        number = f"{integer.lstrip('0') or '0'}.{decimals.rstrip('0')}".rstrip(".")
    elif match := _SPELLED_NUMBER.match(text):
        number = _read_number_words(match.group().replace("-", " ").split())
    else:
        return None, text
    return number, text[match.end() :]


def _reduce_fraction(top: int, bottom: int) -> str:
    """Return a fraction as the decimal that it is, or in lowest terms when its decimals do not end."""
    divisor = gcd(top, bottom)
    top, bottom = top // divisor, bottom // divisor
    # 30 places hold every decimal that ends, because `_FRACTION` admits no denominator above 2**30.
    scaled, remainder = divmod(top * 10**30, bottom)
    if remainder:
        return f"{top}/{bottom}"
    return f"{scaled // 10**30}.{scaled % 10**30:030d}".rstrip("0").rstrip(".")


def _read_number_words(words: list[str]) -> str | None:
    """Return the number of English number words; None for a sequence that is no number, such as "two three"."""
    total = group = 0
    room, scale = 1000, 10**12  # what may follow: a number below `room`, a scale below `scale`
    for previous, word in pairwise([None, *words]):
        starts = previous is None
        if word in _NUMBER_WORDS and _NUMBER_WORDS[word] < room and (_NUMBER_WORDS[word] or starts):
            group += _NUMBER_WORDS[word]
            room = 10 if _NUMBER_WORDS[word] >= 20 else 0
        elif word == "hundred" and (0 < group < 100 or starts):
            group, room = (group or 1) * 100, 100
        elif word in _SCALE_WORDS and _SCALE_WORDS[word] < scale and (group or starts) and previous != "and":
            scale = _SCALE_WORDS[word]
            total, group, room = total + (group or 1) * scale, 0, 1000
        elif word != "and" or previous not in ("hundred", *_SCALE_WORDS):
            return None
    return str(total + group)
