"""Rollouts with the vLLM engine that shares its weights with Unsloth's model: one copy of the base for both.

What is asked of vLLM, and what is checked of its answers, is the same as with an engine of its own. Weights that are
trained on cannot be put to sleep, so the engine stays awake.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sharevl_lite.rollout.errors import RolloutError
from sharevl_lite.rollout.vllm import VLLMRolloutEngine

if TYPE_CHECKING:
    from sharevl_lite.config import Recipe


class UnslothRolloutEngine(VLLMRolloutEngine):
    """The engine of a policy that was loaded with `model.loader: unsloth` and `rollout.engine: unsloth`.

    Raises RolloutError where the model came without one, or for prompts with several images.
    """

    may_sleep = False

    def _start(self, recipe: Recipe, max_images: int) -> Any:
        engine = getattr(self.policy.base, "vllm_engine", None)
        if engine is None:
            raise RolloutError(
                "rollout.engine: Unsloth loaded the model without a vLLM engine; check the versions with sharevl-lite "
                "doctor, or choose rollout.engine: vllm"
            )
        if max_images > 1:
            raise RolloutError(
                f"rollout.engine: Unsloth's engine takes one image a prompt, and there are problems with {max_images}; "
                "choose rollout.engine: vllm"
            )
        return engine
