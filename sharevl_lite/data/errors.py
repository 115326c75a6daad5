"""What is wrong with a row, where the row stands, and whether that stops the run.

Every later check of the data (the token length of a prompt, say) goes through :func:`check_rows` too, so that a bad
row reads the same and obeys `data.on_bad_row` wherever it is found.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from sharevl_lite.errors import UserError

T = TypeVar("T")
U = TypeVar("U")

OnBadRow = Literal["stop", "skip"]
MOST_TOLD = 10
"""Skipped rows that are logged, of a source; how many there were is said once by who reads it."""

logger = logging.getLogger(__name__)


class DataError(UserError):
    """A data source cannot be used. The message says which one, why, and what to do."""


class MissingSource(DataError):
    """There is no such file or folder, nor a Hub dataset of that name. `source` is as it was given."""

    def __init__(self, message: str, source: str) -> None:
        super().__init__(message, source)
        self.source = source

    def __str__(self) -> str:
        return str(self.args[0])

    def beside(self, folder: Path) -> str:
        """Words on a file or folder of that name in the recipe's folder; empty where there is none."""
        there = folder / self.source
        if Path(self.source).is_absolute() or not there.exists() or folder.resolve() == Path.cwd():
            return ""
        return f" There is one beside the recipe ({there}); paths of data start at the current folder."


class RowFault(ValueError):
    """Raised by a check of one row: the reason alone. :func:`check_rows` adds the place."""


@dataclass(frozen=True)
class RowPlace:
    """Where a row stands.

    `row` counts from 0 over the whole source. `detail` names the file and the line or row inside it, where the source
    has any.
    """

    source: str
    row: int
    detail: str = ""

    def __str__(self) -> str:
        counted = f"counted from 0; {self.detail}" if self.detail else "counted from 0"
        return f"{self.source}: row {self.row} ({counted})"


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    place: RowPlace
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class BadRowError(DataError):
    """The first bad row, under `on_bad_row: stop`."""

    def __init__(self, bad: BadRow) -> None:
        # The row is the only argument, so that the error survives pickling to another process.
        super().__init__(bad)
        self.bad = bad

    def __str__(self) -> str:
        return f"{self.bad}. Fix or remove the row, or set data.on_bad_row: skip to leave bad rows out."


def check_rows(
    rows: Iterable[tuple[RowPlace, T]],
    check: Callable[[T], U],
    *,
    on_bad_row: OnBadRow,
    skipped: list[BadRow],
) -> Iterator[tuple[RowPlace, U]]:
    """Run `check` on every row, lazily; yield the place and result of each good one.

    Args:
        rows: The rows with their places.
        check: Returns what the row becomes; raises :class:`RowFault` with the reason where the row is bad.
        on_bad_row: `stop` raises at the first bad row; `skip` appends it to `skipped` and logs the first ten there.
        skipped: Grows by each skipped row.

    Raises:
        BadRowError: A row is bad under `stop`.
    """
    for place, value in rows:
        try:
            result = check(value)
        except RowFault as fault:
            bad = BadRow(place, str(fault))
            if on_bad_row == "stop":
                raise BadRowError(bad) from fault
            skipped.append(bad)
            if len(skipped) <= MOST_TOLD:
                logger.warning("skipped %s", bad)
            elif len(skipped) == MOST_TOLD + 1:
                logger.warning("%s: more bad rows than these %d are skipped", place.source, MOST_TOLD)
            continue
        yield place, result


def require_some(source: str, kept: int, skipped: list[BadRow]) -> None:
    """Raise :class:`DataError` where a source leaves no usable row."""
    if kept:
        return
    if skipped:
        raise DataError(f"{source}: all {len(skipped)} rows are bad; the first one is {skipped[0]}")
    raise DataError(f"{source}: holds no rows; give a source with at least one problem")
