"""Canonical forms of numbers in digits and words::

    >>> read_number("1,200.50 cm"), read_number(r"3 \\times 10^5"), read_number("two and a half")
    (('1200.5', ' cm'), ('300000', ''), ('2.5', ''))

Numbers are exact, whatever their length: digits are never made a float.
"""

import re
from itertools import pairwise
from math import gcd

# A number of more digits is written with an exponent.
MAX_PLACES = 40

_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_BELOW_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_ORDINALS = (
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth"
)
_NUMBER_WORDS = {word: value for value, word in enumerate(_BELOW_TWENTY.split())}
_NUMBER_WORDS |= {word: 10 * tens for tens, word in enumerate(_TENS.split(), 2)}
_ORDINAL_WORDS = {word: value for value, word in enumerate(_ORDINALS.split())}
_ORDINAL_WORDS |= {word[:-1] + "ieth": value for word, value in _NUMBER_WORDS.items() if value >= 20}
_SCALE_WORDS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_ANY_NUMBER_WORD = rf"(?:{'|'.join([*_NUMBER_WORDS, *_SCALE_WORDS, 'hundred'])})\b"
_SPELLED_NUMBER = re.compile(rf"{_ANY_NUMBER_WORD}(?:(?: and |[ -]){_ANY_NUMBER_WORD})*", re.IGNORECASE)
_ORDINAL = re.compile(
    r"(?:([0-9]{1,30})(?:\^?\{?(?:st|nd|rd|th)\}?)"
    rf"|(?:({_TENS.replace(' ', '|')})[ -])?({'|'.join(_ORDINAL_WORDS)}))(?![\w}}])",
    re.IGNORECASE,
)
_PART_WORDS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4}
_PART_WORDS |= {word + plural: value for word, value in _ORDINAL_WORDS.items() if value >= 3 for plural in ("", "s")}
_PART = re.compile(
    rf"(?:({'|'.join(_NUMBER_WORDS)}|[0-9]{{1,9}}) and )?"
    rf"(?:(?:(an?)|({'|'.join(_NUMBER_WORDS)}))[ -])?({'|'.join(_PART_WORDS)})\b(?!-)",
    re.IGNORECASE,
)
_DOZEN = re.compile(r"(?:an? )?dozen\b", re.IGNORECASE)
_SCALE = re.compile(rf" ({'|'.join(_SCALE_WORDS)}|hundred)\b", re.IGNORECASE)

_FRACTION = re.compile(r"(?:([0-9]{1,9}) )?([0-9]{1,9}) ?/ ?([0-9]{1,9})(?![0-9])")
_LATEX_FRACTION = re.compile(
    r"([0-9]{1,9} ?)?\\[dtc]?frac ?(?:\{ ?(-?[0-9]{1,9}) ?\}|([0-9])) ?(?:\{ ?(-?[0-9]{1,9}) ?\}|([0-9])(?![0-9]))"
)
_DIGITS = r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
_POWER_OF_TEN = re.compile(
    rf"(?:({_DIGITS}) ?(?:[x×*·⋅]|\\times|\\cdot) ?)?10 ?(?:\^|\*\*) ?"
    r"(?:\{ ?)?([+-]?[0-9]{1,9})(?: ?\})?(?![0-9.^!])"
)
_EXPONENT = re.compile(rf"({_DIGITS})e([+-]?[0-9]{{1,9}})(?![\w.])", re.IGNORECASE)
_NOT_CUT = r"(?![0-9]|[.,'_][0-9])"
_GROUPED = [
    re.compile(pattern + _NOT_CUT)
    for pattern in (
        r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?",
        r"[1-9][0-9]{0,2}(?: [0-9]{3})+(?:\.[0-9]+)?(?! [0-9])",
        r"[1-9][0-9]{0,2}(?:['_][0-9]{3})+(?:\.[0-9]+)?",
        r"[1-9][0-9]?(?:,[0-9]{2})*,0[0-9](?:,[0-9]{2})*,[0-9]{3}(?:\.[0-9]+)?",
    )
]
_LAKHS = re.compile(r"[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}(?:\.[0-9]+)?" + _NOT_CUT)
_POINTS_AND_COMMA = re.compile(r"[1-9][0-9]{0,2}(?:(?:\.[0-9]{3})+,[0-9]+|(?:\.[0-9]{3}){2,})" + _NOT_CUT)
_DECIMAL_COMMA = re.compile(r"[0-9]+,[0-9]+" + _NOT_CUT)
_SURE_DECIMAL_COMMA = re.compile(r"0,0[0-9]*" + _NOT_CUT)
_DECIMAL = re.compile(_DIGITS)
_CJK = re.compile("([一二两三四五六七八九])?十([一二三四五六七八九])?|([零〇一二两三四五六七八九])")
_CJK_DIGITS = {
    "零": 0,
    "〇": 0,
    "一": 1,
    "二": 2,
    "两": 2,
    "三": 3,
    "四": 4,
    "五": 5,
    "六": 6,
    "七": 7,
    "八": 8,
    "九": 9,
}


def read_number(text: str) -> tuple[str | None, str]:
    """Return the number that a text begins with, and the rest of the text.

    Args:
        text: in any case, with single spaces.

    Returns:
        The number as a decimal, or in lowest terms as a fraction whose decimals do not end; None when there is none.
    """
    if match := _LATEX_FRACTION.match(text):
        whole, top, bottom = match[1] or "0", match[2] or match[3], match[4] or match[5]
        return _mixed_number(int(whole), int(top), int(bottom)), text[match.end() :]
    if match := _FRACTION.match(text):
        return _mixed_number(*(int(part or 0) for part in match.groups())), text[match.end() :]
    if match := _POWER_OF_TEN.match(text):
        return _shift(match[1] or "1", int(match[2])), text[match.end() :]
    if match := _EXPONENT.match(text):
        return _shift(match[1], int(match[2])), text[match.end() :]
    if match := _PART.match(text):
        return _read_parts(match), text[match.end() :]
    if match := _DOZEN.match(text):
        return "12", text[match.end() :]
    if match := _SPELLED_NUMBER.match(text):
        number = _read_number_words(match.group().lower().replace("-", " ").split())
        return number, text[match.end() :]
    number, end = _read_digits(text)
    if number is not None and (match := _SCALE.match(text, end)):
        return _shift(number, _SCALE_WORDS.get(match[1].lower(), 2)), text[match.end() :]
    return number, text[end:]


def read_decimal_comma(text: str, lakhs: bool = False) -> tuple[str | None, str]:
    """Return the number that a text begins with, where what follows says that its comma is a decimal one.

    Args:
        text: with single spaces.
        lakhs: digits are in groups of two, as in India.
    """
    if lakhs and (match := _LAKHS.match(text)):
        return _shift(match.group().replace(",", ""), 0), text[match.end() :]
    match = _DECIMAL_COMMA.match(text)
    return (None, text) if match is None else (_shift(match.group().replace(",", "."), 0), text[match.end() :])


def read_ordinal(text: str) -> tuple[str | None, str]:
    """Return the ordinal that a text begins with, as 1st, and the rest of the text; None when there is none."""
    match = _ORDINAL.match(text)
    if match is None:
        return None, text
    if match[1]:
        number = int(match[1])
    else:
        number = _NUMBER_WORDS[match[2].lower()] if match[2] else 0
        ones = _ORDINAL_WORDS[match[3].lower()]
        if number and not 0 < ones < 10:
            return None, text
        number += ones
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in (11, 12, 13) else 0, "th")
    return f"{number}{suffix}", text[match.end() :]


def _read_digits(text: str) -> tuple[str | None, int]:
    """Return a number in digits, and where it ends."""
    for pattern in _GROUPED:
        if match := pattern.match(text):
            return _shift(re.sub("[^0-9.]", "", match.group()), 0), match.end()
    if match := _POINTS_AND_COMMA.match(text):
        return _shift(match.group().replace(".", "").replace(",", "."), 0), match.end()
    if match := _SURE_DECIMAL_COMMA.match(text):
        return _shift(match.group().replace(",", "."), 0), match.end()
    if match := _DECIMAL.match(text):
        integer = match.group().partition(".")[0]
        if integer.startswith("0") and (len(integer) > 2 or integer == "00"):
            return match.group(), match.end()  # 007 is a name
        return _shift(match.group(), 0), match.end()
    if match := _CJK.match(text):
        tens, ones, digit = match.groups()
        number = _CJK_DIGITS[digit] if digit else 10 * _CJK_DIGITS.get(tens, 1) + _CJK_DIGITS.get(ones, 0)
        return str(number), match.end()
    return None, 0


def _shift(digits: str, places: int) -> str:
    """Return a decimal times a power of ten, without zeros at its ends. Digits stay text: int() refuses long ones."""
    if "/" in digits:
        top, bottom = map(int, digits.split("/"))
        return _reduce_fraction(top * 10**places, bottom)
    mantissa, _, exponent = digits.partition("e")
    integer, _, decimals = mantissa.partition(".")
    places += int(exponent or 0) - len(decimals)
    significant = (integer + decimals).lstrip("0")
    if not significant:
        return "0"
    places += len(significant) - len(significant.rstrip("0"))
    significant = significant.rstrip("0")
    point = len(significant) + places  # of the digits, how many stand before the decimal point
    if max(point, len(significant), -places) > MAX_PLACES:
        return f"{significant[0]}.{significant[1:]}".rstrip(".") + f"e{point - 1}"
    if point >= len(significant):
        return significant + "0" * places
    return f"{significant[: max(point, 0)] or '0'}.{'0' * -min(point, 0)}{significant[max(point, 0) :]}"


def _mixed_number(whole: int, top: int, bottom: int) -> str | None:
    if not bottom or (whole and (top < 0 or bottom < 0)):
        return None
    if bottom < 0:
        top, bottom = -top, -bottom
    sign = "-" if top < 0 else ""
    return sign + _reduce_fraction(whole * bottom + abs(top), bottom)


def _reduce_fraction(top: int, bottom: int) -> str:
    """Return a fraction as the decimal that it is, or in lowest terms when its decimals do not end."""
    divisor = gcd(top, bottom)
    top, bottom = top // divisor, bottom // divisor
    # 30 places hold every decimal that ends, because no pattern admits a denominator above 2**30.
    scaled, remainder = divmod(top * 10**30, bottom)
    if remainder:
        return f"{top}/{bottom}"
    return f"{scaled // 10**30}.{scaled % 10**30:030d}".rstrip("0").rstrip(".")


def _read_parts(match: re.Match[str]) -> str | None:
    """Return the number of words such as two thirds, a half, one and a half."""
    whole, article, count, part = (group.lower() if group else "" for group in match.groups())
    bottom = _PART_WORDS[part]
    # "third" alone is a rank and "a quarter" a coin, but "half" is a number, and so is "two and a quarter".
    is_counted = bool(count) or part == "half" or (article and not part.endswith("s") and (bottom != 4 or whole))
    if not is_counted:
        return None
    top = _NUMBER_WORDS[count] if count else 1
    number = _NUMBER_WORDS[whole] if whole in _NUMBER_WORDS else int(whole or 0)
    if whole and top >= bottom:
        return None
    return _reduce_fraction(number * bottom + top, bottom)


def _read_number_words(words: list[str]) -> str | None:
    """Return the number of English number words; None for a sequence that is no number, such as "two three"."""
    total = group = 0
    room, scale = 1000, 15  # what may follow: a number below `room`, a scale below 10**`scale`
    for previous, word in pairwise([None, *words]):
        starts = previous is None
        if word in _NUMBER_WORDS and _NUMBER_WORDS[word] < room and (_NUMBER_WORDS[word] or starts):
            group += _NUMBER_WORDS[word]
            room = 10 if _NUMBER_WORDS[word] >= 20 else 0
        elif word == "hundred" and (0 < group < 100 or starts):
            group, room = (group or 1) * 100, 100
        elif word in _SCALE_WORDS and _SCALE_WORDS[word] < scale and (group or starts) and previous != "and":
            scale = _SCALE_WORDS[word]
            total, group, room = total + (group or 1) * 10**scale, 0, 1000
        elif word != "and" or previous not in ("hundred", *_SCALE_WORDS):
            return None
    return str(total + group)
