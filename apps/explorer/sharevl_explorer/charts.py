"""Figures over steps as inline SVG, drawn on the server: lines whose points are links to their steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import median

from sharevl_explorer.axis import Axis, axis_between, axis_over, round_steps
from sharevl_explorer.markup import Html, el
from sharevl_explorer.parts import counted

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 320, 104, 38, 18, 10


@dataclass(frozen=True)
class Line:
    """Values over steps, and where each step leads. The `name` is shown where a chart has several lines."""

    points: Sequence[tuple[int, float | None]]
    link: Callable[[int], str]
    name: str = ""


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    bounds: tuple[float, float] | None = None,
    hint: str = "",
    decimals: int | None = None,
) -> Html:
    """A figure over steps; its points are links to their steps. The second line is broken into dashes.

    A line is left open at a step without a value, and where steps are missing that the others stand close to. One of
    many points is faint, below its moving mean. `decimals`: digits behind the point that figures have at most.
    """
    known = [[(step, value) for step, value in line.points if value is not None] for line in lines]
    values = [value for points in known for _, value in points]
    steps = [step for line in lines for step, _ in line.points]
    if not values:
        head = el("figcaption", el("span", title, title=hint or None), el("b", "–"))
        return el("figure.chart", head, el("p.quiet", "not recorded"))
    longest = max(map(len, known))
    stop = next(line for line, points in zip(lines, known, strict=True) if points)
    axis = axis_between(*bounds) if bounds else axis_over(values)
    sheet = _Sheet(title, axis, decimals, min(steps), max(steps), longest)
    newest = [sheet.figure(points[-1][1] if points else None) for points in known]
    told = [el(f"b{_KINDS[place]}", value, title=lines[place].name or None) for place, value in enumerate(newest)]
    mean = f"bold: moving mean over {sheet.window} values, faint: as they are" if longest > _RAW else ""
    drawing = el(
        "svg",
        [_grid(sheet.y(tick), axis.tick(tick)) for tick in axis.ticks],
        [_drawn(line, kind, sheet, stop=line is stop) for line, kind in zip(lines, _KINDS, strict=False)],
        step_labels(steps, sheet.x, HEIGHT - 4, most=4),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="group",
        aria_label=f"{title} over {counted(len({*steps}), 'step')}, newest {', '.join(newest)}"
        + (f"; {mean}" if mean else ""),
    )
    figures = el("span.newest" if len(lines) > 1 else "span", told)
    hint = "; ".join(part for part in (hint, mean) if part)
    return el("figure.chart", el("figcaption", el("span", title, title=hint or None), figures), drawing)


_KINDS = ("", ".other")
_POINTS = 100
"""Points of a line that are links; more would stand too close to be hit. The newest is always one."""
_RAW = 60
"""Points that a line is drawn through as they are; more are noise around their mean to the eye."""


@dataclass(frozen=True)
class _Sheet:
    """What the lines of a chart are drawn on. `longest`: values that the line of most values has."""

    title: str
    axis: Axis
    decimals: int | None
    first: int
    last: int
    longest: int

    @property
    def window(self) -> int:
        """Values that a moving mean is over: a twentieth, half of them to each side."""
        return 2 * (self.longest // 40) + 1

    @property
    def radius(self) -> float:
        """Of a point."""
        return 3.0 if self.longest <= 40 else 1.6

    def x(self, step: float) -> float:
        """Where a step stands."""
        return LEFT + 6 + (step - self.first) / max(self.last - self.first, 1) * (WIDTH - LEFT - 14)

    def y(self, value: float) -> float:
        """Where a value stands."""
        share = (value - self.axis.low) / (self.axis.high - self.axis.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    def figure(self, value: float | None) -> str:
        """A value in words."""
        return self.axis.figure(value, self.decimals)

    def path(self, piece: Sequence[tuple[int, float]]) -> str:
        """A line through the points."""
        return "M" + " L".join(f"{self.x(step):.1f},{self.y(value):.1f}" for step, value in piece)


def moving_mean(piece: Sequence[tuple[int, float]], window: int) -> list[tuple[int, float]]:
    """The mean of each value and of those around it, `window` in all; fewer at the ends."""
    sums, half = [0.0, *accumulate(value for _, value in piece)], window // 2
    ends = [(max(at - half, 0), min(at + half + 1, len(piece))) for at in range(len(piece))]
    means = [(sums[end] - sums[start]) / (end - start) for start, end in ends]
    return [(step, mean) for (step, _), mean in zip(piece, means, strict=True)]


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


def _drawn(line: Line, kind: str, sheet: _Sheet, *, stop: bool) -> list[Html]:
    """A line and its points, as links; of many the newest alone is seen before one is pointed at. With `stop` the tab
    key stops at the newest, and from there arrow keys lead to the others."""
    known = [(step, value) for step, value in line.points if value is not None]
    every, pieces = math.ceil(len(known) / _POINTS) or 1, _pieces(line.points)
    many = sheet.longest > _RAW
    drawn = [el(f"path.line{kind}{'.raw' if many else ''}", d=sheet.path(piece)) for piece in pieces]
    if many:
        drawn += [el(f"path.line{kind}", d=sheet.path(moving_mean(piece, sheet.window))) for piece in pieces]
    for step, value in known[(len(known) - 1) % every :: every]:
        told = f"step {step}: {sheet.title} {sheet.figure(value)}" + (f" of {line.name}" if line.name else "")
        newest = step == known[-1][0]
        faint = ".faint" if many and not newest else ""
        dot = el(f"circle.dot{kind}{faint}", cx=f"{sheet.x(step):.1f}", cy=f"{sheet.y(value):.1f}", r=sheet.radius)
        drawn.append(
            el(
                "a",
                dot,
                el("title", told),
                href=line.link(step),
                aria_label=told,
                tabindex=0 if stop and newest else -1,
            )
        )
    return drawn


def step_labels(
    steps: Collection[int],
    x: Callable[[float], float],
    y: float,
    *,
    most: int,
    ends: tuple[str, str] = ("start", "end"),
) -> list[Html]:
    """The first and the last step below a chart, and round numbers in between that have room.

    `ends`: how the first and the last stand to their step, as SVG anchors text.
    """
    outer = sorted({min(steps), max(steps)})
    labels = [(outer[0], f"step {outer[0]}", ends[0]), *((step, f"{step}", ends[1]) for step in outer[1:])]
    taken = [_room(x(step), told, anchor) for step, told, anchor in labels]
    for step in round_steps(steps, most):
        left, right = _room(x(step), f"{step}", "middle")
        if all(right < start or left > end for start, end in taken):
            labels.append((step, f"{step}", "middle"))
    return [el("text.tick", told, x=f"{x(step):.1f}", y=y, text_anchor=anchor) for step, told, anchor in sorted(labels)]


def _room(at: float, told: str, anchor: str) -> tuple[float, float]:
    """From where to where a label reaches, with some room to its sides."""
    wide = 5.5 * len(told)
    left = at - wide * {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor]
    return left - 4, left + wide + 4


def _grid(at: float, label: str) -> list[Html]:
    return [
        el("line.grid", x1=LEFT, x2=WIDTH, y1=f"{at:.1f}", y2=f"{at:.1f}"),
        el("text.tick", label, x=LEFT - 5, y=f"{at + 3:.1f}", text_anchor="end"),
    ]
