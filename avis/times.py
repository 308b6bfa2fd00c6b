"""Canonical forms of times of day and dates, as they stand in short answers::

    >>> canonical_time("2:15 p.m."), canonical_time("10 AM"), canonical_time("June 5th, 2020")
    ('14:15', '10:00 am', '2020-06-05')

A time without morning or evening stays apart from one with it, unless its hour says which. A date in digits is read
only in the order of ISO 8601: 05/06/2020 may be in May or in June.
"""

import re

_MONTHS = "january february march april may june july august september october november december".split()
_MONTH_NUMBERS = {name: number for number, name in enumerate(_MONTHS, 1)}
_MONTH_NUMBERS |= {name[:3]: number for name, number in _MONTH_NUMBERS.items()} | {"sept": 9}
# Not "sun", "sat" and "wed", which are words.
_SHORT_DAYS = {"mon": "monday", "tue": "tuesday", "tues": "tuesday", "thu": "thursday", "thur": "thursday"}
_SHORT_DAYS |= {"thurs": "thursday", "fri": "friday"}

_HALF = r"(?P<half>[ap])\.? ?m\.?"
_CLOCK = re.compile(rf"(?P<hour>[0-9]{{1,2}})(?:[:.](?P<minute>[0-5][0-9])(?P<rest>:[0-5][0-9])?)? ?(?:{_HALF})")
_BARE_CLOCK = re.compile(r"(?P<hour>[01]?[0-9]|2[0-4]):(?P<minute>[0-5][0-9])(?P<rest>:[0-5][0-9])?")
_O_CLOCK = re.compile(r"(?P<hour>[0-9]{1,2}) o'clock")
_NOON_OR_MIDNIGHT = {"noon": "12:00 pm", "12 noon": "12:00 pm", "midnight": "0:00", "12 midnight": "0:00"}

_MONTH = rf"(?P<month>{'|'.join(sorted(_MONTH_NUMBERS, key=len, reverse=True))})\.?"
_DAY = r"(?P<day>0?[1-9]|[12][0-9]|3[01])(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>[12][0-9]{3})"
_DATES = [
    re.compile(pattern)
    for pattern in (
        rf"{_MONTH} (?:the )?{_DAY}(?:,? {_YEAR})?",
        rf"(?:the )?{_DAY} (?:of )?{_MONTH}(?:,? {_YEAR})?",
        rf"{_MONTH},? {_YEAR}",
        rf"{_YEAR}[-/](?P<month>0[1-9]|1[0-2])[-/](?P<day>0[1-9]|[12][0-9]|3[01])",
    )
]


def canonical_time(text: str) -> str | None:
    """Return the canonical form of a time of day, a date or a day of the week.

    Args:
        text: with single spaces.

    Returns:
        Times as 9:30, 9:30 am or 14:15; dates as 2020-06-05, 5 june or june 2020; None for all else.
    """
    text = text.casefold()
    if text in _NOON_OR_MIDNIGHT:
        return _NOON_OR_MIDNIGHT[text]
    if text in _SHORT_DAYS:
        return _SHORT_DAYS[text]
    if clock := _CLOCK.fullmatch(text) or _BARE_CLOCK.fullmatch(text) or _O_CLOCK.fullmatch(text):
        return _format_clock(clock.groupdict())
    for pattern in _DATES:
        if date := pattern.fullmatch(text):
            return _format_date(date.groupdict())
    return None


def _format_clock(parts: dict[str, str | None]) -> str | None:
    """Return a time of day. The hours of the evening have numbers of their own, those of the morning have not."""
    hour, half = int(parts["hour"] or 0), parts.get("half")
    time = f"{parts.get('minute') or '00'}{parts.get('rest') or ''}"
    if half is None:
        return f"{hour}:{time}"
    if not 1 <= hour <= 12:
        return None
    if hour == 12:
        return f"12:{time} pm" if half == "p" else f"0:{time}"
    return f"{hour + 12}:{time}" if half == "p" else f"{hour}:{time} am"


def _format_date(parts: dict[str, str | None]) -> str:
    month = parts["month"] or ""
    number = int(month) if month.isdecimal() else _MONTH_NUMBERS[month]
    day, year = parts.get("day"), parts.get("year")
    if day is None:
        return f"{_MONTHS[number - 1]} {year}"
    if year is None:
        return f"{int(day)} {_MONTHS[number - 1]}"
    return f"{year}-{number:02d}-{int(day):02d}"
