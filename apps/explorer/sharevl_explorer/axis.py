"""The axis of a figure: round numbers around its values, and how the values are written along it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sharevl_explorer.figures import number

_LEAST = 0.05
"""An axis covers at least this share of its largest value, so that rounding noise is drawn as the flat line it is."""
_NOTHING = 1e-9
"""Values of this size are noise around 0."""
_FINE = 0.02
"""Figures resolve a tenth of what the axis covers, or of this where it covers more: thousandths of a share."""
_PLAIN = (1e-3, 1e5)
"""An axis whose largest value is outside of these is written in powers of ten."""
_COUNTS = 2
"""Integers below may be shares or rewards that are all or nothing, whose digits say that they can be others."""
_STEPS = (1.0, 2.0, 2.5, 5.0)
_MOST = 4
"""Steps of an axis, at most."""


@dataclass(frozen=True)
class Axis:
    """An axis from its first tick to its last. `decimals`: digits behind the point that tell the ticks apart; `whole`:
    its values are counts."""

    ticks: tuple[float, ...]
    decimals: int
    whole: bool = False

    @property
    def low(self) -> float:
        """Where it begins."""
        return self.ticks[0]

    @property
    def high(self) -> float:
        """Where it ends."""
        return self.ticks[-1]

    def tick(self, value: float) -> str:
        """A tick's label."""
        return self._written(value, self.decimals)

    def figure(self, value: float | None, most: int | None = None) -> str:
        """A value with the digits that tell values apart, behind the point at most so many; an en dash where nothing
        is known."""
        if self.whole and value is not None and float(value).is_integer():
            return self._written(value, 0)
        span = self.high - self.low if self._size >= _PLAIN[1] else min(self.high - self.low, _FINE)
        digits = math.ceil(1 - math.log10(span) - 1e-9)
        return "–" if value is None else self._written(value, digits if most is None else min(digits, most))

    @property
    def _size(self) -> float:
        return max(abs(self.low), abs(self.high))

    def _written(self, value: float, decimals: int) -> str:
        if value == 0:
            return "0"
        if _PLAIN[0] <= self._size < _PLAIN[1]:
            return number(value, max(decimals, 0))
        mantissa, power = f"{value:.{max(_exponent(abs(value)) + decimals, 1)}e}".split("e")
        return f"{mantissa}e{int(power)}".replace("-", "−")


def axis_over(values: Sequence[float]) -> Axis:
    """The shortest axis of two to four round steps that covers the values; from 0 where they reach down towards it.

    It does not pass 1 where no value does: many figures are shares, or rewards whose weights add up to 1.
    """
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    if size < _NOTHING:
        return Axis((0.0, 0.005, 0.01), 3)
    lacking = max(_LEAST * size - (high - low), 0.0) / 2
    low, high = low - lacking, high + lacking
    if 0 <= low <= high - low:
        low = 0.0
    lowest = _exponent(high - low) - 1
    found = []
    for power in (lowest, lowest + 1):
        for factor in _STEPS:
            step = factor * 10.0**power
            first = math.floor(low / step + 1e-6)
            count = max(math.ceil(high / step - 1e-6) - first, 2)
            if count <= _MOST:
                found.append((count * step, count, step, first, (factor == 2.5) - power))
    _, count, step, first, decimals = min(found)
    if step <= 1 and max(values) <= 1:
        first -= max(math.ceil(((first + count) * step - 1) / step - 1e-6), 0)
    whole = _COUNTS <= size < _PLAIN[1] and all(float(value).is_integer() for value in values)
    return Axis(tuple((first + place) * step for place in range(count + 1)), decimals, whole)


def axis_between(low: float, high: float) -> Axis:
    """An axis with these ends, and their middle."""
    return Axis((low, (low + high) / 2, high), max(1 - _exponent(high - low), 0))


def round_steps(steps: Collection[int], most: int) -> list[int]:
    """Round numbers between the first and the last of three or more steps, at most so many; steps themselves where
    there are such."""
    first, last = min(steps), max(steps)
    if len({*steps}) < 3:
        return []
    least = max((last - first) / (most + 1), 1)
    power = 10 ** _exponent(least)
    apart = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
    between = list(range((first // apart + 1) * apart, last, apart))
    known = {*steps}
    return [step for step in between if step in known] or between


def _exponent(value: float) -> int:
    """Of the power of ten at or below a positive value."""
    return math.floor(math.log10(value) + 1e-9)
