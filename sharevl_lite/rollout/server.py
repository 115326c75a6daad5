"""Rollouts from vLLM servers on other GPUs or machines, over HTTP.

A request goes to vLLM's endpoint for tokens, `/inference/v1/generate`: the policy's prompt ids with one placeholder an
image, and the pictures as the policy's own processor resized them (PNG, base64). Nothing is rendered or tokenised
again, the model's generation settings are not mixed in, and sampled ids come back with their log-probs. (The chat
endpoint renders a template of its own and fills in a repetition penalty that a checkpoint may name.) The prompt ids
that the server expanded come back too and must be the policy's.

After an update the main process writes the adapter into a folder that the servers can read and has them load it under
a name never used before, which keeps their caches of earlier adapters apart; every process samples under that name.
A server that was restarted gets the adapter again; one that does not answer is asked again, or another one is, and an
update does not wait for it while another has the adapter.

Responses are seeded by name, but a server's batches change their rounding: a resumed run samples alike, not bit for
bit.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed

from sharevl_lite import event_loop
from sharevl_lite.image_files import data_url, png_bytes
from sharevl_lite.policy.hf import save_adapter
from sharevl_lite.rollout.engine import Response, Sampling, SamplingRequest, end_ids
from sharevl_lite.rollout.errors import RolloutError
from sharevl_lite.rollout.limits import (
    check_frozen_vision,
    check_recipe,
    engine_dtype,
    num_drawn,
    sampling_parameters,
)
from sharevl_lite.rollout.server_client import Refusal, ServerClient, Unavailable, new_http, patiently
from sharevl_lite.rollout.server_pool import GENERATE, ServerPool, look_at_servers
from sharevl_lite.together import is_main_process

if TYPE_CHECKING:
    from sharevl_lite.config import Recipe
    from sharevl_lite.policy.packed import PackedPolicy

NO_LOGPROB = -9999.0
"""What a server writes for a log-prob that it has not."""
MOST_LOGPROB = 1e-6  # of a certain token, rounded
SERVED_DIR = "served"


def check_servers(recipe: Recipe) -> None:
    """Looks at every server before weights are loaded.

    Raises RolloutError where one cannot be reached, runs another model or lacks what training needs.
    """
    check_recipe(recipe)
    event_loop.run(look_at_servers(recipe))


class ServerRolloutEngine:
    """Samples from the recipe's servers; prompts have up to `max_images` images.

    Under torchrun every process samples for itself, and all of them must call :meth:`sync` together.
    """

    def __init__(self, policy: PackedPolicy, recipe: Recipe, *, max_images: int = 1) -> None:
        check_recipe(recipe)
        check_frozen_vision(policy)
        section = recipe.rollout
        self.policy = policy
        self.end_ids = end_ids(policy)
        self._concurrency = section.batch_size
        self._retries = section.server_retries
        self._longest = recipe.max_sequence_length
        self._http = new_http(section.server_timeout_seconds, section.server_urls)
        self._pool = ServerPool(
            recipe, self._http, retries=self._retries, dtype=engine_dtype(policy), max_images=max_images
        )
        self._loop = event_loop.LoopThread("rollout-server")
        self._base = (section.server_adapter_dir or recipe.run_dir / SERVED_DIR).absolute()
        if section.server_adapter_dir is None and is_main_process():
            shutil.rmtree(self._base, ignore_errors=True)  # what a killed run left there
        self._prefix = f"{recipe.name}-{secrets.token_hex(4)}"
        self._synced = 0
        self._name = ""

    def sample(self, requests: Sequence[SamplingRequest], sampling: Sampling) -> list[list[Response]]:
        """`count` responses to each request, in order.

        Raises RolloutError where a server read another prompt than the policy did, drew a vision token, refuses, or
        stays away for all retries.
        """
        if self._synced == 0:
            self.sync()
        return self._loop.run(self._sample(requests, sampling)) if requests else []

    def sync(self) -> None:
        """Hands the current adapter to every server that is up. Raises RolloutError, on all processes alike."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # nobody samples under the previous name any more
        self._synced += 1
        previous = self._name
        self._name = _from_main(lambda: self._hand_over(previous))

    def close(self) -> None:
        """Takes the adapter from the servers and its files from the folder, and ends all connections."""
        if is_main_process() and self._name:
            self._take_back(self._name)
        self._loop.run(self._http.aclose())
        self._loop.close()

    def _folder(self, name: str) -> Path:
        return self._base / name

    def _hand_over(self, previous: str) -> str:
        """Saves the adapter and has every server load it in the place of the previous one; returns its name."""
        name = f"{self._prefix}-{self._synced}"
        try:
            save_adapter(self.policy, self._folder(name))
            self._loop.run(self._pool.load(name, self._folder(name), self.end_ids[0]))
            if previous:
                self._loop.run(self._pool.unload(previous))
        except BaseException:  # nobody knows its name any more, and some server may have loaded it
            self._take_back(name)
            raise
        if previous:
            shutil.rmtree(self._folder(previous), ignore_errors=True)
        return name

    def _take_back(self, name: str) -> None:
        """Takes an adapter from the servers and its files from the folder."""
        try:
            self._loop.run(self._pool.unload(name))
        finally:
            shutil.rmtree(self._folder(name), ignore_errors=True)

    async def _sample(self, requests: Sequence[SamplingRequest], sampling: Sampling) -> list[list[Response]]:
        room = asyncio.Semaphore(self._concurrency)

        async def one(place: int, request: SamplingRequest) -> list[Response]:
            async with room:
                return await self._ask(place, request, sampling)

        tasks = [asyncio.create_task(one(place, request)) for place, request in enumerate(requests)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, place: int, request: SamplingRequest, sampling: Sampling) -> list[Response]:
        body = await asyncio.to_thread(self._body, request, sampling)
        servers = self._pool.servers

        async def attempt(number: int) -> list[Response]:
            server = servers[(place + number) % len(servers)]  # another one may be up
            return self._responses(request, sampling, await self._generate(server, body), server)

        return await patiently(
            attempt,
            retries=self._retries,
            advice=lambda: (
                "look at its log; " + self._pool.how_to_start(servers[(place + self._retries) % len(servers)])
            ),
            what=request.key,
        )

    async def _generate(self, server: ServerClient, body: dict[str, Any]) -> Any:
        """The server's answer; one that does not know the adapter is given it first."""
        try:
            return await server.post(GENERATE, body)
        except Refusal as refusal:
            if refusal.status != 404:
                raise self._refused(server, refusal) from refusal
        await self._pool.reload(server, self._name, self._folder(self._name), self.end_ids[0])
        try:
            return await server.post(GENERATE, body)
        except Refusal as refusal:
            raise self._refused(server, refusal) from refusal

    def _refused(self, server: ServerClient, refusal: Refusal) -> RolloutError:
        return RolloutError(f"{server.url} refused a request ({refusal}); {self._pool.how_to_start(server)}")

    def _body(self, request: SamplingRequest, sampling: Sampling) -> dict[str, Any]:
        files = [png_bytes(picture.convert("RGB")) for picture in request.prompt.pictures]  # the pixels as they are
        pictures = [{"type": "image_url", "url": data_url(file)} for file in files]
        return {
            "model": self._name,
            "token_ids": self._unexpanded(request),
            **({"content_parts": pictures} if pictures else {}),
            "return_token_ids": True,
            "sampling_params": sampling_parameters(request, sampling, self.policy),
        }

    def _unexpanded(self, request: SamplingRequest) -> list[int]:
        """The prompt's ids with one placeholder an image. (Templates put other tokens between two images.)"""
        image = self.policy.config.image_token_id
        ids = request.prompt.prefix.ids_P.tolist()
        return [token for token, before in zip(ids, [None, *ids], strict=False) if not token == before == image]

    def _responses(
        self, request: SamplingRequest, sampling: Sampling, answer: Any, server: ServerClient
    ) -> list[Response]:
        try:
            read = [int(token) for token in answer["prompt_token_ids"]]
            choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
            drawn = [_Drawn.read(choice) for choice in choices]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise Unavailable(f"{server.url} answered with something else than responses ({error!r})") from error
        expected = request.prompt.prefix.ids_P.tolist()
        if read != expected:
            raise RolloutError(
                f"{request.key}: {server.url} read {len(read)} prompt tokens where the policy reads {len(expected)}, "
                f"and they differ; its processor is not the policy's. {self._pool.how_to_start(server)}"
            )
        asked = num_drawn(request, sampling)
        if len(drawn) != asked:
            raise Unavailable(f"{server.url} answered with {len(drawn)} responses, {asked} were asked for")
        room = min(sampling.max_completion_length, self._longest - len(expected))
        return [self._response(request.key, server, one, room) for one in drawn] * (request.count // asked)

    def _response(self, key: str, server: ServerClient, drawn: _Drawn, room: int) -> Response:
        """One response; it may end without an end token where it fills its room (tokens)."""
        ids = drawn.ids
        truncated = not ids or ids[-1] not in self.end_ids
        if drawn.reason not in ("stop", "length") or (truncated and len(ids) < room):
            raise Unavailable(f"{server.url} broke a response off after {len(ids)} tokens ({drawn.reason})")
        banned = set(ids) & set(self.policy.vision_token_ids)
        if banned:
            raise RolloutError(
                f"{key}: {server.url} drew the vision tokens {sorted(banned)} although they are banned; "
                + self._pool.how_to_start(server)
            )
        text = self.policy.processor.tokenizer.decode(ids, skip_special_tokens=True)
        return Response(ids, drawn.logprobs, text, truncated)


@dataclass(frozen=True)
class _Drawn:
    """One response as a server tells it: ids, log-probs, and why it ended."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    reason: str

    @classmethod
    def read(cls, choice: dict[str, Any]) -> _Drawn:
        """Raises KeyError, TypeError or ValueError where the parts are missing or do not belong together."""
        ids = tuple(int(token) for token in choice["token_ids"])
        logprobs = tuple(float(place["logprob"]) for place in choice["logprobs"]["content"])
        if len(ids) != len(logprobs) or not all(NO_LOGPROB < logprob <= MOST_LOGPROB for logprob in logprobs):
            raise ValueError(f"{len(ids)} tokens with the log-probs {logprobs[:3]}")
        return cls(ids, logprobs, str(choice["finish_reason"]))


def _from_main(make: Any) -> str:
    """What the main process makes, on all of them. Raises there and here the RolloutError that it raised."""
    box: list[Any] = [None, None]
    if is_main_process():
        try:
            box[0] = make()
        except RolloutError as error:
            box[1] = str(error)
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise RolloutError(box[1])
    return str(box[0])
