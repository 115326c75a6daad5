"""Rewriting with any OpenAI-compatible endpoint: concurrent, retried with back-off, within the server's rate limit."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import random
import re
import time
from collections import Counter
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from sharevl_lite.data.images import encoded_images
from sharevl_lite.data.problem import PLACEHOLDER, Problem

from .cache import Reply, ReplyCache
from .errors import VariantsError
from .replies import instruction, parse_rewrites

TRIES = 6
PARSE_TRIES = 3
LONGEST_WAIT = 120.0
FATAL = frozenset({401, 403, 404})
MOST_FAILURES = 8
"""Problems in a row without a reply after which the run stops: the server is gone, not one request bad."""


class EndpointRewriter:
    """A chat model behind `base_url`, with its replies in `cache`.

    `usage` counts requests, tokens and seconds of this run, `retries` by cause, `unparsable` and `failed` problems.
    """

    name = "openai"

    def __init__(
        self, base_url: str, model: str, cache: ReplyCache, *, seed: int, concurrency: int, timeout: float = 120.0
    ) -> None:
        from openai import AsyncOpenAI

        self.model, self.seed, self.cache = model, seed, cache
        self.usage: Counter[str] = Counter()
        self.seconds = 0.0
        key = os.environ.get("OPENAI_API_KEY") or "none"  # local servers ask for none
        self._client = AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=timeout)
        self._slots = asyncio.Semaphore(concurrency)
        self._open_at = 0.0
        self._failures = 0

    async def rewrite(self, problem: Problem, count: int) -> list[str]:
        """Up to `count` rewrites; none where the model gave no usable list, which `usage` counts."""
        images = encoded_images(problem.images)
        leading = re.match(rf"(?:\s*{re.escape(PLACEHOLDER)})*\s*", problem.text)
        start = leading.end() if leading else 0
        question = problem.text[start:]
        for attempt in range(PARSE_TRIES):
            body = self._body(instruction(question, count), images, attempt)
            try:
                reply, asked = await self.cache.get_or_ask(_key(body), partial(self._ask, body))
            except _NoReplyError as error:
                return self._fail(error)
            self._failures = 0
            self.usage["requests" if asked else "cached"] += 1
            if asked:
                self.usage["tokens_in"] += reply.tokens_in
                self.usage["tokens_out"] += reply.tokens_out
                self.seconds += reply.seconds
            texts = parse_rewrites(reply.text)
            if texts is not None:
                return [text if PLACEHOLDER in text else problem.text[:start] + text for text in texts[:count]]
            self.usage["replies_unparsable"] += 1
        self.usage["unparsable"] += 1
        return []

    def _fail(self, error: Exception) -> list[str]:
        self.usage["failed"] += 1
        self._failures += 1
        if self._failures >= MOST_FAILURES:
            raise VariantsError(
                f"--base-url: {self._failures} requests in a row had no reply (the last: {error}); run the same "
                "command again when the server answers, paid replies are kept"
            ) from error
        return []

    def _body(self, text: str, images: tuple[bytes, ...], attempt: int) -> dict[str, Any]:
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": f"data:{_mime(data)};base64,{base64.b64encode(data).decode()}"}}
            for data in images
        ]
        content.append({"type": "text", "text": text})
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0.8,
            "max_tokens": 2048,
            "seed": self.seed + attempt,
        }

    async def _ask(self, body: dict[str, Any]) -> Reply:
        import openai

        reason = "no try"
        for attempt in range(TRIES):
            async with self._slots:
                await asyncio.sleep(max(0.0, self._open_at - time.monotonic()))
                started = time.monotonic()
                try:
                    done = await self._client.chat.completions.create(**body)
                    used = done.usage
                    return Reply(
                        (done.choices[0].message.content if done.choices else None) or "",
                        used.prompt_tokens if used else 0,
                        used.completion_tokens if used else 0,
                        time.monotonic() - started,
                    )
                except openai.APIStatusError as error:
                    reason = f"HTTP {error.status_code}"
                    if error.status_code in FATAL:
                        raise VariantsError(f"--base-url, --model: {reason} for {self.model!r}") from error
                    if error.status_code not in {408, 409, 429} and error.status_code < 500:
                        raise _NoReplyError(reason) from error
                    asked_wait = retry_after(error.response.headers.get("retry-after"))
                    if asked_wait is not None:  # the limit is for all, not for this request alone
                        self._open_at = max(self._open_at, time.monotonic() + min(asked_wait, LONGEST_WAIT))
                except (openai.APIConnectionError, json.JSONDecodeError, openai.APIResponseValidationError) as error:
                    reason = type(error).__name__
            self.usage[f"retried: {reason}"] += 1
            await asyncio.sleep(min(30.0, 0.5 * 2**attempt) * (0.75 + random.random() / 4))
        raise _NoReplyError(f"{reason}, {TRIES} times")


class _NoReplyError(RuntimeError):
    """A request that got no reply."""


def retry_after(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After header, which holds seconds or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def without_credentials(url: str) -> str:
    """Scheme, host, port and path of an address: no user, password or query."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def _key(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _mime(data: bytes) -> str:
    from io import BytesIO

    from PIL import Image

    with Image.open(BytesIO(data)) as image:
        return image.get_format_mimetype() or "image/png"
