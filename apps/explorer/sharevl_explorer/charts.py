"""Charts as inline SVG, drawn on the server: lines and stacked bars whose steps are links."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sharevl_explorer.markup import Html, el

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 320, 104, 38, 18, 10


def number(value: float | None, digits: int = 2) -> str:
    """A figure with a real minus sign, none before zero; an en dash where nothing is known."""
    return "–" if value is None else f"{value:z.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """A share of 0..1 in per cent."""
    return "–" if value is None else f"{100 * value:.0f} %"


def line_chart(
    title: str,
    points: Sequence[tuple[int, float | None]],
    link: Callable[[int], str],
    *,
    bounds: tuple[float, float] | None = None,
    hint: str = "",
) -> Html:
    """A figure over steps. Steps without a value are left open; each point is a link to its step."""
    known = [(step, value) for step, value in points if value is not None]
    newest = number(known[-1][1], 3) if known else "–"
    head = el("figcaption", el("span", title, title=hint or None), el("b", newest))
    if not known:
        return el("figure.chart", head, el("p.quiet", "not recorded"))
    low, high = bounds or _bounds([value for _, value in known])
    x, y = _axis([step for step, _ in points], low, high)
    path = "M" + " L".join(f"{x(step):.1f},{y(value):.1f}" for step, value in known)
    dots = _marks(known, x, y, title, link)
    rows = [_grid(value, y, high - low) for value in (low, (low + high) / 2, high)]
    described = f"{title} over {len(known)} steps, from {number(known[0][1], 3)} to {newest}"
    drawing = el(
        "svg",
        rows,
        el("path.line", d=path),
        dots,
        _step_labels([step for step, _ in points], x),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="group",
        aria_label=described,
    )
    return el("figure.chart", head, drawing)


def _marks(
    known: Sequence[tuple[int, float]],
    x: Callable[[float], float],
    y: Callable[[float], float],
    title: str,
    link: Callable[[int], str],
) -> list[Html]:
    radius = 3.0 if len(known) <= 40 else 1.6
    return [
        el(
            "a",
            el("circle.dot", cx=f"{x(step):.1f}", cy=f"{y(value):.1f}", r=radius),
            el("title", f"step {step}: {title} {number(value, 3)}"),
            href=link(step),
            aria_label=f"step {step}, {title} {number(value, 3)}",
            tabindex=-1,
        )
        for step, value in known
    ]


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
        aria_label="shares of groups by outcome over steps",
    )


def _patterns() -> Html:
    """Hatching for rescued and dots for all wrong, so that the bars are told apart without colour."""
    return el(
        "defs",
        el(
            "pattern",
            el("rect.bar.rescued-ground", width=6, height=6),
            el("path.hatch", d="M0 6 L6 0"),
            id="hatch",
            width=6,
            height=6,
            patternUnits="userSpaceOnUse",
        ),
        el(
            "pattern",
            el("rect.bar.wrong-ground", width=6, height=6),
            el("circle.speck", cx=3, cy=3, r=1),
            id="specks",
            width=6,
            height=6,
            patternUnits="userSpaceOnUse",
        ),
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
    shown = number(value, 0 if span >= 20 else 1 if span >= 2 else 2 if span >= 0.1 else 3)
    return [
        el("line.grid", x1=LEFT, x2=WIDTH, y1=at, y2=at),
        el("text.tick", shown, x=LEFT - 5, y=f"{y(value) + 3:.1f}", text_anchor="end"),
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
