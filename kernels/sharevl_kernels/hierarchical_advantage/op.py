"""Hierarchical advantage: rewards shared at two levels.

    G_PMN = (R - mean over (M, N)) / (std over (M, N) + eps)        global: across all variants of a problem
    L_PMN = (R - mean over N)      / (std over N + eps)             local: within one variant
    A_PKMN = G_PMN + [k = j] L_PMN                                  j: source variant, k: scoring variant

Source: R1-ShareVL, arXiv 2505.16673. Standard deviations have one degree of freedom less (as GRPO's do). Deviations
from the public code, and why: the global deviation is over each reward once (the public code repeats every reward m
times, which shrinks it by sqrt((mn-1)m / (m·mn-1)); `std="repeated"` restores that); a group whose rewards differ by
at most `SILENT_SPREAD`, of one response, or empty has an advantage of exactly 0 (rounding in a sum or a mean of equal
rewards would otherwise leak through 1/eps, or count as a signal); responses that could not be verified are masked out
instead of counting as wrong. `std="none"` divides by nothing (Dr. GRPO, arXiv 2503.20783).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sharevl_kernels.devices import runs_triton
from sharevl_kernels.hierarchical_advantage.reference import Advantages, reference_advantage


def hierarchical_advantage(
    rewards_PMN: Float[Tensor, "P M N"],
    mask_PMN: Bool[Tensor, "P M N"] | None = None,
    *,
    eps: float = 1e-6,
    std: Literal["plain", "repeated", "none"] = "plain",
) -> Advantages:
    """Global and local advantages of the rewards R_PMN (n responses under each of m variants of P problems).

    `mask_PMN` is True where a reward counts; a masked response has an advantage of 0 and any reward, NaN included.
    Computed in float64, returned in the rewards' dtype (integers': torch's default); on a GPU one launch does both.

    Raises ValueError for a wrong shape, a mask of another shape, or a reward that counts and is not finite.
    """
    if rewards_PMN.ndim != 3 or 0 in rewards_PMN.shape[1:]:
        raise ValueError(f"rewards_PMN must be [P, M, N], M and N above 0, got shape {tuple(rewards_PMN.shape)}")
    if mask_PMN is None:
        mask_PMN = torch.ones_like(rewards_PMN, dtype=torch.bool)
    if mask_PMN.shape != rewards_PMN.shape:
        raise ValueError(f"mask_PMN {tuple(mask_PMN.shape)} and rewards_PMN {tuple(rewards_PMN.shape)} differ in shape")
    if not bool(torch.isfinite(rewards_PMN[mask_PMN]).all()):
        raise ValueError("rewards_PMN holds a reward that is not finite; mask responses that could not be scored")
    repeats = rewards_PMN.shape[1] if std == "repeated" else 1
    if runs_triton(mask_PMN):
        from sharevl_kernels.hierarchical_advantage.kernel import launch_advantage

        with torch.cuda.device_of(rewards_PMN):
            found = launch_advantage(rewards_PMN, mask_PMN, eps, repeats, scaled=std != "none")
    else:
        found = reference_advantage(rewards_PMN, mask_PMN, eps, repeats, scaled=std != "none")
    dtype = rewards_PMN.dtype if rewards_PMN.is_floating_point() else torch.get_default_dtype()
    return found._replace(global_PMN=found.global_PMN.to(dtype), local_PMN=found.local_PMN.to(dtype))
