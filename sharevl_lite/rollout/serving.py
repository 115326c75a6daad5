"""A model on the recipe's first server, by the name that an OpenAI-compatible client asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sharevl_lite import event_loop
from sharevl_lite.policy.hf import adapter_digest, resolve_model_path
from sharevl_lite.rollout.server_client import new_http
from sharevl_lite.rollout.server_pool import ServerPool

if TYPE_CHECKING:
    from sharevl_lite.config import Recipe

PROBE = 0
"""Any token will do to try an adapter with."""


def name_of(recipe: Recipe, adapter: Path | None) -> str:
    """The base model's name on the servers, or one of this adapter's weights: the same name always means the same.

    An adapter's has nothing of the run's name: clients go by words in a model's name (lmms-eval takes `geo3k` for one
    of OpenAI's, by its `o3`). Nor is it the digest alone, which may read as a number, as 12345e678901 does.
    """
    if adapter is None:
        return recipe.rollout.server_model or resolve_model_path(recipe.model.path)
    return f"adapter-{adapter_digest(adapter)[:12]}"


@contextmanager
def served(recipe: Recipe, adapter: Path | None) -> Iterator[str]:
    """The name under which the first server answers while the context lasts; it holds the adapter so long.

    Raises RolloutError where the server cannot be reached, runs another model, or cannot read the adapter's folder.
    """
    one = recipe.model_copy(
        update={"rollout": recipe.rollout.model_copy(update={"server_urls": recipe.rollout.server_urls[:1]})}
    )
    name = event_loop.run(_hand_over(one, adapter))
    try:
        yield name
    finally:
        if adapter is not None:
            event_loop.run(_take_back(one, name))


async def _hand_over(recipe: Recipe, adapter: Path | None) -> str:
    name = name_of(recipe, adapter)
    async with new_http(recipe.rollout.server_timeout_seconds, recipe.rollout.server_urls) as http:
        pool = ServerPool(recipe, http, retries=min(2, recipe.rollout.server_retries))
        (cards,) = await pool.look()
        if adapter is not None:
            await pool.load(name, adapter.absolute(), PROBE)
            return name
    bases = [str(card.get("id")) for card in cards if card.get("parent") is None]
    return name if name in bases else bases[0]  # the look found the recipe's model there, under its own name


async def _take_back(recipe: Recipe, name: str) -> None:
    async with new_http(recipe.rollout.server_timeout_seconds, recipe.rollout.server_urls) as http:
        await ServerPool(recipe, http, retries=0).unload(name)
