"""Charts as inline SVG, drawn on the server: lines and stacked bars whose steps are links."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from sharevl_explorer.markup import Html, el
from sharevl_explorer.parts import counted

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 320, 104, 38, 18, 10


def number(value: float | None, digits: int = 2) -> str:
    """A figure with a real minus sign, none before zero; an en dash where nothing is known."""
    return "–" if value is None else f"{value:z.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """A share of 0..1 in per cent."""
    return "–" if value is None else f"{100 * value:.0f} %"


def figure(value: float | None, span: float) -> str:
    """A figure with as many digits as tell values apart over `span`; powers of ten where those would be too many."""
    digits = _digits(span)
    if value is None or digits <= 5 or value == 0:
        return number(value, min(digits, 5) if value else 0)
    mantissa, power = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(power)}".replace("-", "−")


def _digits(span: float) -> int:
    return max(math.ceil(1 - math.log10(span / 2)), 0) if span > 0 else 2


@dataclass(frozen=True)
class Line:
    """Values over steps, and where each step leads. The `name` is shown where a chart has several lines."""

    points: Sequence[tuple[int, float | None]]
    link: Callable[[int], str]
    name: str = ""


def line_chart(title: str, lines: Sequence[Line], *, bounds: tuple[float, float] | None = None, hint: str = "") -> Html:
    """A figure over steps; its points are links to their steps. The second line is broken into dashes.

    A line is left open at a step without a value, and where steps are missing that the others stand close to.
    """
    known = [[(step, value) for step, value in line.points if value is not None] for line in lines]
    values = [value for points in known for _, value in points]
    steps = [step for line in lines for step, _ in line.points]
    if not values:
        head = el("figcaption", el("span", title, title=hint or None), el("b", "–"))
        return el("figure.chart", head, el("p.quiet", "not recorded"))
    low, high = bounds or _bounds(values)
    span, radius = min(high - low, 0.02), 3.0 if max(map(len, known)) <= 40 else 1.6
    newest = [figure(points[-1][1], span) if points else "–" for points in known]
    told = [el(f"b{_KINDS[place]}", value, title=lines[place].name or None) for place, value in enumerate(newest)]
    x, y = _axis(steps, low, high)
    drawing = el(
        "svg",
        [_grid(value, y, high - low) for value in (low, (low + high) / 2, high)],
        [_drawn(line, kind, (title, span, radius), x, y) for line, kind in zip(lines, _KINDS, strict=False)],
        _step_labels(steps, x),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="group",
        aria_label=f"{title} over {counted(len({*steps}), 'step')}, newest {', '.join(newest)}",
    )
    figures = el("span.newest" if len(lines) > 1 else "span", told)
    return el("figure.chart", el("figcaption", el("span", title, title=hint or None), figures), drawing)


_KINDS = ("", ".other")
_POINTS = 100
"""Points of a line that are links; more would stand too close to be hit. The newest is always one."""


def _pieces(points: Sequence[tuple[int, float | None]]) -> list[list[tuple[int, float]]]:
    """What stands together without a hole: no value is missing in it, and no step that the usual distance asks for."""
    usual = median([after - before for (before, _), (after, _) in pairwise(points)] or [1])
    pieces: list[list[tuple[int, float]]] = [[]]
    last = None
    for step, value in points:
        if value is None or (last is not None and step - last > 1.5 * usual):
            pieces.append([])
        if value is not None:
            pieces[-1].append((step, value))
        last = step
    return [piece for piece in pieces if len(piece) > 1]


def _path(piece: Sequence[tuple[int, float]], x: Callable[[float], float], y: Callable[[float], float]) -> str:
    return "M" + " L".join(f"{x(step):.1f},{y(value):.1f}" for step, value in piece)


def _drawn(
    line: Line, kind: str, described: tuple[str, float, float], x: Callable[[float], float], y: Callable[[float], float]
) -> list[Html]:
    """A line and its points, as links. `described`: the title, the span that figures resolve, the points' radius."""
    title, span, radius = described
    known = [(step, value) for step, value in line.points if value is not None]
    every = math.ceil(len(known) / _POINTS) or 1
    drawn = [el(f"path.line{kind}", d=_path(piece, x, y)) for piece in _pieces(line.points)]
    for step, value in known[(len(known) - 1) % every :: every]:
        told = f"step {step}: {title} {figure(value, span)}" + (f" of {line.name}" if line.name else "")
        dot = el(f"circle.dot{kind}", cx=f"{x(step):.1f}", cy=f"{y(value):.1f}", r=radius)
        drawn.append(el("a", dot, el("title", told), href=line.link(step), aria_label=told, tabindex=-1))
    return drawn


def stacked_bars(rows: Sequence[dict[str, Any]], kinds: Sequence[tuple[str, str]], link: Callable[[int], str]) -> Html:
    """Shares of each step's groups, one bar per step, from the bottom in the order of `kinds` (key, label)."""
    width, height, left = 960, 190, 38
    slot = (width - left) / max(len(rows), 1)
    thick = max(min(slot * 0.72, 54), 1.5)
    bars = []
    for place, row in enumerate(rows):
        total = sum(row[key] for key, _ in kinds) or 1
        base, parts = height - BOTTOM, []
        for key, _ in kinds:
            tall = row[key] / total * (height - BOTTOM - TOP)
            base -= tall
            left_edge = left + place * slot + (slot - thick) / 2
            parts.append(
                el(f"rect.bar.{key}", x=f"{left_edge:.1f}", y=f"{base:.1f}", width=f"{thick:.1f}", height=f"{tall:.1f}")
            )
        told = ", ".join(f"{row[key]} {label}" for key, label in kinds if row[key])
        bars.append(
            el(
                "a",
                parts,
                el("title", f"step {row['step']}: {told}"),
                href=link(row["step"]),
                aria_label=f"step {row['step']}: {told}",
            )
        )
    every = max(len(rows) // 12, 1)
    labels = [
        el("text.tick", row["step"], x=f"{left + (place + 0.5) * slot:.1f}", y=height - 4, text_anchor="middle")
        for place, row in enumerate(rows)
        if place % every == 0
    ]
    lines = [
        [
            el("line.grid", x1=left, x2=width, y1=f"{at:.1f}", y2=f"{at:.1f}"),
            el("text.tick", percent(share), x=left - 5, y=f"{at + 3:.1f}", text_anchor="end"),
        ]
        for share in (0, 0.5, 1)
        for at in [height - BOTTOM - share * (height - BOTTOM - TOP)]
    ]
    return el(
        "svg.bars",
        _patterns(),
        lines,
        bars,
        labels,
        viewBox=f"0 0 {width} {height}",
        role="group",
        aria_label="shares of groups over steps",
    )


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


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or abs(high) * 0.1 or 0.01
    return (0.0 if low >= 0 and low <= (high - low) else low - room), high + room


def _axis(steps: Sequence[int], low: float, high: float) -> tuple[Callable[[float], float], Callable[[float], float]]:
    first, last = min(steps), max(steps)
    wide = max(last - first, 1)
    tall = (high - low) or 1.0
    return (
        lambda step: LEFT + 6 + (step - first) / wide * (WIDTH - LEFT - 14),
        lambda value: HEIGHT - BOTTOM - (value - low) / tall * (HEIGHT - BOTTOM - TOP),
    )


def _grid(value: float, y: Callable[[float], float], span: float) -> list[Html]:
    at = f"{y(value):.1f}"
    return [
        el("line.grid", x1=LEFT, x2=WIDTH, y1=at, y2=at),
        el("text.tick", figure(value, span), x=LEFT - 5, y=f"{y(value) + 3:.1f}", text_anchor="end"),
    ]


def _step_labels(steps: Sequence[int], x: Callable[[float], float]) -> list[Html]:
    ends = sorted({min(steps), max(steps)})
    return [
        el(
            "text.tick",
            f"step {step}" if place == 0 else step,
            x=f"{x(step):.1f}",
            y=HEIGHT - 4,
            text_anchor="start" if place == 0 else "end",
        )
        for place, step in enumerate(ends)
    ]
