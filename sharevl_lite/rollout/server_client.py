"""Requests to a vLLM server that outlast what servers go through: a restart, a queue, a dropped connection.

A fault that may pass (no connection, no answer in time, 408, 425, 429, 5xx, an answer that is none) raises
:class:`Unavailable`, and :func:`patiently` tries again after a growing pause. Whatever will be the same next time is a
:class:`Refusal`.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from sharevl_lite.rollout.errors import RolloutError
from sharevl_lite.rollout.proxies import proxy_of, shown, transports

Result = TypeVar("Result")

KEY_VARIABLE = "VLLM_API_KEY"
CONNECT_SECONDS = 10.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0
LONGEST_RETRY_AFTER = 600.0
PASSING = frozenset({408, 425, 429})
"""Statuses below 500 that ask for another attempt: too late, too early, too many."""
SHOWN = 400  # characters of a server's answer in a message


class Unavailable(Exception):
    """A fault that may pass; `status` (HTTP) if the server answered, and `after` seconds it asks to be left alone."""

    def __init__(self, what: str, status: int | None = None, after: float | None = None) -> None:
        super().__init__(what)
        self.status = status
        self.after = after


class Refusal(Exception):
    """The server understood and will not: `status` (HTTP) and its own words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"{status}: {words}")
        self.status = status


class StayedAway(RolloutError):
    """A server was Unavailable at every attempt."""


class ServerClient:
    """One server, known by its base URL; `http` is shared by all of them and holds the key."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self.url = url
        self.root = url.rstrip("/").removesuffix("/v1")
        self.http = http
        proxy = proxy_of(url)
        self.proxy = None if proxy is None else shown(proxy)
        self.where = url if proxy is None else f"{url} (through the proxy {self.proxy})"
        """The server in a message about a fault that may be the proxy's."""
        self.loading = asyncio.Lock()
        """Held while an adapter is handed over, so that one of many refused requests does it."""

    async def get(self, path: str) -> Any:
        """The JSON under `path`. Raises Unavailable or Refusal."""
        return _json(await self._send("GET", path), self.url)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that answers `body`. Raises Unavailable or Refusal."""
        return _json(await self._send("POST", path, body), self.url)

    async def tell(self, path: str, body: dict[str, Any]) -> None:
        """Sends `body` where a plain word is the answer. Raises Unavailable or Refusal."""
        await self._send("POST", path, body)

    async def is_healthy(self) -> bool:
        """Whether the server says that its engine runs."""
        try:
            await self._send("GET", "/health")
        except (Unavailable, Refusal):
            return False
        return True

    async def models(self) -> list[dict[str, Any]]:
        """What it serves: base models and adapters. Raises Unavailable or Refusal."""
        answer = await self.get("/v1/models")
        try:
            return [dict(card) for card in answer["data"]]
        except (KeyError, TypeError, ValueError) as error:
            raise Unavailable(f"{self.url} answered /v1/models with something else than models ({error!r})") from error

    async def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        whole = self.http.timeout.read  # httpx bounds each read, and an answer that drips would go on for ever
        try:
            async with asyncio.timeout(whole):
                answer = await self.http.request(method, self.root + path, json=body)
        except (TimeoutError, httpx.TimeoutException) as error:
            why = "ConnectTimeout" if isinstance(error, httpx.ConnectTimeout) else f"{whole:g} s"
            raise Unavailable(f"{self.where} did not answer in time ({why})") from error
        except httpx.LocalProtocolError:  # its text may quote a header, and one of them is the key
            raise Unavailable(f"{self.url} cannot be asked (LocalProtocolError)") from None
        except httpx.DecodingError as error:
            raise Unavailable(f"{self.where} answered with something that cannot be unpacked ({error})") from error
        except httpx.RequestError as error:
            raise Unavailable(f"{self.where} cannot be reached ({str(error) or type(error).__name__})") from error
        if answer.status_code in PASSING or answer.status_code >= 500:
            words = f"{self.where} answered {answer.status_code}: {_words(answer)}"
            raise Unavailable(words, answer.status_code, retry_after(answer.headers.get("Retry-After")))
        if answer.status_code in (401, 403, 407):
            raise RolloutError(self._locked_out(answer.status_code))
        if answer.status_code >= 300:
            raise Refusal(answer.status_code, _words(answer))
        return answer

    def _locked_out(self, status: int) -> str:
        key = "set the environment variable VLLM_API_KEY to the key that the server was started with"
        if self.proxy is None:
            return f"rollout.server_urls: {self.url} wants another key ({status}); {key}"
        return (
            f"rollout.server_urls: {self.url} wants another key, or the proxy {self.proxy} lets nobody through "
            f"({status}); {key}, and name the server's host in NO_PROXY if it needs no proxy"
        )


async def patiently(
    attempt: Callable[[int], Awaitable[Result]], *, retries: int, advice: Callable[[], str], what: str
) -> Result:
    """The result of `attempt(0)`, or of the first of `retries` more that is not Unavailable.

    Pauses double from half a second to 20 seconds, each shortened by chance by up to a half so that many clients do not
    come back together; `Retry-After` lengthens one. Raises StayedAway with `advice` when none is left.
    """
    started = time.monotonic()
    number = 0
    while True:
        try:
            return await attempt(number)
        except Unavailable as trouble:
            if number >= retries:
                tries = f"{number + 1} attempts in {time.monotonic() - started:.0f} s" if number else "one attempt"
                raise StayedAway(f"{what}: {trouble} ({tries}); {advice()}") from trouble
            await asyncio.sleep(pause(number, trouble.after))
        number += 1


def pause(number: int, after: float | None = None) -> float:
    """Seconds to wait after failed attempt `number`, at least `after`."""
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(number, 16))
    return max(longest * random.uniform(0.5, 1.0), min(after or 0.0, LONGEST_RETRY_AFTER))


def key_in(variable: str) -> str | None:
    """The key in an environment variable, without the white space around it; an empty one is none.

    Raises RolloutError, which does not show the key, where a request could not carry it.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise RolloutError(f"{variable} holds characters that no HTTP header may have; set it to the key alone")
    return key or None


def new_http(timeout_seconds: float, urls: Sequence[str]) -> httpx.AsyncClient:
    """Connections to the servers of `urls` with the user's key and, where the environment says so, through a proxy.

    They have no bound of their own: the engine bounds the requests under way. Raises RolloutError where the key is none
    that can be sent, or a proxy none that can be used.
    """
    key = key_in(KEY_VARIABLE)
    # Servers close an idle connection after five seconds; a request on one that is about to close would fail.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0)
    return httpx.AsyncClient(
        headers={} if key is None else {"Authorization": f"Bearer {key}"},
        timeout=httpx.Timeout(timeout_seconds, connect=min(CONNECT_SECONDS, timeout_seconds)),
        limits=limits,
        mounts=transports(urls, limits),
        trust_env=False,  # it would choose proxies by rules of its own
        verify=httpx.create_ssl_context(),
    )


def _json(answer: httpx.Response, url: str) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise Unavailable(f"{url} answered {answer.request.url.path} with something that is not JSON") from error


def _words(answer: httpx.Response) -> str:
    """What the server says of a fault: vLLM's message, or the beginning of whatever came."""
    try:
        told = answer.json()
        message = told["error"]["message"] if "error" in told else told["detail"]
    except (ValueError, KeyError, TypeError):
        message = answer.text
    text = " ".join(str(message).split()) or answer.reason_phrase
    return text if len(text) <= SHOWN else text[:SHOWN] + " …"


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which gives seconds or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
