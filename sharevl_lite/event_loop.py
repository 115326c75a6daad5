"""Coroutines for callers that may have an event loop of their own, as a notebook has: asyncio.run refuses those."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

Result = TypeVar("Result")


class LoopThread:
    """An event loop in a thread of its own, ended by :meth:`close` or at the end of a `with` block.

    An interrupt of the caller cancels what runs there.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of `work`, or its exception."""
        future = asyncio.run_coroutine_threadsafe(_kept(work), self._loop)
        try:
            result = future.result()
        except BaseException:
            future.cancel()
            raise
        if isinstance(result, SystemExit):
            raise result
        return result

    def close(self) -> None:
        """Ends what still runs, in order, and then the thread."""
        self.run(_end_the_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def _kept(work: Coroutine[Any, Any, Result]) -> Result | SystemExit:
    """A SystemExit as a result: raised in a task it would end the loop, and nobody would hear of it."""
    try:
        return await work
    except SystemExit as leaving:
        return leaving


async def _end_the_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, or its exception, from a loop that is made for it."""
    with LoopThread("sharevl-run") as loop:
        return loop.run(work)
