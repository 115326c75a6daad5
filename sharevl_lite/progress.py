"""How far a long command is: a bar on a terminal, a line now and then elsewhere, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS = 30.0
"""Between two lines where there is no terminal."""


@contextmanager
def shown_progress(done_to_them: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Yields what is to be told of every further problem, or several at once.

    Args:
        done_to_them: What is shown before their number: "asked".
        total: How many there will be; None where nobody knows.
    """
    if not sys.stderr.isatty():
        yield _Lines(done_to_them, total)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(done_to_them), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # What is printed meanwhile goes above the bar, but not what goes to a file.
    console, to_terminal = Console(stderr=True), sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=to_terminal) as bar:
        task = bar.add_task(done_to_them, total=total)
        yield lambda problems: bar.advance(task, problems)


class _Lines:
    def __init__(self, done_to_them: str, total: int | None) -> None:
        self.done_to_them, self.total = done_to_them, total
        self.done = 0
        self.started = self.told = time.monotonic()

    def __call__(self, problems: int) -> None:
        self.done += problems
        now = time.monotonic()
        if now - self.told < SECONDS:
            return
        self.told = now
        of, left = "", ""
        if self.total is not None:
            of = f" of {self.total:,}"
            left = f", about {_minutes((now - self.started) * (self.total / self.done - 1))} to go"
        print(f"{self.done_to_them} {self.done:,}{of} problems{left}", file=sys.stderr, flush=True)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
