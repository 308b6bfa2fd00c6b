"""Units and currencies, as they stand after a number in short answers::

    >>> canonical_unit("kilometres per hour"), canonical_unit("MW"), canonical_unit("mW"), canonical_unit("m s^-1")
    ('km/h', 'MW', 'mW', 'm/s')

A symbol is read with its case, because MW is not mW. Another case is admitted only where one symbol alone fits: KG is
kg.
"""

import re
from collections import Counter

# By symbol, the SI prefixes that are in use with it, and its name. An empty name: the symbol alone.
_SYMBOLS = {
    "m": ("n μ m c d k M", "metre meter"),  # not pm, which is an hour's
    "g": ("n μ m c k M", "gram gramme"),
    "s": ("p n μ m", "second"),
    "A": ("p n μ m k", "ampere amp"),
    "K": ("n μ m", "kelvin"),
    "mol": ("n μ m k", "mole"),
    "M": ("n μ m", "molar"),
    "Hz": ("m k M G T", "hertz"),
    "N": ("μ m k M", "newton"),
    "Pa": ("m h k M G", "pascal"),
    "J": ("μ m k M G", "joule"),
    "W": ("n μ m k M G T", "watt"),
    "Wh": ("m k M G T", ""),
    "C": ("n μ m", "coulomb"),
    "V": ("n μ m k M", "volt"),
    "F": ("p n μ m", "farad"),
    "Ω": ("m k M G", "ohm"),
    "S": ("n μ m", "siemens"),
    "T": ("n μ m", "tesla"),
    "H": ("n μ m", "henry"),
    "L": ("n μ m c d k M", "litre liter"),
    "eV": ("m k M G T", "electronvolt"),
    "B": ("k M G T P", "byte"),
    "bit": ("k M G T", "bit"),
    "cal": ("k", "calorie"),
    "Bq": ("k M G T", "becquerel"),
    "Sv": ("n μ m", "sievert"),
    "Gy": ("m", "gray"),
    "lm": ("k", "lumen"),
    "lx": ("k", "lux"),
    "bar": ("m", "bar"),
    "dB": ("", "decibel"),
    "dBm": ("", ""),
    "pH": ("", ""),
}
_PREFIX_NAMES = dict(
    zip(
        "p n μ m c d h k M G T P".split(),
        "pico nano micro milli centi deci hecto kilo mega giga tera peta".split(),
        strict=True,
    )
)
# By canonical unit, its other spellings, in any case.
_SPELLINGS = {
    "%": "percent, per cent, pct",
    "°": "degree, degrees, deg",
    "°C": "degree celsius, degrees celsius, degrees c, ° c, ° celsius, celsius, degrees centigrade",
    "°F": "degree fahrenheit, degrees fahrenheit, degrees f, ° f, ° fahrenheit, fahrenheit",
    "picometres": "picometre, picometer, picometers",
    "in": 'inch, inches, in., "',
    "ft": "foot, feet, ft., '",
    "yd": "yard, yards, yds",
    "mi": "mile, miles",
    "lb": "lbs, lb., lbs.",
    "oz": "ounce, ounces, oz.",
    "gal": "gallon, gallons",
    "s": "sec, secs, sec.",
    "min": "mins, minute, minutes, min.",
    "h": "hr, hrs, hour, hours, hr., hrs.",
    "days": "day",
    "weeks": "week, wk, wks",
    "months": "month, mo, mos",
    "years": "year, yr, yrs, yr., yrs.",
    "years old": "year old, year-old, years-old, yrs old",
    "ha": "hectare, hectares",
    "rpm": "revolutions per minute",
    "mi/h": "mph",
    "km/h": "kph, kmh, kmph",
    "px": "pixel, pixels",
    "cm^3": "cc",
    "Mbit/s": "mbps",
    "rad": "radian, radians",
    "eV": "electron volt, electron volts",
    "Å": "angstrom, angstroms",
    "dollars": "dollar, bucks, $, us$, usd, us dollar, us dollars, u.s. dollars",
    "cents": "cent, ¢",
    "euros": "euro, €, eur",
    "pounds": "pound, £, gbp, pounds sterling, pound sterling",
    "pence": "penny",
    "yen": "¥, jpy, 円",
    "yuan": "cny, rmb, 元",
    "rupees": "rupee, ₹, inr, rs, rs.",
    "won": "₩, krw",
    "rubles": "ruble, rouble, roubles, ₽, rub",
    "cad": "c$, ca$, canadian dollars",
    "aud": "a$, au$, australian dollars",
    "hkd": "hk$",
    "brl": "r$",
    "chf": "swiss francs",
}
CURRENCY_SIGN = re.compile(
    r"(?:US|CA|AU|HK|[CAR])?\$|[€£¥₹₩₽]|(?:USD|EUR|GBP|JPY|CNY|RMB|INR|KRW|CAD|AUD|CHF)(?= ?[0-9])|Rs\.?(?= ?[0-9])"
)
_CURRENCIES = frozenset("dollars euros pounds yen yuan rupees won rubles cad aud hkd brl chf".split())

_EXACT = {prefix + symbol: prefix + symbol for symbol, (prefixes, _) in _SYMBOLS.items() for prefix in prefixes.split()}
_EXACT |= {symbol: symbol for symbol in _SYMBOLS}
_EXACT |= {spelling.replace("L", "l"): spelling for spelling in list(_EXACT) if spelling.endswith("L")}
_EXACT |= {prefix + "b": prefix + "bit" for prefix in "kMGT"} | {unit: unit for unit in _SPELLINGS}
_NAMES = {
    prefix_name + name + plural: prefix + symbol
    for symbol, (prefixes, names) in _SYMBOLS.items()
    for name in names.split()
    for prefix, prefix_name in [("", ""), *((prefix, _PREFIX_NAMES[prefix]) for prefix in prefixes.split())]
    for plural in ("", "s")
}
_NAMES |= {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings.split(", ")}
# Where one symbol alone fits in any case; a symbol of one letter has to be exact, but for V and W.
_HOW_MANY = Counter(spelling.casefold() for spelling in _EXACT)
_NAMES |= {
    spelling.casefold(): unit
    for spelling, unit in _EXACT.items()
    if _HOW_MANY[spelling.casefold()] == 1 and (len(spelling) > 1 or spelling in "VW")
}

_LENGTHS = frozenset("m mm cm dm km in ft yd mi".split())
_POWER_WORDS = [
    (re.compile(r"\b(?:square|sq\.?) ([^\W\d_]+)", re.IGNORECASE), r"\1^2"),
    (re.compile(r"\b(?:cubic|cu\.?) ([^\W\d_]+)", re.IGNORECASE), r"\1^3"),
    (re.compile(r"\b([^\W\d_]+) squared\b", re.IGNORECASE), r"\1^2"),
    (re.compile(r"\b([^\W\d_]+) cubed\b", re.IGNORECASE), r"\1^3"),
    (re.compile(r" ?(?:\bper\b|/) ?", re.IGNORECASE), "/"),
    (re.compile(r" ?(?:[·*⋅]|\\cdot) ?"), " "),
    (re.compile(r"\^\{(-?[0-9])\}"), r"^\1"),
]
_FACTOR = re.compile(r"(/| |\A)([^\W\d_]+|°[CF]?|%|[$€£¥¢₹])(?:\^(-?[1-9])|([23]))?")
MAX_UNIT = 60


def canonical_unit(text: str) -> str | None:
    """Return the canonical form of a unit, a currency, or a product of units.

    Args:
        text: without the number, in its own case, with single spaces.

    Returns:
        The form; None for what is no known unit.
    """
    text = text.strip()
    if not text or len(text) > MAX_UNIT:
        return None
    unit = _look_up(text)
    if unit is not None:
        return unit
    for pattern, replacement in _POWER_WORDS:
        text = pattern.sub(replacement, text)
    powers: Counter[str] = Counter()
    end = 0
    while end < len(text):
        factor = _FACTOR.match(text, end)
        unit = factor and _look_up(factor[2])
        if not factor or unit is None or (factor[4] and unit not in _LENGTHS):
            return None
        for part, power in _parts(unit):
            powers[part] += power * int(factor[3] or factor[4] or 1) * (-1 if factor[1] == "/" else 1)
        end = factor.end()
    return _format(powers)


def is_currency(unit: str) -> bool:
    """Return whether a canonical unit is money."""
    return unit in _CURRENCIES


def differs_by_case(text: str) -> bool:
    """Return whether a word may mean another unit in another case, as M and m: its case has to be kept."""
    folded = text.casefold()
    return _HOW_MANY[folded] > 1 or (_HOW_MANY[folded] == 1 and folded not in _NAMES)


def _look_up(text: str) -> str | None:
    return _EXACT.get(text) or _NAMES.get(text.casefold())


def _parts(unit: str) -> list[tuple[str, int]]:
    """Return the factors of a canonical unit with their powers; km/h is km and h^-1."""
    if "/" in unit:
        above, below = unit.split("/")
        return [(above, 1), (below, -1)]
    base, _, power = unit.partition("^")
    return [(base, int(power or 1))]


def _format(powers: Counter[str]) -> str | None:
    """Return a product of units, those with negative powers after a stroke."""
    above = [_power(unit, power) for unit, power in sorted(powers.items()) if power > 0]
    below = [_power(unit, -power) for unit, power in sorted(powers.items()) if power < 0]
    if above:
        return "/".join([" ".join(above), *below])
    return " ".join(f"{unit}^{power}" for unit, power in sorted(powers.items()) if power) or None


def _power(unit: str, power: int) -> str:
    return unit if power == 1 else f"{unit}^{power}"
