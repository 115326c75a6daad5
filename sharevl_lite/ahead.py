"""One piece of work ahead of time, in the background: the next rollout is sampled while this one is trained."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """At most one call at a time, in a thread that does not keep the process alive."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._results: list[T] = []
        self._failures: list[BaseException] = []

    def start(self, make: Callable[[], T]) -> None:
        """Begins to make something. Raises RuntimeError while an earlier result was not taken."""
        if self._thread is not None:
            raise RuntimeError("the result of the call before has not been taken")
        self._thread = threading.Thread(target=self._run, args=(make,), name="sharevl-ahead", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns when nothing runs; what was made stays to be taken."""
        if self._thread is not None:
            self._thread.join()

    def take(self) -> T | None:
        """What was made (waits for it), or None where nothing was begun. Raises what the call raised."""
        if self._thread is None:
            return None
        self._thread.join()
        self._thread = None
        if self._failures:
            raise self._failures.pop()
        return self._results.pop()

    def _run(self, make: Callable[[], T]) -> None:
        try:
            self._results.append(make())
        except BaseException as failure:
            self._failures.append(failure)
