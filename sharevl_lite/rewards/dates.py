"""Answers that are a date or a time of day, compared part by part: to the graders they are calculations or products.

    2024-1-3 is 2024-01-03      May 12, 2019 is 12th May 2019      Mar 2020 is March 2020      3:45 p.m. is 03:45 PM

Dates in digits keep the order of their parts, for nobody can tell 5/12 from 12/5.
"""

from __future__ import annotations

import re

from sharevl_lite.rewards.normalise import unwrap_text

_DIGITS = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})|(\d{1,2})([-/.])(\d{1,2})\6(\d{4})")
_MONTH = (
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    "|nov(?:ember)?|dec(?:ember)?"
)
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?:\s*,?\s*(\d{4}))?"
_DAY_FIRST = re.compile(rf"{_DAY}\s*(?:of\s)?\s*({_MONTH})\b\.?{_YEAR}", re.IGNORECASE)
_MONTH_FIRST = re.compile(rf"({_MONTH})\b\.?\s*{_DAY}(?!\d){_YEAR}", re.IGNORECASE)
_NO_DAY = re.compile(rf"({_MONTH})\b\.?{_YEAR}", re.IGNORECASE)
_TIME = re.compile(r"(\d{1,2})(?::(\d{2}))?(?::(\d{2}))?\s*([ap])\.?\s?m\.?", re.IGNORECASE)


def parse_date(answer: str) -> tuple[int, ...] | None:
    """Parts of a date in digits with a year of four (`2024-01-03`, `3/1/2024`), in order; None for anything else."""
    found = _DIGITS.fullmatch(_bare(answer))
    return None if found is None else tuple(int(part) for part in found.groups() if part and part.isdigit())


def parse_named_date(answer: str) -> tuple[str, ...] | None:
    """Month, day and year of a day or a month with its name (`May 12, 2019`, `12th May`, `Mar 2020`, `Aug`), "" for
    what is not said; None for anything else."""
    text = _bare(answer)
    if found := _DAY_FIRST.fullmatch(text):
        day, month, year = found.groups()
    elif found := _MONTH_FIRST.fullmatch(text):
        month, day, year = found.groups()
    elif found := _NO_DAY.fullmatch(text):
        month, day, year = found[1], "", found[2]
    else:
        return None
    return month[:3].lower(), day.lstrip("0"), year or ""


def parse_time(answer: str) -> tuple[str, ...] | None:
    """Hour, minute, second and half of the day of a time (`3:45 p.m.`, `12 AM`); None for anything else."""
    found = _TIME.fullmatch(_bare(answer))
    if found is None:
        return None
    hour, minute, second, half = found.groups()
    return hour.lstrip("0"), minute or "00", second or "00", half.lower()


def _bare(answer: str) -> str:
    return unwrap_text(answer).strip().rstrip(".,;")
