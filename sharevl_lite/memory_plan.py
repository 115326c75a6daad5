"""What a recipe takes of a device's memory, part by part, before anything is loaded; and what to lower.

Weights, adapters and optimizer are counted from the model's configuration, exactly. The rest is estimated:

- activations of a packed row of T tokens: a layer keeps, per token, about 8 widths and 4 intermediate widths in the
  base's precision, 2 widths in float32, and as many keys and values as a row may gather (`share.row_plan`). With
  checkpointing one layer keeps that at a time and every layer its input (Unsloth moves the inputs to the host). Fused
  layers keep 5 widths less, which the plan leaves as a reserve until a GPU has shown it, and a fused MLP 2 intermediate
  widths less; its backward pass holds 4;
- features of a rollout's pictures are kept until it is trained, and where transformers sample those of an evaluation
  until its end, up to a bound: at most a prompt's tokens each;
- the head keeps the hidden gradients [T, H] in float32 and a workspace that is bounded (kernels/README.md);
- sampling with transformers holds keys and values of a whole batch, and its logits in the base's precision, in float32
  twice and in float64 (with `top_p` sorted as well); while it reads a batch of prompts, a layer keeps 4 widths and 3
  intermediate widths per token (docs/LOG.md compares that and the activations with what an H100 took);
- vLLM takes the share of the device that the recipe gives it, and about 1 GiB of it stays while it sleeps;
- CUDA itself and the allocator's slack: 1 GiB.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sharevl_lite.config import Recipe
from sharevl_lite.config_model import ModelSection
from sharevl_lite.model_shape import ModelShape
from sharevl_lite.policy.hf import has_ending
from sharevl_lite.policy.packed import FEATURE_CACHE_BYTES
from sharevl_lite.share.row_plan import KEYS_PER_TOKEN

GIB = 2**30
USABLE = 0.95
"""Share of a device that a plan may fill."""
CUDA_BYTES = 1 * GIB
ASLEEP_BYTES = 1 * GIB
WORKSPACE_BYTES = 400 * 2**20
LOGIT_ROWS = 2048
"""Rows of logits that exist at a time without the GPU's kernel (sharevl_kernels' chunk)."""
FOUR_BITS = 0.516
"""Bytes of a weight in NF4 with double quantisation: 4 bits, 8 a block of 64, 32 per 256 blocks (arXiv 2305.14314)."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by part while the policy trains and while it samples."""

    training: dict[str, int]
    sampling: dict[str, int]

    @property
    def peak(self) -> int:
        """The larger of the two."""
        return max(sum(self.training.values()), sum(self.sampling.values()))

    def fits(self, total: int) -> bool:
        """Whether the peak stays within the usable part of a device of `total` bytes."""
        return self.peak <= USABLE * total


@dataclass(frozen=True)
class Relief:
    """A change of the recipe, and the peak (bytes) with it and those before it."""

    knob: str
    value: Any
    peak: int


def adapter_parameters(recipe: Recipe, shape: ModelShape) -> int:
    """Trained parameters. Of a regular expression, all linear layers: at most that many."""
    wanted = recipe.model.lora.target_modules
    chosen = [size for name, size in shape.linear.items() if isinstance(wanted, str) or has_ending(name, wanted)]
    return sum(recipe.model.lora.rank * (inner + outer) for inner, outer in chosen)


def plan_memory(recipe: Recipe, shape: ModelShape, *, total: int | None, half: bool) -> MemoryPlan:
    """The plan of one device.

    Args:
        recipe: What is to run.
        shape: Of its model.
        total: Bytes of the GPU, of which vLLM takes its share; None on a CPU.
        half: Whether the device has bfloat16: then `model.dtype: auto` is that, and a GPU has the head's kernel.
    """
    gpu = total is not None
    width = bytes_each(recipe.model, half=half)
    standing = {
        "weights": weight_bytes(recipe, shape, width),
        "adapter, gradients, Adam": 16 * adapter_parameters(recipe, shape),
    }
    if gpu:
        standing["CUDA and slack"] = CUDA_BYTES
    training = standing | _training_parts(recipe, shape, width, gpu=gpu, half=half)
    sampling = standing | _sampling_parts(recipe, shape, width, total)
    if recipe.rollout.uses_vllm and total is not None:
        asleep = ASLEEP_BYTES if recipe.rollout.engine == "vllm" else sampling["vLLM"]
        training["vLLM, asleep" if recipe.rollout.engine == "vllm" else "vLLM"] = asleep
    return MemoryPlan(training, sampling)


def _training_parts(recipe: Recipe, shape: ModelShape, width: int, *, gpu: bool, half: bool) -> dict[str, int]:
    tokens, model = recipe.train.token_budget, recipe.model
    kernel = gpu and half and model.dtype != "float64"  # sharevl_kernels.devices.runs_triton
    logits = 4 * 4 * min(tokens, LOGIT_ROWS) * shape.vocabulary
    return {
        "activations": tokens * _activation_bytes(recipe, shape, width),
        "features of pictures": _feature_bytes(recipe, shape, width, prompts_of_rollout(recipe)),
        "head": WORKSPACE_BYTES + 4 * tokens * shape.hidden if kernel else logits,
    }


def _feature_bytes(recipe: Recipe, shape: ModelShape, width: int, prompts: int) -> int:
    """What is kept of the pictures of so many prompts: at most a prompt's tokens each, and no more than the bound."""
    tokens = prompts * recipe.data.max_prompt_length
    return min(tokens * shape.hidden * shape.vision_levels * width, FEATURE_CACHE_BYTES)


def prompts_of_rollout(recipe: Recipe) -> int:
    """Prompts of a rollout, those of problems that dynamic sampling replaced included: their pictures stay as long."""
    rounds = 1 + recipe.rollout.max_extra_rounds if recipe.rollout.dynamic_sampling else 1
    return rounds * recipe.train.problems_per_rollout * recipe.share.num_variants


def _activation_bytes(recipe: Recipe, shape: ModelShape, width: int) -> int:
    """Most that a token of a packed row holds between forward and backward, over all layers."""
    model = recipe.model
    fused = _fuses_mlp(model, width)
    numbers = 8 * shape.hidden + (2 if fused else 4) * shape.intermediate + 2 * _keys_per_token(recipe) * shape.kv_width
    kept = width * numbers + 8 * shape.hidden
    passing = width * 4 * shape.intermediate if fused else 0
    if not model.gradient_checkpointing:
        return shape.layers * kept + passing
    recomputed = min(model.checkpointing_layers or shape.layers, shape.layers)
    inputs = 0 if model.loader == "unsloth" else recomputed * shape.hidden * width
    return max(1, shape.layers - recomputed) * kept + inputs + passing


def _keys_per_token(recipe: Recipe) -> int:
    """Most keys that attention gathers for each token that a row may have, of several groups or of a long one alone."""
    share = recipe.share
    responses = share.num_responses * (1 if share.trajectories == "own" else share.num_variants)
    of_a_group = 1 + responses * recipe.data.max_prompt_length / recipe.train.token_budget
    return max(KEYS_PER_TOKEN, math.ceil(of_a_group))


def _fuses_mlp(model: ModelSection, width: int) -> bool:
    """Whether `policy.fused` takes the MLPs whole; of a regular expression it is not known."""
    wanted = model.lora.target_modules
    whole = wanted == "all-linear" or {"gate_proj", "up_proj", "down_proj"}.issubset(wanted)
    return whole and width == 2 and not model.load_in_4bit and model.lora.dropout == 0.0


def _sampling_parts(recipe: Recipe, shape: ModelShape, width: int, total: int | None) -> dict[str, int]:
    section = recipe.rollout
    if section.engine == "hf":
        held_out = 0 if recipe.data.eval is None else 2 * recipe.eval.problems  # plain, and as a variant
        return {
            "features of pictures": _feature_bytes(recipe, shape, width, max(prompts_of_rollout(recipe), held_out)),
            "reading prompts": section.batch_size
            * recipe.data.max_prompt_length
            * width
            * (4 * shape.hidden + 3 * shape.intermediate),
            "keys and values": section.batch_size * recipe.max_sequence_length * shape.kv_numbers * width,
            "logits": (width + (16 if section.top_p == 1.0 else 30)) * section.batch_size * shape.vocabulary,
        }
    if section.uses_vllm and total is not None:
        share = int(section.vllm_gpu_memory_utilization * total)
        # Weights that both use are in vLLM's share already.
        return {"vLLM": share - (shape.parameters * width if section.engine == "unsloth" else 0)}
    return {}


def reliefs(recipe: Recipe, shape: ModelShape, *, total: int, half: bool) -> list[Relief]:
    """Changes that make a recipe fit a GPU, gentlest first, as many as it takes; all of them if none suffices."""
    found: list[Relief] = []
    for knob, value in _changes(recipe, shape, total, half=half):
        if plan_memory(recipe, shape, total=total, half=half).fits(total):
            break
        before = plan_memory(recipe, shape, total=total, half=half).peak
        lower = _with(recipe, knob, value)
        peak = plan_memory(lower, shape, total=total, half=half).peak
        if peak < before:
            recipe = lower
            found.append(Relief(knob, value, peak))
    return found


def fewest_recomputed(recipe: Recipe, shape: ModelShape, *, total: int, half: bool) -> Relief | None:
    """The fewest layers to recompute that fit a GPU, in steps of an eighth of them; None where that saves none."""
    step = max(1, shape.layers // 8)
    now = min(recipe.model.checkpointing_layers or shape.layers, shape.layers)
    for layers in range(step, now, step) if recipe.model.gradient_checkpointing else ():
        plan = plan_memory(_with(recipe, "model.checkpointing_layers", layers), shape, total=total, half=half)
        if plan.fits(total):
            return Relief("model.checkpointing_layers", layers, plan.peak)
    return None


def engine_needs(recipe: Recipe, shape: ModelShape, *, half: bool) -> int:
    """Bytes that a vLLM engine cannot do without: weights, keys and values of one sequence, and 1 GiB to work in."""
    width = bytes_each(recipe.model, half=half)
    return weight_bytes(recipe, shape, width) + recipe.max_sequence_length * shape.kv_numbers * width + GIB


def sequences_at_once(recipe: Recipe, shape: ModelShape, *, total: int, half: bool) -> int:
    """Sequences of full length that vLLM's share has keys and values for, beside weights and 1 GiB to work in."""
    width = bytes_each(recipe.model, half=half)
    free = recipe.rollout.vllm_gpu_memory_utilization * total - weight_bytes(recipe, shape, width) - GIB
    return max(0, int(free // (recipe.max_sequence_length * shape.kv_numbers * width)))


def _with(recipe: Recipe, knob: str, value: Any) -> Recipe:
    data = recipe.model_dump()
    section, name = knob.split(".")
    data[section][name] = value
    return Recipe.model_validate(data)


def _changes(recipe: Recipe, shape: ModelShape, total: int, *, half: bool) -> Iterator[tuple[str, Any]]:
    if not recipe.model.gradient_checkpointing:
        yield "model.gradient_checkpointing", True
    elif recipe.model.checkpointing_layers is not None:
        yield "model.checkpointing_layers", None  # all
    size = recipe.rollout.batch_size
    while recipe.rollout.engine == "hf" and size > 8:
        size //= 2
        yield "rollout.batch_size", size
    share = recipe.rollout.vllm_gpu_memory_utilization
    while recipe.rollout.uses_vllm:
        share = round(share - 0.05, 2)
        if share * total < engine_needs(recipe, shape, half=half):
            break
        yield "rollout.vllm_gpu_memory_utilization", share
    budget = recipe.train.token_budget
    while budget // 2 >= recipe.max_sequence_length:
        budget //= 2
        yield "train.token_budget", budget
    if not recipe.model.load_in_4bit and recipe.model.dtype not in ("float32", "float64"):
        yield "model.load_in_4bit", True


def weight_bytes(recipe: Recipe, shape: ModelShape, width: int) -> int:
    """Of the base model, with `width` bytes a number where it is not in 4 bits."""
    return shape.others * width + int(shape.text_linear * (FOUR_BITS if recipe.model.load_in_4bit else width))


def bytes_each(model: ModelSection, *, half: bool) -> int:
    """Of a number of the base model, on a device with (`half`) or without bfloat16."""
    auto = 2 if half or model.load_in_4bit else 4  # as policy.hf.dtype_of chooses
    return {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "auto": auto}[model.dtype]
