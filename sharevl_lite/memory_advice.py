"""The part of `sharevl-lite doctor` that plans memory: whether a recipe fits, and what to lower where it does not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import torch

from sharevl_lite.config import Recipe
from sharevl_lite.findings import Check, Status
from sharevl_lite.host_memory import host_parts
from sharevl_lite.memory_plan import (
    GIB,
    MemoryPlan,
    engine_needs,
    fewest_recomputed,
    plan_memory,
    reliefs,
    sequences_at_once,
)
from sharevl_lite.model_shape import ModelShape, find_config, measure_shape
from sharevl_lite.policy.hf import has_bfloat16
from sharevl_lite.precheck import is_local

FEW_SEQUENCES = 8
"""Responses at once below which sampling takes most of a step."""
HOST_USABLE = 0.9
"""Share of the machine's own memory that a run may take: others live there too."""


def memory_checks(recipe: Recipe, memory_gib: float | None) -> Iterator[Check]:
    """What the recipe takes of the GPU here, or of one of `memory_gib`; on the CPU the amounts alone."""
    found = find_config(recipe.model.path)
    if found is None:
        local = is_local(recipe.model.path)
        finding = f"not planned: the configuration of {recipe.model.path} is not on this machine"
        yield Check("memory", "skipped", finding, "" if local else f"hf download {recipe.model.path} config.json")
        return
    shape = measure_shape(found[0])
    gpu = torch.cuda.is_available()
    here = torch.cuda.get_device_properties(0).total_memory if gpu else None
    total = here if memory_gib is None else int(memory_gib * GIB)
    # Another card that a recipe in float16 is planned for is one without bfloat16.
    half = recipe.model.dtype != "float16" if memory_gib is not None else gpu and has_bfloat16()
    plan = plan_memory(recipe, shape, total=total, half=half)
    yield _plan_check("memory, training", plan.training, plan, total, found[1])
    yield _plan_check("memory, sampling", plan.sampling, plan, total, found[1])
    if total is not None:
        yield from _advice(recipe, shape, plan, total, half=half)
        yield _host_check(recipe, found[0], shape, half=half, here=memory_gib is None)


def _plan_check(name: str, parts: dict[str, int], plan: MemoryPlan, total: int | None, source: str) -> Check:
    told = ", ".join(f"{part} {amount / GIB:.2f}" for part, amount in parts.items())
    amount = sum(parts.values())
    status: Status = "ok" if total is None or MemoryPlan(parts, {}).fits(total) else "failure"
    finding = f"{amount / GIB:.1f} GiB planned from {source} ({told})"
    finding += " on the CPU" if total is None else f" of a GPU's {total / GIB:.1f} GiB"
    return Check(name, status, finding, facts={"parts": parts, "card": total, "fits": status == "ok"})


def _room_for_sequences(recipe: Recipe, shape: ModelShape, total: int, *, half: bool) -> Check:
    """What vLLM's share suffices for."""
    name, share = "memory, vLLM", recipe.rollout.vllm_gpu_memory_utilization * total
    least, count = engine_needs(recipe, shape, half=half), sequences_at_once(recipe, shape, total=total, half=half)
    if share < least:
        advice = _share_for_vllm(recipe, shape, round(least / total + 0.005, 2), total, half=half)
        return Check(name, "failure", f"{share / GIB:.1f} GiB for vLLM, which needs {least / GIB:.1f}", advice)
    asked, longest = recipe.rollout.batch_size, recipe.max_sequence_length
    finding = f"room for at most {min(count, asked)} of {asked} responses of full length ({longest:,} tokens) at once"
    if count < min(FEW_SEQUENCES, asked):
        advice = (
            "sampling will be slow: raise rollout.vllm_gpu_memory_utilization where the plan allows, or lower "
            "rollout.max_completion_length, model.max_pixels and data.max_prompt_length"
        )
        return Check(name, "warning", finding, advice)
    return Check(name, "ok", finding)


def _share_for_vllm(recipe: Recipe, shape: ModelShape, share: float, total: int, *, half: bool) -> str:
    """The advice to give vLLM the share that it needs, where the policy fits beside it; else another."""
    if share < 1.0:
        section = recipe.rollout.model_copy(update={"vllm_gpu_memory_utilization": share})
        given = recipe.model_copy(update={"rollout": section})
        if MemoryPlan({}, plan_memory(given, shape, total=total, half=half).sampling).fits(total):
            return f"set rollout.vllm_gpu_memory_utilization to {share:.2f} or more"
    return (
        "no share of this GPU is enough for vLLM beside the policy: set rollout.engine: hf, or take a smaller model "
        "(or model.load_in_4bit) or a larger GPU"
    )


def _advice(recipe: Recipe, shape: ModelShape, plan: MemoryPlan, total: int, *, half: bool) -> Iterator[Check]:
    if recipe.rollout.uses_vllm:
        yield _room_for_sequences(recipe, shape, total, half=half)
    if plan.fits(total):
        if (room := fewest_recomputed(recipe, shape, total=total, half=half)) is not None:
            finding = f"enough to recompute fewer layers ({room.peak / GIB:.1f} GiB), which is faster"
            yield Check("memory, room", "ok", finding, f"set {room.knob}: {room.value}")
        return
    steps = reliefs(recipe, shape, total=total, half=half)
    if not steps:
        yield Check(
            "memory, what to lower", "failure", "nothing is left to lower", "take a smaller model or a larger GPU"
        )
        return
    told = "; ".join(f"{step.knob}: {json.dumps(step.value)} ({step.peak / GIB:.1f} GiB)" for step in steps)
    enough = MemoryPlan({"peak": steps[-1].peak}, {}).fits(total)
    finding = "these fit together" if enough else "not even these suffice"
    yield Check("memory, what to lower", "warning" if enough else "failure", finding, told)


def _host_check(recipe: Recipe, config: Any, shape: ModelShape, *, half: bool, here: bool) -> Check:
    """`here`: whether the run is meant for this machine, whose memory is known."""
    parts = host_parts(recipe, config, shape, half=half)
    told = ", ".join(f"{part} {amount / GIB:.1f}" for part, amount in parts.items())
    amount = sum(parts.values())
    finding, facts = f"at most {amount / GIB:.1f} GiB beside the GPU's ({told})", {"parts": parts}
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if here else None
    if total is None or amount <= HOST_USABLE * total:
        return Check("memory of the machine", "ok", finding, facts=facts)
    finding += f", and this machine has {total / GIB:.1f}"
    advice = (
        "a machine that runs out ends the run without a message: lower train.problems_per_rollout or "
        "data.max_prompt_length and model.max_pixels, close other programs, or add swap"
    )
    return Check("memory of the machine", "warning", finding, advice, facts | {"total": total})
