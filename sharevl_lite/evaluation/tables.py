"""Tables of figures, once for Markdown and once for the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharevl_lite.evaluation.figures import REWARD, is_share
from sharevl_lite.evaluation.statistics import Figure

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """A titled table; the first column is of names, the others of numbers, unless they are said to be words."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: str = ""
    """Said below it."""
    words: Sequence[str] = ()
    """Columns that are no numbers either, by their header."""

    def is_words(self, place: int) -> bool:
        """Whether a column is aligned as text."""
        return place == 0 or self.header[place] in self.words


def markdown(tables: Sequence[Table]) -> str:
    """The tables as sections."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    return "\n".join([f"## {table.title}", "", grid(table), "", *([table.notes, ""] if table.notes else [])])


def grid(table: Table) -> str:
    """The table alone, in Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(_cell, cells)) + " |"

    rule = "|" + "|".join("---" if table.is_words(place) else "---:" for place in range(len(table.header))) + "|"
    return "\n".join([line(table.header), rule, *map(line, table.rows)])


def _cell(text: str) -> str:
    """One line that Markdown neither splits nor takes for HTML: prompts ask for `<think>`, questions hold `<image>`."""
    return text.replace("|", r"\|").replace("<", r"\<").replace("\n", " ")


def show(console: Console, tables: Sequence[Table]) -> None:
    """Prints the tables, every cell letter by letter: questions hold LaTeX, which reads like rich's markup.

    Where a table is too wide for the terminal, text is broken; the columns of one of figures alone move together first.
    """
    from rich.measure import Measurement
    from rich.text import Text

    unbounded = console.options.update(max_width=sys.maxsize)
    for table in tables:
        shown = _grid(table, gap=2)
        if not table.words and Measurement.get(console, unbounded, shown).maximum > console.width:
            shown = _grid(table, gap=1)
        console.print(Text(table.title, style="table.title"), soft_wrap=True)
        console.print()
        console.print(shown)
        if table.notes:
            console.print()
            console.print(table.notes, highlight=False, markup=False, soft_wrap=True)
        console.print()


def _grid(table: Table, *, gap: int) -> RichTable:
    import rich.box
    import rich.table
    from rich.text import Text

    grid = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))
    for place, name in enumerate(table.header):
        grid.add_column(
            Text(name), justify="left" if table.is_words(place) else "right", overflow="fold", no_wrap=place == 0
        )
    for row in table.rows:
        grid.add_row(*map(Text, row))
    return grid


def number(value: float | None, name: str = "") -> str:
    """A figure's value: percent of a share, a plain number of a length or a reward."""
    if value is None:
        return NOTHING
    if is_share(name):
        return f"{100 * value:.1f}%"
    return f"{value:.3f}" if name.startswith(REWARD) else f"{value:.1f}"


def between(low: float | None, high: float | None, name: str = "", *, signed: bool = False) -> str:
    """An interval, in the same units."""
    if low is None or high is None:
        return NOTHING
    ends = (points(low), points(high)) if signed else (number(low, name), number(high, name))
    return f"{ends[0]} … {ends[1]}".replace("% …", " …")


def points(value: float | None) -> str:
    """A difference of shares, in percentage points with its sign."""
    return NOTHING if value is None else f"{100 * value:+.1f}"


def chance(p_value: float) -> str:
    """A p-value, never as 0."""
    return "<0.0001" if p_value < 1e-4 else f"{p_value:.4f}"


def value_and_interval(found: Figure, name: str = "", *, signed: bool = False) -> tuple[str, str]:
    """Both cells of a figure."""
    value = points(found.value) if signed else number(found.value, name)
    return value, between(found.low, found.high, name, signed=signed)
