"""Triton: both levels of every problem in one launch, in float64.

A program holds the rewards of one problem, variants × responses. The data are tiny, so nothing is spent on speed: means
are taken from the lowest reward, as in `reference.py`, and a silent group is exactly 0.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor

from sharevl_kernels.hierarchical_advantage.reference import SILENT_SPREAD, Advantages

_SILENT_SPREAD = tl.constexpr(SILENT_SPREAD)


@triton.jit
def advantage_kernel(
    rewards_ptr,
    mask_ptr,
    global_ptr,
    local_ptr,
    silent_variants_ptr,
    silent_problems_ptr,
    num_variants,
    num_responses,
    eps,
    repeats,
    VARIANTS: tl.constexpr,
    RESPONSES: tl.constexpr,
    SCALED: tl.constexpr,
):
    """One problem: rewards [variants, responses] at its place of the contiguous [P, M, N]."""
    problem = tl.program_id(0).to(tl.int64)
    variants = tl.arange(0, VARIANTS)
    responses = tl.arange(0, RESPONSES)
    inside = (variants < num_variants)[:, None] & (responses < num_responses)[None, :]
    places = problem * num_variants * num_responses + variants[:, None] * num_responses + responses[None, :]
    counts = inside & (tl.load(mask_ptr + places, mask=inside, other=0) != 0)
    rewards = tl.load(rewards_ptr + places, mask=counts, other=0.0).to(tl.float64)

    # As an argument, or a constant in a comparison, it could become a float32, which is another number.
    spread = tl.full((), _SILENT_SPREAD, tl.float64)
    low = tl.min(tl.where(counts, rewards, float("inf")), 1)
    high = tl.max(tl.where(counts, rewards, float("-inf")), 1)
    number = tl.sum(counts.to(tl.float64), 1)
    quiet = high - low <= spread
    one = number * 0.0 + 1.0
    above = tl.where(counts, rewards - low[:, None], 0.0)
    centred = tl.where(counts, above - (tl.sum(above, 1) / tl.maximum(number, one))[:, None], 0.0)
    if SCALED:
        deviation = tl.sqrt(tl.sum(centred * centred, 1) / tl.maximum(number - 1.0, one))
        centred = centred / (deviation + eps)[:, None]
    local = tl.where(quiet[:, None], 0.0, centred)
    tl.store(local_ptr + places, local, mask=inside)
    tl.store(silent_variants_ptr + problem * num_variants + variants, quiet, mask=variants < num_variants)

    lowest = tl.min(low, 0)
    highest = tl.max(high, 0)
    silent = highest - lowest <= spread
    total = tl.maximum(tl.sum(number, 0), 1.0)
    above = tl.where(counts, rewards - lowest, 0.0)
    centred = tl.where(counts, above - tl.sum(tl.sum(above, 1), 0) / total, 0.0)
    if SCALED:
        squares = tl.sum(tl.sum(centred * centred, 1), 0) * repeats
        centred = centred / (tl.sqrt(squares / tl.maximum(total * repeats - 1.0, 1.0)) + eps)
    tl.store(global_ptr + places, tl.where(silent, 0.0, centred), mask=inside)
    tl.store(silent_problems_ptr + problem, silent)


def launch_advantage(
    rewards_PMN: Float[Tensor, "P M N"],
    mask_PMN: Bool[Tensor, "P M N"],
    eps: float,
    repeats: int,
    *,
    scaled: bool = True,
) -> Advantages:
    """Both levels, float64; as :func:`reference_advantage`."""
    num_problems, num_variants, num_responses = rewards_PMN.shape
    levels = rewards_PMN.new_empty((2, *rewards_PMN.shape), dtype=torch.float64)
    silent_PM = rewards_PMN.new_ones((num_problems, num_variants), dtype=torch.bool)
    silent_P = rewards_PMN.new_ones(num_problems, dtype=torch.bool)
    if rewards_PMN.numel():
        advantage_kernel[(num_problems,)](
            rewards_PMN.contiguous(),
            mask_PMN.contiguous(),
            levels[0],
            levels[1],
            silent_PM,
            silent_P,
            num_variants,
            num_responses,
            eps,
            repeats,
            VARIANTS=triton.next_power_of_2(num_variants),
            RESPONSES=triton.next_power_of_2(num_responses),
            SCALED=scaled,
        )
    return Advantages(levels[0], levels[1], silent_PM, silent_P)
