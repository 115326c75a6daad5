r"""The last rules of the verifier's ladder: mathruler and math-verify, asked only what they do not misread.

mathruler rewrites LaTeX to plain text and drops what it does not know, braces among it; math-verify parses.
Each rule gives True, or None where it has nothing to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from sharevl_lite.rewards.normalise import split_assignment
from sharevl_lite.rewards.numerals import Numeral, agrees, parse_numeral

_GROUP = r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
_FRACTION = re.compile(rf"\\frac{_GROUP}{_GROUP}")
_RAISED = re.compile(rf"\^{_GROUP}")
_LOWERED = re.compile(rf"_{_GROUP}")
_ATOM = re.compile(r"\s*(?:\d+(?:\.\d+)?|[A-Za-z]|\\(?:pi|theta|alpha|beta)|\\sqrt\s*\{[^{}]*\})\s*")
_FACTOR_BEFORE = re.compile(r"[A-Za-z)}]\s*\\frac")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_READ_BY_MATHRULER = "frac|sqrt|sin|cos|tan|pi|theta|alpha|beta|infty|cup|cdot|times|circ|text|mathrm"
_MISREAD_BY_MATHRULER = re.compile(
    rf"\d \{{?\d|(?<![\d.,])0\d|\\text\s*\{{\s*(?:or|and)\s*\}}|\\sqrt\s*\["
    rf"|\\(?!(?:{_READ_BY_MATHRULER})(?![A-Za-z]))[A-Za-z]"
)


def by_mathruler(answer: str, expected: str) -> bool | None:
    """Accepts where mathruler does, unless a side is one that it misreads."""
    if "=" in answer and "=" in expected:
        return None
    if any(_MISREAD_BY_MATHRULER.search(side) or _loses_groups(side) for side in (answer, expected)):
        return None
    if _lists(answer) != _lists(expected) or (r"\{" in answer) != (r"\{" in expected):
        return None
    from mathruler.grader import grade_answer

    return _accepts(grade_answer, answer, expected) or None


def _loses_groups(answer: str) -> bool:
    r"""Whether an expression means another without its braces, which mathruler drops: a sum in a numerator, anything
    but one number, letter or root below, `^{2n}`, `a_{n+1}`, and a factor that would join the numerator
    (`x\frac{1}{2}` is read as `x1/2`)."""
    fractions = _FRACTION.findall(answer)
    if len(fractions) < answer.count(r"\frac"):  # too deep to tell
        return True
    if any(re.search(r"[+\-/]|\\pm", above.strip()[1:]) or not _ATOM.fullmatch(below) for above, below in fractions):
        return True
    if not all(re.fullmatch(r"\s*(?:[+-]?\d+|[A-Za-z])\s*", raised) for raised in _RAISED.findall(answer)):
        return True
    if not all(re.fullmatch(r"\s*\w+\s*", lowered) for lowered in _LOWERED.findall(answer)):
        return True
    return _FACTOR_BEFORE.search(re.sub(r"\\(?:cdot|times)(?![A-Za-z])", "*", answer)) is not None


def _lists(answer: str) -> bool:
    """Whether there is a comma in it that is none of a number's."""
    return "," in (answer if re.search(r"[(\[{]", answer) else _THOUSANDS.sub("", answer))


def by_math_verify(answer: str, expected: str) -> bool | None:
    """Accepts where math-verify does."""
    from math_verify import verify as symbolic_equal

    def grade(prediction: str, gold: str) -> bool:
        return symbolic_equal(
            _parse(gold), _parse(prediction), allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True
        )

    return _accepts(grade, answer, expected) or None


def by_rounding(answer: str, expected: str) -> bool | None:
    r"""A decimal gold accepts an exact expression that rounds to it: `\sqrt{2}` for 1.41."""
    gold = parse_numeral(split_assignment(expected)[1])
    if gold is None or gold.step is None:
        return None

    def grade(prediction: str, _: str) -> bool:
        return any(agrees(stated, gold) for stated in map(_evaluate, _parse(prediction)) if stated is not None)

    return _accepts(grade, split_assignment(answer)[1], expected) or None


def _accepts(grade: Callable[[str, str], bool], prediction: str, gold: str) -> bool:
    """Ask a grader. If it raises, find out on whom: on the gold it raises again, otherwise the prediction is ugly."""
    try:
        return bool(grade(prediction, gold))
    except MemoryError:
        raise
    except Exception:
        grade(gold, gold)
        return False


def _parse(answer: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    return list(parse(f"${answer}$", [LatexExtractionConfig()], parsing_timeout=None))


def _evaluate(expression: Any) -> Numeral | None:
    """A sympy expression as a number, to 30 digits; None if it is not a real constant of a size that a float has."""
    if not getattr(expression, "is_number", False) or not expression.is_real:
        return None
    number = expression.evalf(30)
    return Numeral(Fraction(str(number))) if abs(number) < 1e300 else None
