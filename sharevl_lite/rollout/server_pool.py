"""The servers of a recipe: whether they serve its model as it needs, and one adapter on all of them.

A server that was restarted has lost the adapter and answers 404; it is checked again and gets the adapter again. So
does one that was away when the others got it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from sharevl_lite.policy.hf import resolve_model_path
from sharevl_lite.rollout.errors import RolloutError
from sharevl_lite.rollout.serve_command import serve_command
from sharevl_lite.rollout.server_client import (
    Refusal,
    Result,
    ServerClient,
    StayedAway,
    Unavailable,
    new_http,
    patiently,
)

if TYPE_CHECKING:
    from sharevl_lite.config import Recipe

GENERATE = "/inference/v1/generate"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
SWITCHES = {GENERATE: "--enable-scale-out", LOAD: "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"}
FIRST_LOOK_SECONDS, FIRST_LOOK_RETRIES = 30.0, 2
UNLOAD_SECONDS = 10.0
FEW_ATTEMPTS, STRAGGLER_SECONDS = 3, 30.0
"""When another server has the adapter, one that is away is left out after so many attempts or so long."""

logger = logging.getLogger(__name__)


class ServerPool:
    """The servers of `rollout.server_urls`; `dtype` and `max_images` go into the command that a message offers."""

    def __init__(
        self,
        recipe: Recipe,
        http: httpx.AsyncClient,
        *,
        retries: int,
        dtype: str | None = None,
        max_images: int | None = None,
    ) -> None:
        self.recipe = recipe
        self.retries = retries
        self.servers = [ServerClient(url, http) for url in recipe.rollout.server_urls]
        self._away: set[ServerClient] = set()
        """Those without the newest adapter, which the user was told of."""
        self._for_command: dict[str, Any] = {"dtype": dtype, "max_images": max_images}

    def how_to_start(self, server: ServerClient) -> str:
        """The end of a message: the command that starts the server as it is needed."""
        return f"start it with\n    {serve_command(self.recipe, url=server.url, **self._for_command)}"

    async def look(self) -> list[list[dict[str, Any]]]:
        """What each server serves: base models and adapters.

        Raises RolloutError unless every one runs the recipe's model with what it takes to train it.
        """
        return [
            await self._patiently(server, partial(self._look_at, server), "the first look") for server in self.servers
        ]

    async def load(self, name: str, folder: Path, probe: int) -> None:
        """Hands the adapter in `folder` to every server under `name`; `probe` is a token to try it with.

        One that is away while another has it is left out with a warning: it gets the adapter when it is back and asked
        to sample. Raises RolloutError where one refuses it or none took it.
        """
        taken = asyncio.Event()
        offers = {
            asyncio.create_task(self._offer(server, partial(self.reload, server, name, folder, probe), taken)): server
            for server in self.servers
        }
        try:
            await _wait_for(offers, taken)
            if not taken.is_set():
                raise next(trouble for offer in offers if (trouble := offer.result()))
        finally:
            for offer in offers:
                offer.cancel()
            await asyncio.gather(*offers, return_exceptions=True)
        for offer, server in offers.items():
            slow = Unavailable(f"{server.url} has not taken the adapter {STRAGGLER_SECONDS:g} s after another did")
            self._note(server, slow if offer.cancelled() else offer.result())

    async def _offer(
        self, server: ServerClient, hand_over: Callable[[], Coroutine[Any, Any, None]], taken: asyncio.Event
    ) -> Unavailable | StayedAway | None:
        """Hands the adapter to one server and says that it is `taken`; returns why not, where the server is away."""
        few = 1 if server in self._away else FEW_ATTEMPTS

        async def attempt(number: int) -> Unavailable | None:
            try:
                await hand_over()
            except Unavailable as trouble:
                if taken.is_set() and number + 1 >= few:
                    return trouble
                raise
            taken.set()
            return None

        advice = partial(self.how_to_start, server)
        try:
            return await patiently(
                attempt, retries=self.retries, advice=advice, what="rollout, handing the adapter over"
            )
        except StayedAway as trouble:
            return trouble

    def _note(self, server: ServerClient, trouble: Exception | None) -> None:
        """Warns once of a server that is away, until it has taken an adapter again."""
        if trouble is None:
            self._away.discard(server)
        elif server not in self._away:
            self._away.add(server)
            logger.warning(
                "%s; it is left out while the others sample, and gets the adapter when it is back: %s",
                trouble,
                self.how_to_start(server),
            )

    async def unload(self, name: str) -> None:
        """Takes an adapter's name from the servers; one that is away or does not know it any more is as wanted."""

        async def one(server: ServerClient) -> None:
            with suppress(Unavailable, Refusal, RolloutError, TimeoutError):
                async with asyncio.timeout(UNLOAD_SECONDS):
                    await server.tell(UNLOAD, {"lora_name": name})

        await asyncio.gather(*(one(server) for server in self.servers))

    async def reload(self, server: ServerClient, name: str, folder: Path, probe: int) -> None:
        """Makes the adapter known to one server, unless it is. Raises Unavailable or RolloutError."""
        async with server.loading:
            cards = await self._cards(server)
            self._check_model(server, cards)
            if any(card.get("id") == name for card in cards):
                return
            try:
                await server.tell(LOAD, {"lora_name": name, "lora_path": str(folder)})
            except (Refusal, Unavailable) as error:
                if not await self._took_it(server, name, error):
                    raise self._not_loaded(server, folder, error) from error
            await self._check_logprobs(server, name, probe)

    async def _took_it(self, server: ServerClient, name: str, error: Refusal | Unavailable) -> bool:
        """Whether the adapter is there all the same: another process was faster. Raises Unavailable for what may pass.

        vLLM answers 500 for an adapter that it cannot use, which no second attempt changes; so does a dying server.
        """
        if isinstance(error, Unavailable) and (error.status != 500 or not await server.is_healthy()):
            raise error
        return any(card.get("id") == name for card in await self._cards(server))

    async def _cards(self, server: ServerClient) -> list[dict[str, Any]]:
        """What a known server serves: where it is refused, a gateway speaks while the server is restarted.

        Raises Unavailable.
        """
        try:
            return await server.models()
        except Refusal as refusal:
            raise Unavailable(_no_models(server, refusal), refusal.status) from refusal

    def _not_loaded(self, server: ServerClient, folder: Path, error: Refusal | Unavailable) -> RolloutError:
        return RolloutError(
            f"{server.url} did not load the adapter in {folder} ({error}). It must be able to read that folder (on "
            "another machine set rollout.server_adapter_dir to one of a shared file system) and allow adapters: "
            + self.how_to_start(server)
        )

    async def _check_logprobs(self, server: ServerClient, name: str, probe: int) -> None:
        """A token that is the only one allowed has probability 1 in the distribution that is sampled from."""
        parameters = {"max_tokens": 1, "allowed_token_ids": [probe], "logprobs": 0, "detokenize": False}
        body = {"model": name, "token_ids": [probe], "sampling_params": parameters}
        try:
            answer = await server.post(GENERATE, body)
            logprob = float(answer["choices"][0]["logprobs"]["content"][0]["logprob"])
        except Refusal as error:
            raise RolloutError(f"{server.url} does not sample ({error}); {self.how_to_start(server)}") from error
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise Unavailable(f"{server.url} answered a request with something else than tokens ({error!r})") from error
        if abs(logprob) > 1e-3:
            raise RolloutError(
                f"{server.url} gives log-probs of another distribution than the one it samples from; "
                + self.how_to_start(server)
            )

    async def _look_at(self, server: ServerClient) -> list[dict[str, Any]]:
        try:
            cards = await server.models()
        except Refusal as refusal:
            raise RolloutError(f"rollout.server_urls: {_no_models(server, refusal)}") from refusal
        self._check_model(server, cards)
        try:
            paths = (await server.get("/openapi.json"))["paths"]
        except (Refusal, KeyError, TypeError):
            return cards  # its documentation is switched off: what is missing shows in the first step
        for path, switch in SWITCHES.items():
            if path not in paths:
                raise RolloutError(f"{server.url} runs without {switch}; {self.how_to_start(server)}")
        return cards

    def _check_model(self, server: ServerClient, cards: list[dict[str, Any]]) -> None:
        wanted = self.recipe.rollout.server_model
        bases = [card for card in cards if card.get("parent") is None]
        found = [card for card in bases if self._is_wanted(card)]
        if not found:
            served = ", ".join(_described(card) for card in bases) or "nothing"
            told = f"rollout.server_model {wanted!r}" if wanted else f"model.path {self.recipe.model.path!r}"
            name = bases[0].get("id") if bases else "NAME"
            raise RolloutError(
                f"{server.url} serves {served}, the recipe trains {told}. If these are the same weights under another "
                f"name, set rollout.server_model: {name}; else {self.how_to_start(server)}"
            )
        room, needed = found[0].get("max_model_len"), self.recipe.max_sequence_length
        if isinstance(room, int) and room < needed:
            raise RolloutError(
                f"{server.url} reads at most {room} tokens; the recipe needs {needed} (data.max_prompt_length + "
                f"rollout.max_completion_length): {self.how_to_start(server)}"
            )

    def _is_wanted(self, card: dict[str, Any]) -> bool:
        wanted = self.recipe.rollout.server_model
        if wanted is not None:
            return card.get("id") == wanted
        path = self.recipe.model.path
        names = {path, resolve_model_path(path)}
        own = [str(card.get(key)) for key in ("id", "root")]
        return any(name in names or _same_folder(name, resolve_model_path(path)) for name in own)

    async def _patiently(
        self, server: ServerClient, attempt: Callable[[], Coroutine[Any, Any, Result]], what: str
    ) -> Result:
        def once(number: int) -> Coroutine[Any, Any, Result]:
            return attempt()

        return await patiently(
            once, retries=self.retries, advice=lambda: self.how_to_start(server), what=f"rollout, {what}"
        )


async def _wait_for(offers: Collection[asyncio.Task[Any]], taken: asyncio.Event) -> None:
    """Returns when all have ended, or some time after the first was taken. Raises what one of them raised."""
    pending = set(offers)
    while pending and not taken.is_set():
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for offer in done:
            offer.result()
    if pending:
        done, _ = await asyncio.wait(pending, timeout=STRAGGLER_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
        for offer in done:
            offer.result()


async def look_at_servers(recipe: Recipe) -> None:
    """A quick look at every server before anything is loaded. Raises RolloutError."""
    section = recipe.rollout
    timeout = min(FIRST_LOOK_SECONDS, section.server_timeout_seconds)
    async with new_http(timeout, section.server_urls) as http:
        await ServerPool(recipe, http, retries=min(FIRST_LOOK_RETRIES, section.server_retries)).look()


def _no_models(server: ServerClient, refusal: Refusal) -> str:
    return f"{server.where} answers /v1/models with {refusal.status}; it is no vLLM server, or the URL is wrong"


def _described(card: dict[str, Any]) -> str:
    name, root = card.get("id"), card.get("root")
    return repr(name) if root in (name, None) else f"{name!r} ({root})"


def _same_folder(one: str, other: str) -> bool:
    return Path(one).is_dir() and Path(other).is_dir() and Path(one).samefile(other)
