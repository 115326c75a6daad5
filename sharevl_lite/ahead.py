"""One piece of work ahead of time, in the background: the next rollout is sampled while this one is trained."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """At most one call at a time, in a thread that does not keep the process alive."""

    def __init__(self) -> None:
        self._made: futures.Future[T] | None = None

    def start(self, make: Callable[[], T]) -> None:
        """Begins to make something. Raises RuntimeError while an earlier result was not taken."""
        if self._made is not None:
            raise RuntimeError("the result of the call before has not been taken")
        self._made = futures.Future()
        threading.Thread(target=_fill, args=(self._made, make), name="sharevl-ahead", daemon=True).start()

    def wait(self) -> None:
        """Returns when nothing runs; what was made stays to be taken."""
        if self._made is not None:
            futures.wait([self._made])

    def take(self) -> T | None:
        """What was made (waits for it), or None where nothing was begun. Raises what the call raised."""
        made, self._made = self._made, None
        return None if made is None else made.result()


def _fill(made: futures.Future[T], make: Callable[[], T]) -> None:
    try:
        made.set_result(make())
    except BaseException as failure:
        made.set_exception(failure)
