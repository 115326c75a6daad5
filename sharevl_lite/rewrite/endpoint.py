"""Any OpenAI-compatible endpoint: concurrent, retried with back-off, within the server's rate limit."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from urllib.parse import urlsplit

from sharevl_lite.rewrite.cache import Reply
from sharevl_lite.rewrite.chat import ChatRequest, NoReplyError, openai_message
from sharevl_lite.rewrite.errors import VariantsError
from sharevl_lite.rollout.server_client import key_in, retry_after

TRIES = 6
LONGEST_WAIT = 120.0
FATAL = frozenset({401, 403, 404})


class EndpointModel:
    """A chat model behind `base_url`; `concurrency` requests at a time, each ended after `timeout` seconds.

    Raises RolloutError where OPENAI_API_KEY holds what no header may have.
    """

    def __init__(self, base_url: str, model: str, *, concurrency: int, timeout: float) -> None:
        from openai import AsyncOpenAI

        self.model = model
        self.identity = f"openai:{model}"
        self._address = without_credentials(base_url)
        key = key_in("OPENAI_API_KEY") or "none"  # local servers ask for none
        self._client = AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=timeout)
        self._slots = asyncio.Semaphore(concurrency)
        self._open_at = 0.0

    async def ask(self, request: ChatRequest, usage: Counter[str]) -> Reply:
        """The reply, after up to TRIES attempts.

        Raises:
            NoReplyError: The server refuses this request, or answers none of the attempts.
            VariantsError: The server refuses the key or knows no such model.
        """
        import openai

        reason = "no try"
        for attempt in range(TRIES):
            async with self._slots:
                await asyncio.sleep(max(0.0, self._open_at - time.monotonic()))
                try:
                    return await self._once(request)
                except openai.APIStatusError as error:
                    reason = f"HTTP {error.status_code}"
                    if error.status_code in FATAL:
                        raise VariantsError(f"{self.identity}: {reason}; check address, key and model") from error
                    if error.status_code not in {408, 409, 429} and error.status_code < 500:
                        raise NoReplyError(reason) from error
                    asked_wait = retry_after(error.response.headers.get("retry-after"))
                    if asked_wait is not None:  # the limit is for all, not for this request alone
                        self._open_at = max(self._open_at, time.monotonic() + min(asked_wait, LONGEST_WAIT))
                except (openai.APIConnectionError, json.JSONDecodeError, openai.APIResponseValidationError) as error:
                    reason = type(error).__name__
            if attempt + 1 < TRIES:
                usage[f"retried: {reason}"] += 1
                await asyncio.sleep(min(30.0, 0.5 * 2**attempt) * (0.75 + random.random() / 4))
        raise NoReplyError(f"{reason}, {TRIES} times{self._what_to_do(reason)}")

    def _what_to_do(self, reason: str) -> str:
        """About a fault of the connection, with the address; nothing about others."""
        if reason == "APITimeoutError":
            return f": {self._address} did not answer in time; raise --timeout, or lower --concurrency"
        if reason == "APIConnectionError":
            return f": nothing can be reached at {self._address}; start the server, or correct the address"
        return ""

    async def _once(self, request: ChatRequest) -> Reply:
        started = time.monotonic()
        done = await self._client.chat.completions.create(
            model=self.model,
            messages=[openai_message(request)],  # type: ignore[list-item]
            temperature=request.temperature,
            max_tokens=request.max_tokens,
            seed=request.seed,
        )
        text = (done.choices[0].message.content if done.choices else None) or ""
        used = done.usage
        tokens = (used.prompt_tokens, used.completion_tokens) if used else (0, 0)
        return Reply(text, *tokens, time.monotonic() - started)

    async def close(self) -> None:
        """Ends the connections."""
        await self._client.close()


def without_credentials(url: str) -> str:
    """Scheme, host, port and path of an address: no user, password or query."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
