"""The clipped policy objective over the tokens of scored pairs.

A *pair* is a response o of source variant j scored under variant k. For its token t

    r = π_θ(o_t | Qk, o_<t) / π_old(o_t | Qk, o_<t)
    J = min(r·A, clip(r, 1 - epsilon, 1 + epsilon_high)·A),   J = max(J, delta·A) where A < 0
    loss = Σ_T weight_T · (-c_T·J_T + beta·k3_T),             k3 = exp(ref - logp) - (ref - logp) - 1

with c the optional cross-variant correction. `weight_T` carries the whole aggregation, so that a loss summed over any
split of the pairs into packed rows is the same loss. With a ratio for each sequence r is the geometric mean of its
tokens' ratios (GSPO). Sources: arXiv 2505.16673 (J, with every ratio starting at 1), 1912.09729 (dual clip), 2402.03300
(k3), 2503.20783 (`dr_grpo`), 2507.18071 (GSPO), TRL's GRPOTrainer (names; parity is tested).

The paper gives a cross-variant pair no correction although o was sampled under Qj and is trained under Qk;
:func:`cross_variant_weight` offers one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Aggregation = Literal["token", "sequence", "dr_grpo"]
Correction = Literal["none", "truncate", "mask"]


@dataclass(frozen=True)
class Clipping:
    """Bounds of the ratio: [1 - epsilon, 1 + epsilon_high], and `delta` for negative advantages (None: no bound)."""

    epsilon: float
    epsilon_high: float
    delta: float | None


@dataclass(frozen=True)
class PolicyLoss:
    """The loss of some tokens, and per-token facts for the metrics (all detached)."""

    loss: Float[Tensor, ""]
    ratio_T: Float[Tensor, "T"]
    clipped_low_T: Bool[Tensor, "T"]
    clipped_high_T: Bool[Tensor, "T"]
    clipped_dual_T: Bool[Tensor, "T"]
    kl_T: Float[Tensor, "T"] | None


def policy_loss(
    logprobs_T: Float[Tensor, "T"],
    old_logprobs_T: Float[Tensor, "T"],
    advantages_T: Float[Tensor, "T"],
    weights_T: Float[Tensor, "T"],
    clipping: Clipping,
    *,
    sequence_lengths_B: Int[Tensor, "B"] | None = None,
    correction_T: Float[Tensor, "T"] | None = None,
    ref_logprobs_T: Float[Tensor, "T"] | None = None,
    beta: float = 0.0,
) -> PolicyLoss:
    """Loss of the tokens T of any set of pairs; each tensor holds one entry per token, log-probs in nats.

    `sequence_lengths_B` gives each pair one ratio, for all of its tokens: they stand one pair after another, with these
    lengths (on the CPU). None: a ratio for each token. `correction_T` multiplies the policy term (not the KL). `beta`
    above 0 needs `ref_logprobs_T`.
    """
    log_ratio_T = logprobs_T - old_logprobs_T
    if sequence_lengths_B is not None:
        log_ratio_T = _sequence_means(log_ratio_T, sequence_lengths_B)
    ratio_T = torch.exp(log_ratio_T)
    clipped_T = ratio_T.clamp(1.0 - clipping.epsilon, 1.0 + clipping.epsilon_high)
    objective_T = torch.minimum(ratio_T * advantages_T, clipped_T * advantages_T)
    negative_T = advantages_T < 0
    dual_T = torch.zeros_like(negative_T)
    if clipping.delta is not None:
        bound_T = clipping.delta * advantages_T
        dual_T = negative_T & (bound_T > objective_T)
        objective_T = torch.where(negative_T, torch.maximum(objective_T, bound_T), objective_T)
    terms_T = -objective_T if correction_T is None else -objective_T * correction_T
    kl_T = None
    if beta > 0.0:
        if ref_logprobs_T is None:
            raise ValueError("beta above 0 needs ref_logprobs_T")
        gap_T = ref_logprobs_T - logprobs_T
        kl_T = torch.expm1(gap_T) - gap_T
        terms_T = terms_T + beta * kl_T
    with torch.no_grad():
        low_T = negative_T & (ratio_T < 1.0 - clipping.epsilon)
        high_T = (advantages_T > 0) & (ratio_T > 1.0 + clipping.epsilon_high)
    return PolicyLoss(
        loss=(weights_T * terms_T).sum(),
        ratio_T=ratio_T.detach(),
        clipped_low_T=low_T,
        clipped_high_T=high_T,
        clipped_dual_T=dual_T.detach(),
        kl_T=None if kl_T is None else kl_T.detach(),
    )


def _sequence_means(values_T: Float[Tensor, "T"], lengths_B: Int[Tensor, "B"]) -> Float[Tensor, "T"]:
    """The mean of its sequence, at every token."""
    pieces = values_T.split(lengths_B.tolist())
    return torch.cat([piece_R.mean().expand_as(piece_R) for piece_R in pieces])


def pair_token_weights(
    lengths_B: Int[Tensor, "B"],
    aggregation: Aggregation,
    max_completion_length: int,
    *,
    count: int | None = None,
    tokens: int | None = None,
) -> Float[Tensor, "B"]:
    """The weight (float64) of every token of each of B pairs, from their lengths in tokens (all at least 1).

    `count` pairs with `tokens` tokens in all make up the update; None: these B are all of it.

    `sequence`: 1 / (count·length). `token`: 1 / tokens. `dr_grpo`: 1 / (count·max_completion_length).
    """
    count = lengths_B.numel() if count is None else count
    if aggregation == "sequence":
        return 1.0 / (count * lengths_B.double())
    tokens = int(lengths_B.sum()) if tokens is None else tokens
    total = tokens if aggregation == "token" else count * max_completion_length
    return torch.full_like(lengths_B, 1.0, dtype=torch.float64) / total


def cross_variant_weight(
    old_scorer_T: Float[Tensor, "T"], old_source_T: Float[Tensor, "T"], correction: Correction, cap: float
) -> Float[Tensor, "T"]:
    """The weight of a cross-variant token, from log π_old under the scoring and under the source variant.

    With w = π_old(o_t|Qk) / π_old(o_t|Qj), the importance ratio of the policy that is trained to the one that sampled:
    `none` 1 (paper), `truncate` min(w, cap), `mask` 1 where 1/cap <= w <= cap and 0 elsewhere. On own-variant tokens
    w is 1.
    """
    if correction == "none":
        return torch.ones_like(old_scorer_T)
    importance_T = torch.exp(old_scorer_T - old_source_T)
    if correction == "truncate":
        return importance_T.clamp(max=cap)
    return ((importance_T >= 1.0 / cap) & (importance_T <= cap)).to(importance_T.dtype)
