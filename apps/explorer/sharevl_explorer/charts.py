"""Charts as inline SVG, drawn on the server: lines and stacked bars whose steps are links."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from sharevl_explorer.axis import Axis, axis_between, axis_over
from sharevl_explorer.figures import percent
from sharevl_explorer.markup import Html, el
from sharevl_explorer.parts import counted

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 320, 104, 38, 18, 10


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
    axis = axis_between(*bounds) if bounds else axis_over(values)
    radius = 3.0 if max(map(len, known)) <= 40 else 1.6
    newest = [axis.figure(points[-1][1] if points else None) for points in known]
    told = [el(f"b{_KINDS[place]}", value, title=lines[place].name or None) for place, value in enumerate(newest)]
    x, y = _places(steps, axis)
    drawing = el(
        "svg",
        [_grid(y(tick), axis.tick(tick)) for tick in axis.ticks],
        [_drawn(line, kind, (title, axis, radius), x, y) for line, kind in zip(lines, _KINDS, strict=False)],
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
    line: Line, kind: str, described: tuple[str, Axis, float], x: Callable[[float], float], y: Callable[[float], float]
) -> list[Html]:
    """A line and its points, as links. `described`: the title, the axis, the points' radius."""
    title, axis, radius = described
    known = [(step, value) for step, value in line.points if value is not None]
    every = math.ceil(len(known) / _POINTS) or 1
    drawn = [el(f"path.line{kind}", d=_path(piece, x, y)) for piece in _pieces(line.points)]
    for step, value in known[(len(known) - 1) % every :: every]:
        told = f"step {step}: {title} {axis.figure(value)}" + (f" of {line.name}" if line.name else "")
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


def _places(steps: Sequence[int], axis: Axis) -> tuple[Callable[[float], float], Callable[[float], float]]:
    first, last = min(steps), max(steps)
    wide = max(last - first, 1)
    return (
        lambda step: LEFT + 6 + (step - first) / wide * (WIDTH - LEFT - 14),
        lambda value: HEIGHT - BOTTOM - (value - axis.low) / (axis.high - axis.low) * (HEIGHT - BOTTOM - TOP),
    )


def _grid(at: float, label: str) -> list[Html]:
    return [
        el("line.grid", x1=LEFT, x2=WIDTH, y1=f"{at:.1f}", y2=f"{at:.1f}"),
        el("text.tick", label, x=LEFT - 5, y=f"{at + 3:.1f}", text_anchor="end"),
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
