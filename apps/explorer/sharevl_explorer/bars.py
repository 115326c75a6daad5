"""Stacked bars as inline SVG: shares of each step's groups, on the axis of steps that the lines have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

from sharevl_explorer.charts import BOTTOM, LEFT, TOP, step_labels
from sharevl_explorer.figures import percent
from sharevl_explorer.markup import Html, el

MOST = 120
"""Bars of a chart; of more steps each bar is a range."""
_WIDTH, _HEIGHT = 960, 190
_ROUND = (1, 2, 5)
Kinds = Sequence[tuple[str, str]]


class _Bar(NamedTuple):
    """What stands at one place: its middle and its width in steps, which steps it holds, and how many of each kind."""

    middle: float
    wide: float
    steps: Sequence[int]
    counts: Mapping[str, int]


def stacked_bars(
    rows: Sequence[Mapping[str, Any]],
    kinds: Kinds,
    link: Callable[[int], str],
    *,
    over: tuple[int, int] | None = None,
) -> Html:
    """Shares of each step's groups, from the bottom in the order of `kinds` (key, label); where a step is missing there
    is a gap. Of many steps a bar has a range, and leads to its first.

    Args:
        rows: a count of every kind for each `step`, ascending.
        over: first and last step of the axis, where other charts have more than the rows.
    """
    keys, steps = [key for key, _ in kinds], [row["step"] for row in rows]
    first, last = over or (min(steps, default=0), max(steps, default=0))
    usual = median([after - before for before, after in pairwise(steps)] or [1])
    bars = _ranges(rows, keys) if len(rows) > MOST else _single(rows, keys, usual)
    start, span = first - usual / 2, last - first + usual
    step_wide = (_WIDTH - LEFT) / span

    def x(step: float) -> float:
        return LEFT + (step - start) * step_wide

    lines = [
        [
            el("line.grid", x1=LEFT, x2=_WIDTH, y1=f"{at:.1f}", y2=f"{at:.1f}"),
            el("text.tick", percent(share), x=LEFT - 5, y=f"{at + 3:.1f}", text_anchor="end"),
        ]
        for share in (0, 0.5, 1)
        for at in [_HEIGHT - BOTTOM - share * (_HEIGHT - BOTTOM - TOP)]
    ]
    return el(
        "svg.bars",
        _patterns(),
        lines,
        [
            _drawn(bar, kinds, x(bar.middle), bar.wide * step_wide, href=link(bar.steps[0]), stop=bar is bars[-1])
            for bar in bars
        ],
        step_labels([first, *steps, last], x, _HEIGHT - 4, most=12, ends=("middle", "end")),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="group",
        aria_label="shares of groups over steps",
    )


def _single(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], usual: float) -> list[_Bar]:
    """A bar for each step, as wide as the usual distance lets it be, and as its neighbours do."""
    steps = [row["step"] for row in rows]
    gaps = [math.inf, *(after - before for before, after in pairwise(steps)), math.inf]
    return [
        _Bar(row["step"], min(0.72 * usual, 0.9 * min(around)), [row["step"]], {key: row[key] for key in keys})
        for row, around in zip(rows, pairwise(gaps), strict=True)
    ]


def _ranges(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[_Bar]:
    """Bars of as many steps each as leave no more bars than are told apart: a round number of steps."""
    first, last = rows[0]["step"], rows[-1]["step"]
    least = (last - first + 1) / MOST
    power = 10 ** math.floor(math.log10(least))
    wide = next(size for factor in (*_ROUND, 10) if (size := factor * power) >= least)
    ranges: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        ranges.setdefault((row["step"] - first) // wide, []).append(row)
    bars = []
    for place, held in ranges.items():
        start = first + place * wide
        end = min(start + wide - 1, last)
        counts = {key: sum(row[key] for row in held) for key in keys}
        bars.append(_Bar((start + end) / 2, 0.8 * (end - start + 1), [row["step"] for row in held], counts))
    return bars


def _drawn(bar: _Bar, kinds: Kinds, middle: float, wide: float, *, href: str, stop: bool) -> Html:
    """A bar as a link. The tab key stops at one, the newest; from there arrow keys lead to the others."""
    total, thick = sum(bar.counts.values()) or 1, max(min(wide, 54), 1.5)
    base, parts = float(_HEIGHT - BOTTOM), []
    for key, _ in kinds:
        tall = bar.counts[key] / total * (_HEIGHT - BOTTOM - TOP)
        base -= tall
        box = {"x": f"{middle - thick / 2:.1f}", "y": f"{base:.1f}", "width": f"{thick:.1f}", "height": f"{tall:.1f}"}
        parts.append(el(f"rect.bar.{key}", **box))
    first, last = bar.steps[0], bar.steps[-1]
    named = f"step {first}" if first == last else f"steps {first} to {last}"
    told = f"{named}: " + ", ".join(f"{bar.counts[key]:,} {label}" for key, label in kinds if bar.counts[key])
    return el("a", parts, el("title", told), href=href, aria_label=told, tabindex=0 if stop else -1)


def _patterns() -> Html:
    """Dots for all wrong and hatching for all right, over the colour of each signal, so that neither is by colour."""
    marks = {"wrong": el("circle.speck", cx=3, cy=3, r=1), "right": el("path.hatch", d="M0 6 L6 0")}
    return el(
        "defs",
        [
            el(
                "pattern",
                el(f"rect.{signal}-ground", width=6, height=6),
                mark,
                id=f"{signal}-{outcome}",
                width=6,
                height=6,
                patternUnits="userSpaceOnUse",
            )
            for signal in ("own", "rescued", "none")
            for outcome, mark in marks.items()
        ],
    )
