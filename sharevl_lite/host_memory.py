"""What a run takes of the machine's own memory beside the GPU's, in parts.

- vLLM puts its weights there while it sleeps, into pinned memory;
- the patches of a rollout's pictures wait there until the rollout is trained: at most a prompt's tokens each;
- the program with torch, CUDA's libraries, the verifiers and the loading of a model: about 5 GiB.

A bound, not a forecast: most pictures are smaller. A machine that has less ends the run without a message.
"""

from __future__ import annotations

from typing import Any

from sharevl_lite.config import Recipe
from sharevl_lite.memory_plan import GIB, bytes_each, prompts_of_rollout, weight_bytes
from sharevl_lite.model_shape import ModelShape

PROGRAM_BYTES = 5 * GIB


def host_parts(recipe: Recipe, config: Any, shape: ModelShape, *, half: bool) -> dict[str, int]:
    """Bytes by part, for one process of a run on a GPU; `config` is the model's configuration."""
    width = bytes_each(recipe.model, half=half)
    parts = {"the program": PROGRAM_BYTES}
    if recipe.rollout.engine == "vllm":
        parts["vLLM's weights, asleep"] = weight_bytes(recipe, shape, width)
    vision = config.vision_config
    merged = getattr(vision, "spatial_merge_size", 2) ** 2
    numbers = 3 * getattr(vision, "temporal_patch_size", 2) * getattr(vision, "patch_size", 14) ** 2
    tokens = prompts_of_rollout(recipe) * recipe.data.max_prompt_length
    return parts | {"pictures of a rollout": tokens * merged * numbers * min(width, 4)}
