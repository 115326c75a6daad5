"""Figures in words: numbers, shares, and how far a share moved."""

from __future__ import annotations


def number(value: float | None, digits: int = 2) -> str:
    """A figure as 1,044.80, with a real minus sign, none before zero; an en dash where nothing is known."""
    return "–" if value is None else f"{value:z,.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """A share of 0..1 in per cent."""
    return "–" if value is None else f"{100 * value:.0f} %"


def moved(difference: float) -> str:
    """A difference of two shares, with its direction: in points, for "88 %" would be a share of the earlier one."""
    points = f"{100 * abs(difference):.0f}"
    sign = "=" if difference == 0 else "▲" if difference > 0 else "▼"
    return f"{sign} {points} {'point' if points == '1' else 'points'}"
