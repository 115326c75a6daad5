"""The equations of grouped_logprob, literally, in float64: what every other form is tested against."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def reference_logprobs(
    hidden_SH: Float[Tensor, "S H"],
    weight_VH: Float[Tensor, "V H"],
    targets_T: Int[Tensor, "T"],
    *,
    rows_T: Int[Tensor, "T"] | None = None,
    temperature: float = 1.0,
) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"], Float[Tensor, "T H"]]:
    """Log-probs, entropies (nats) and unit gradients ∂log p/∂h of every target, in float64.

    A target outside [0, V) has 0 for all three, as on a GPU.
    """
    rows = slice(None) if rows_T is None else rows_T
    logits_TV = (hidden_SH.double()[rows] @ weight_VH.double().T) / temperature
    known_T = (targets_T >= 0) & (targets_T < weight_VH.shape[0])
    target_T1 = targets_T.where(known_T, 0)[:, None]
    relative_TV = logits_TV - logits_TV.gather(1, target_T1)
    others_TV = relative_TV.scatter(1, target_T1, -torch.inf)
    # log p = -log(1 + Σ_{v≠y} e^{z_v - z_y}): log_softmax rounds to 0 where the others are below 1e-16.
    logprobs_T = -torch.logaddexp(torch.zeros_like(logits_TV[:, 0]), others_TV.logsumexp(1))
    probs_TV = (relative_TV + logprobs_T[:, None]).exp()
    entropies_T = -(probs_TV * (relative_TV + logprobs_T[:, None])).sum(1)
    pull_TV = (-probs_TV).scatter(1, target_T1, -torch.expm1(logprobs_T)[:, None])
    unit_TH = (pull_TV @ weight_VH.double()) / temperature
    return logprobs_T * known_T, entropies_T * known_T, unit_TH * known_T[:, None]
