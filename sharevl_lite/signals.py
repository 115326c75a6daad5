"""Ctrl-C and SIGTERM, taken without anything heavy, and answered in plain bytes: a handler may break into a print.

A launcher passes on the signal that its processes were given as well (torchrun does, under Slurm and at a terminal), so
the same signal comes twice at once: a repeat within two seconds is not a second one.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

from sharevl_lite.together import is_main_process

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEATED_WITHIN = 2.0
"""Seconds in which a signal counts as the one before."""


class Signals:
    """Inside of a `with` block a signal sets `asked` and calls `first`; a second one raises KeyboardInterrupt.

    Outside of the main thread, where there are no handlers, all stays as it is.
    """

    def __init__(self) -> None:
        self.asked = False
        self._last = -math.inf
        self._previous: dict[int, Any] = {}

    def first(self) -> None:
        """What the first signal does; here the same as the second."""
        raise KeyboardInterrupt

    def __enter__(self) -> Self:
        try:
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        except ValueError:  # not the main thread, such as under some notebooks: the default stays
            self._previous = {}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, Signals):
                outer._last = self._last  # a repeat of what came in here is none out there either
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        last = self._last
        if now - last < REPEATED_WITHIN:
            return
        self._last = now  # nothing is called since it was read: the next signal's handler finds it set
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.first()


def tell(words: str) -> None:
    """A line on standard error from a handler, of the main process."""
    if is_main_process():
        with contextlib.suppress(OSError):
            os.write(2, f"{words}\n".encode())


@contextlib.contextmanager
def unhandled() -> Iterator[None]:
    """A signal ends the process at once, as one without handlers: around what waits outside of Python."""
    before = {}
    with contextlib.suppress(ValueError):  # not the main thread
        before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
