"""Which loader and which sampler a recipe means: the same choice for training and for evaluation."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Literal

from sharevl_lite.errors import INSTALL_GPU
from sharevl_lite.policy.unsloth import check_installed as check_unsloth
from sharevl_lite.policy.unsloth import import_unsloth
from sharevl_lite.rollout.errors import RolloutError

if TYPE_CHECKING:
    from rich.console import Console

    from sharevl_lite.config import Recipe
    from sharevl_lite.policy.packed import PackedPolicy
    from sharevl_lite.rollout.engine import RolloutEngine

LOADERS = {"hf": "transformers", "unsloth": "Unsloth"}


def check_installed(recipe: Recipe) -> None:
    """Raises RolloutError where the recipe's engine needs vLLM and it is not installed, PolicyError where its loader is
    Unsloth and that is not. Imports neither."""
    if recipe.model.loader == "unsloth":
        check_unsloth(beside_vllm=recipe.rollout.uses_vllm)
    if recipe.rollout.uses_vllm and importlib.util.find_spec("vllm") is None:
        raise RolloutError(f"rollout.engine: vLLM is not installed; {INSTALL_GPU}, or choose rollout.engine: hf")


def check_engine(recipe: Recipe) -> None:
    """The same before weights are loaded, and starts Unsloth. Raises PolicyError also where that does not start."""
    check_installed(recipe)
    if recipe.model.loader == "unsloth":
        import_unsloth(beside_vllm=recipe.rollout.uses_vllm)


def check_servers(recipe: Recipe) -> None:
    """With `engine: server`, looks at every server. Raises RolloutError where one is not as the recipe needs it."""
    if recipe.rollout.engine == "server":
        from sharevl_lite.rollout import server

        server.check_servers(recipe)


def tell_wait(console: Console, recipe: Recipe, part: Literal["model", "sampler"]) -> None:
    """Says what is about to start, where that takes more than a few seconds."""
    import torch

    words = None
    if part == "model" and (recipe.model.loader == "unsloth" or torch.cuda.is_available()):
        words = f"loading {recipe.model.path} with {LOADERS[recipe.model.loader]}"
    elif part == "sampler" and recipe.rollout.engine == "vllm":
        words = "starting vLLM, which compiles: a minute or two the first time, less after that"
    if words is not None:
        console.print(f"{part:9} {words}", highlight=False, markup=False, soft_wrap=True)


def load_policy_of(recipe: Recipe) -> PackedPolicy:
    """The recipe's base model with a fresh adapter, by the recipe's loader. Raises PolicyError where responses are
    longer than the model can read."""
    if recipe.model.loader == "unsloth":
        from sharevl_lite.policy.unsloth import load_policy as load_with_unsloth

        policy = load_with_unsloth(recipe)
    else:
        from sharevl_lite.policy.hf import load_policy

        policy = load_policy(recipe.model, seed=recipe.seed, temperature=recipe.rollout.temperature)
    from sharevl_lite.policy.hf import check_context

    check_context(policy.config, recipe.rollout.max_completion_length)
    return policy


def make_engine(recipe: Recipe, policy: PackedPolicy, *, max_images: int, keep_images: bool = False) -> RolloutEngine:
    """The recipe's sampler of this policy; prompts have up to `max_images` images. `keep_images`: what the policy's own
    vision tower makes of them while it samples is kept for an update."""
    if recipe.rollout.engine == "vllm":
        from sharevl_lite.rollout.vllm import VLLMRolloutEngine

        return VLLMRolloutEngine(policy, recipe, max_images=max_images)
    if recipe.rollout.engine == "unsloth":
        from sharevl_lite.rollout.unsloth import UnslothRolloutEngine

        return UnslothRolloutEngine(policy, recipe, max_images=max_images)
    if recipe.rollout.engine == "server":
        from sharevl_lite.rollout.server import ServerRolloutEngine

        return ServerRolloutEngine(policy, recipe, max_images=max_images)
    from sharevl_lite.rollout.hf import HFRolloutEngine

    return HFRolloutEngine(policy, recipe.rollout.batch_size, keep_images=keep_images)
