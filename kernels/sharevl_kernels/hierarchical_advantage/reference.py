"""The two levels in plain torch, float64: the body on a CPU, and what the kernel is tested against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SILENT_SPREAD = 1e-9
"""Rewards of a group that differ by no more than this count as equal: the order in which a sum of rewards is rounded
(0.1 + 0.2 is not 0.3) is no signal, and rewards are meant on a scale of 1."""


class Advantages(NamedTuple):
    """Advantages of one rollout, and which groups carried a signal.

    `silent_PM`: variant groups with no local variance; `silent_P`: problems with no global variance, that is with a
    highest reward at most `SILENT_SPREAD` above the lowest; there the advantages are exactly 0. Both are over the valid
    responses alone, so a group of fewer than two is silent.
    """

    global_PMN: Float[Tensor, "P M N"]
    local_PMN: Float[Tensor, "P M N"]
    silent_PM: Bool[Tensor, "P M"]
    silent_P: Bool[Tensor, "P"]

    def take(self, problems: slice) -> Advantages:
        """Those of some problems."""
        return Advantages(*(values[problems] for values in self))

    @classmethod
    def cat(cls, parts: Sequence[Advantages]) -> Advantages:
        """Those of all the parts' problems, in order."""
        return cls(*map(torch.cat, zip(*parts, strict=True)))

    def as_pairs(self, levels: Literal["hierarchical", "global", "local"] = "hierarchical") -> Float[Tensor, "P K M N"]:
        """A_PKMN: the advantage of the response (j, i) as seen by scoring variant k.

        `hierarchical`: G + L where k = j, G elsewhere. `global`: G everywhere. `local`: L where k = j, 0 elsewhere,
        which is GRPO within each variant.
        """
        num_variants = self.global_PMN.shape[1]
        own_KM1 = torch.eye(num_variants, dtype=self.global_PMN.dtype, device=self.global_PMN.device)[None, :, :, None]
        local_PKMN = own_KM1 * self.local_PMN[:, None]
        if levels == "local":
            return local_PKMN
        global_PKMN = self.global_PMN[:, None].expand(-1, num_variants, -1, -1)
        return global_PKMN + local_PKMN if levels == "hierarchical" else global_PKMN.clone()


def reference_advantage(
    rewards_PMN: Float[Tensor, "P M N"],
    mask_PMN: Bool[Tensor, "P M N"],
    eps: float,
    repeats: int,
    *,
    scaled: bool = True,
) -> Advantages:
    """Both levels, float64; the global deviation as if every reward stood there `repeats` times. Not `scaled`:
    differences from the mean."""
    wide_PMN = rewards_PMN.double().masked_fill(~mask_PMN, 0.0)
    global_PX, silent_P1 = _normalise(wide_PMN.flatten(1), mask_PMN.flatten(1), eps, repeats, scaled)
    local_PMN, silent_PM1 = _normalise(wide_PMN, mask_PMN, eps, 1, scaled)
    return Advantages(global_PX.view_as(wide_PMN), local_PMN, silent_PM1.squeeze(-1), silent_P1.squeeze(-1))


def _normalise(
    rewards_GX: Float[Tensor, "*G X"], mask_GX: Bool[Tensor, "*G X"], eps: float, repeats: int, scaled: bool
) -> tuple[Float[Tensor, "*G X"], Bool[Tensor, "*G 1"]]:
    """(R - mean) / (std + eps), or R - mean, over the last axis, and which groups are silent (there it is 0)."""
    infinity = torch.inf
    highest_G1 = rewards_GX.masked_fill(~mask_GX, -infinity).amax(-1, keepdim=True)
    lowest_G1 = rewards_GX.masked_fill(~mask_GX, infinity).amin(-1, keepdim=True)
    silent_G1 = highest_G1 - lowest_G1 <= SILENT_SPREAD
    count_G1 = mask_GX.sum(-1, keepdim=True).clamp(min=1)
    # From the lowest reward, because the rounded mean of large rewards can miss all of a small spread.
    above_GX = (rewards_GX - lowest_G1).masked_fill(~mask_GX, 0.0)
    mean_G1 = above_GX.sum(-1, keepdim=True) / count_G1
    centred_GX = (above_GX - mean_G1) * mask_GX
    if scaled:
        squares_G1 = centred_GX.square().sum(-1, keepdim=True) * repeats
        centred_GX = centred_GX / ((squares_G1 / (count_G1 * repeats - 1).clamp(min=1)).sqrt() + eps)
    return centred_GX.masked_fill(silent_G1, 0.0), silent_G1
