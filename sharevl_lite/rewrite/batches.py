"""A model in this process: requests that wait become a batch, one batch at a time, in a thread of its own.

While a batch is generated the event loop goes on: replies are filtered and written, and the next requests gather.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from sharevl_lite.rewrite.cache import Reply
from sharevl_lite.rewrite.chat import ChatRequest, NoReplyError


class BatchedModel(ABC):
    """Base of the models that generate in this process. A request's reply does not depend on its batch."""

    identity: str

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.stopping = threading.Event()
        """Set when nobody waits for the batch under way any more."""
        self._waiting: list[tuple[ChatRequest, asyncio.Future[Reply]]] = []
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1)

    @abstractmethod
    def generate(self, requests: Sequence[ChatRequest]) -> list[Reply | NoReplyError]:
        """Replies to a batch, in order. Runs in the model's thread; what it raises ends the run.

        The requests of a batch have one temperature and one limit of tokens.
        """

    async def ask(self, request: ChatRequest, usage: Counter[str]) -> Reply:
        """The reply, when a batch with this request is done. Raises NoReplyError where it has none."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            await asyncio.sleep(0)  # whoever is ready to ask does so before the batch is closed
            batch = self._take()
            if not batch:
                return
            replies: Sequence[Reply | Exception]
            try:
                replies = await loop.run_in_executor(self._thread, self.generate, [request for request, _ in batch])
            except Exception as error:
                replies = [error] * len(batch)
            for (_, future), reply in zip(batch, replies, strict=True):
                if future.done():  # nobody waits any more
                    continue
                if isinstance(reply, Exception):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)

    def _take(self) -> list[tuple[ChatRequest, asyncio.Future[Reply]]]:
        """The first request that is still wanted, and others of its kind."""
        self._waiting = [entry for entry in self._waiting if not entry[1].done()]
        if not self._waiting:
            return []
        first = self._waiting[0][0]
        alike = [
            entry
            for entry in self._waiting
            if (entry[0].temperature, entry[0].max_tokens) == (first.temperature, first.max_tokens)
        ]
        batch = alike[: self.batch_size]
        taken = {id(entry) for entry in batch}
        self._waiting = [entry for entry in self._waiting if id(entry) not in taken]
        return batch

    async def close(self) -> None:
        """Gives up what waits, and ends the thread when its batch is done."""
        self.stopping.set()
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._thread.shutdown(wait=True)
