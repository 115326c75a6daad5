r"""Answers that are one number, compared exactly and without sympy.

Most answers of VQA and geometry data are numbers, and on numbers the symbolic graders err: mathruler reads `1 1/2` as
11/2 and rounds integers to doubles, math-verify compares decimals after rounding to six places (2e-8 equals 1e-8). So
two numbers are compared here, as fractions, and the outcome is final.

The gold says how exact the prediction must be:

* a decimal (`3.14`) accepts what rounds to it: a distance of at most half a unit of its last place;
* an integer or a fraction accepts its own value only, except that a fraction without a finite decimal expansion
  (`\frac{1}{3}`) accepts a decimal that is right to about six significant digits;
* `50\%` is 0.5, and since data sets drop the sign at will, also 50.

A recipe's `reward.numeric_tolerance` comes after that: a number within that share of the gold is right as well, by the
same rules on units and percent.

Words behind a number (see `units`): `1.2 million` and `2 thirds` are multiplied out. Two different known units disagree
(`5 cm`, `5 m`), and so do opposite directions; a missing or unknown unit is ignored, as both graders do. Exponents of
units are ignored too (`25 cm` for `25 cm^2`). Words that calculate or negate (`6 minus two`) are no units, and what
they follow is not one number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from sharevl_lite.rewards.normalise import unwrap_text
from sharevl_lite.rewards.units import directions_differ, parse_behind, units_differ

_MAX_CHARACTERS = 400
_MAX_EXPONENT = 400  # 10**exponent is computed in full
_RELATIVE_ERROR = Fraction(5, 10**6)  # of a decimal for 1/3; 0.333333 and 0.166667 are within, 0.3333 is not

_NUMBER = re.compile(
    r"""
    (?P<sign>[+-]?)\s*(?:(?:[€£¥₹]|(?:USD|EUR|GBP|INR|Rs)\.?)\s*)?
    (?:
        (?P<mixed>\d+)(?:\s*(?=\\frac)|\s+)(?P<mixed_fraction>\\frac\s*\{\d+\}\s*\{\d+\}|\d+\s*/\s*\d+)
      | (?P<repeating>\d*\.\d*\\overline\s*\{\d+\})
      | (?P<fraction>\\frac\s*\{\s*[+-]?\d+\s*\}\s*\{\s*\d+\s*\}|\d+\s*/\s*\d+)
      | (?P<decimal>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?:\ \d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)
        (?:(?:[eE]|\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*)(?P<exponent>[+-]?\d+|\{\s*[+-]?\d+\s*\}))?
    )
    (?:\s*(?P<percent>\\?%|per\ ?cent\b)|\s*[€£¥₹])?
    """,
    re.VERBOSE,
)
_RATIO = re.compile(r"\d+(?:\.\d+)?(?:(?:\s*:\s*|\s+to\s+)\d+(?:\.\d+)?)+")
_RATIO_SIGN = re.compile(r":|to")


@dataclass(frozen=True)
class Numeral:
    """One number as it was written. `face` is without the percent sign, `value` with it."""

    face: Fraction
    step: Fraction | None = None
    """Unit of the last written decimal place, on the scale of `face`; None for integers and fractions: exact."""
    percent: bool = False
    unit: str = ""
    """Name of a known unit, or empty."""
    directions: frozenset[tuple[int, int]] = frozenset()
    """Which way, as `units.Behind` has it."""

    @property
    def value(self) -> Fraction:
        """The number meant: 50% is 1/2."""
        return self.face / 100 if self.percent else self.face


def parse_numeral(answer: str, *, letters: bool = False) -> Numeral | None:
    """Read a cleaned answer as one number with an optional unit; None when it is anything else.

    With `letters` a single one is a unit as well: the m of `5 m`, which may be a factor.
    """
    if len(answer) > _MAX_CHARACTERS:
        return None
    answer = answer.strip()
    number = _NUMBER.match(answer)
    if number is None:
        return None
    behind = parse_behind(answer[number.end() :], letters=letters)
    face_and_step = _face_and_step(number)
    if behind is None or face_and_step is None:
        return None
    face, step = face_and_step
    percent = number["percent"] is not None or behind.unit == "%"
    face, step = face * behind.factor, None if step is None else step * abs(behind.factor)
    unit = "" if behind.unit == "%" else behind.unit
    return Numeral(-face if number["sign"] == "-" else face, step, percent, unit, behind.directions)


def agrees(prediction: Numeral, gold: Numeral) -> bool:
    """Whether the prediction is the gold number, as exactly as the gold was written."""
    if _units_differ(prediction, gold):
        return False
    step = gold.step / 100 if gold.step is not None and gold.percent else gold.step
    if _close(prediction.value, gold.value, step):
        return True
    return prediction.percent != gold.percent and _close(prediction.face, gold.face, gold.step)


def within(prediction: Numeral, gold: Numeral, tolerance: float) -> bool:
    """Whether the prediction is off by at most `tolerance` times the size of the gold number: 105 for 100 at 0.05."""
    if _units_differ(prediction, gold):
        return False
    share = Fraction(str(tolerance))  # 0.03 as written: the double is smaller, and 103 would be too far from 100
    pairs = [(prediction.value, gold.value)]
    if prediction.percent != gold.percent:
        pairs.append((prediction.face, gold.face))
    return any(abs(stated - meant) <= share * abs(meant) for stated, meant in pairs)


def parse_ratio(answer: str) -> tuple[str, ...] | None:
    """Terms of a ratio `3:4`, `1 : 2 : 3` or `3 to 4`, as written; None when the cleaned answer is anything else."""
    answer = unwrap_text(answer).strip()
    if _RATIO.fullmatch(answer) is None:
        return None
    return tuple(term.strip() for term in _RATIO_SIGN.split(answer))


def ratios_agree(prediction: tuple[str, ...], gold: tuple[str, ...]) -> bool:
    """Whether the ratios are equal: 6:8 is 3:4. A gold that can be a time of day (3:30) must be met literally, but
    for a zero in front (03:30)."""
    if (prediction[0].lstrip("0"), *prediction[1:]) == (gold[0].lstrip("0"), *gold[1:]):
        return True
    may_be_a_time = all(len(term) == 2 and term < "60" for term in gold[1:])
    if may_be_a_time or len(prediction) != len(gold):
        return False
    left, right = [Fraction(term) for term in prediction], [Fraction(term) for term in gold]
    if not sum(left) or not sum(right):
        return False
    return all(a * sum(right) == b * sum(left) for a, b in zip(left, right, strict=True))


def _units_differ(prediction: Numeral, gold: Numeral) -> bool:
    units = ("%" if number.percent else number.unit for number in (prediction, gold))
    return units_differ(*units) or directions_differ(prediction.directions, gold.directions)


def _close(value: Fraction, gold: Fraction, step: Fraction | None) -> bool:
    if step is not None:
        return abs(value - gold) <= step / 2
    if value == gold or _is_finite_decimal(gold):
        return value == gold
    return abs(value - gold) <= _RELATIVE_ERROR * abs(gold)


def _is_finite_decimal(value: Fraction) -> bool:
    return value.denominator > 0 and 10 ** value.denominator.bit_length() % value.denominator == 0


def _face_and_step(number: re.Match[str]) -> tuple[Fraction, Fraction | None] | None:
    """Absolute value and step of a match of `_NUMBER`; None for a zero denominator or an absurd exponent."""
    if number["repeating"] is not None:
        return _repeating(number["repeating"]), None
    if number["decimal"] is None:
        face = _fraction(number["fraction"] or number["mixed_fraction"])
        return None if face is None else (face + int(number["mixed"] or 0), None)
    digits = number["decimal"].replace(",", "").replace(" ", "").rstrip(".")
    exponent = int((number["exponent"] or "0").strip("{} "))
    if abs(exponent) > _MAX_EXPONENT:
        return None
    scale = Fraction(10) ** exponent
    places = len(digits.partition(".")[2])
    return Fraction(digits) * scale, (scale / 10**places if places else None)


def _repeating(text: str) -> Fraction:
    r"""`0.1\overline{6}` is (16 - 1) / 90."""
    written, _, period = text.rstrip("}").partition("\\overline")
    whole, _, fixed = written.partition(".")
    period = period.strip(" {")
    return Fraction(int(whole + fixed + period) - int((whole + fixed) or 0), 10 ** len(fixed) * (10 ** len(period) - 1))


def _fraction(text: str) -> Fraction | None:
    numerator, denominator = (int(part) for part in re.findall(r"[+-]?\d+", text))
    return Fraction(numerator, denominator) if denominator else None
