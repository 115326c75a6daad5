"""What vLLM can sample and what it cannot, in this process or on a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sharevl_lite.policy.hf import has_bfloat16
from sharevl_lite.rollout.engine import Sampling, SamplingRequest, end_ids, response_seed
from sharevl_lite.rollout.errors import RolloutError

if TYPE_CHECKING:
    from sharevl_lite.config import Recipe
    from sharevl_lite.policy.packed import PackedPolicy

BAN = -100.0
"""vLLM's strongest bias of a logit: e^-100 of what it was."""
MOST_TEMPERATURE = 2.0
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM makes room for."""


def check_recipe(recipe: Recipe) -> None:
    """Raises RolloutError for a temperature or rank that vLLM does not take."""
    if max(recipe.rollout.temperature, recipe.eval.temperature) > MOST_TEMPERATURE:
        raise RolloutError(
            f"rollout.temperature, eval.temperature: vLLM samples at up to {MOST_TEMPERATURE}; lower it, or choose "
            "rollout.engine: hf"
        )
    vllm_rank(recipe.model.lora.rank)


def check_frozen_vision(policy: PackedPolicy) -> None:
    """Raises RolloutError where the vision tower has adapters."""
    if any(parameter.requires_grad for parameter in policy.base.model.visual.parameters()):
        raise RolloutError("model.lora.target_modules adapts the vision tower, which vLLM ignores; leave it out")


def vllm_rank(rank: int) -> int:
    """The smallest rank vLLM makes room for that holds `rank`."""
    room = next((size for size in LORA_RANKS if size >= rank), None)
    if room is None:
        raise RolloutError(f"model.lora.rank: vLLM takes ranks up to {LORA_RANKS[-1]}, not {rank}")
    return room


def num_drawn(request: SamplingRequest, sampling: Sampling) -> int:
    """Responses to ask for: greedy ones are all the same, and vLLM samples no more than one."""
    return request.count if sampling.temperature > 0.0 else 1


def sampling_parameters(request: SamplingRequest, sampling: Sampling, policy: PackedPolicy) -> dict[str, Any]:
    """vLLM's SamplingParams of a request, by name."""
    return {
        "n": num_drawn(request, sampling),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_completion_length,
        "seed": response_seed(sampling.seed, request.key, 0),
        "stop_token_ids": end_ids(policy),
        "logit_bias": dict.fromkeys(policy.vision_token_ids, BAN),
        "logprobs": 0,
        "detokenize": False,  # once at the end: text after every token costs as much as choosing it
    }


def is_quantised(policy: PackedPolicy) -> bool:
    """Whether weights of the base are quantised, at loading or as stored."""
    return getattr(policy.config, "quantization_config", None) is not None


def engine_dtype(policy: PackedPolicy) -> str:
    """vLLM's name for the precision of the policy's base."""
    return vllm_dtype(policy.base_dtype, policy.device, four_bits=is_quantised(policy))


def vllm_dtype(dtype: torch.dtype, device: torch.device, *, four_bits: bool) -> str:
    """vLLM's name for the precision that is nearest to a policy's on the device.

    Its widest is float32. Beside weights in 4 bits it takes 16 bits only: it sizes them by the precision of the rest.
    """
    if four_bits and dtype in (torch.float32, torch.float64):
        narrow = device.type == "cuda" and not has_bfloat16(device)
        dtype = torch.float16 if narrow else torch.bfloat16
    return str(torch.float32 if dtype == torch.float64 else dtype).removeprefix("torch.")
