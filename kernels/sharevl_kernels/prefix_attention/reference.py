"""Packed attention from its definition, one token after another in float64; variable-length attention in torch ops."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def reference_attention(
    query_THD: Float[Tensor, "T Q D"],
    key_THD: Float[Tensor, "T K D"],
    value_THD: Float[Tensor, "T K D"],
    group_T: Int[Tensor, "T"],
    segment_T: Int[Tensor, "T"],
    scale: float,
) -> Float[Tensor, "T Q D"]:
    """Every token over the tokens it sees: earlier ones of its group, of the prefix or of its own segment."""
    heads, shared = query_THD.shape[1], query_THD.shape[1] // key_THD.shape[1]
    out_THD = torch.zeros_like(query_THD, dtype=torch.float64)
    for t in range(group_T.numel()):
        seen = [
            s for s in range(t + 1) if group_T[s] == group_T[t] and (segment_T[s] == 0 or segment_T[s] == segment_T[t])
        ]
        for head in range(heads):
            scores = key_THD[seen, head // shared].double() @ query_THD[t, head].double() * scale
            out_THD[t, head] = scores.softmax(0) @ value_THD[seen, head // shared].double()
    return out_THD


def torch_varlen_attention(
    query_THD: Float[Tensor, "T Q D"],
    key_GHD: Float[Tensor, "G K D"],
    value_GHD: Float[Tensor, "G K D"],
    queries_N1: Int[Tensor, "N1"],
    keys_N1: Int[Tensor, "N1"],
    scale: float,
) -> Float[Tensor, "T Q D"]:
    """One sequence after another, causal from the last key back: what `torch.nn.attention.varlen` does on a GPU."""
    pieces = []
    shared = query_THD.shape[1] // key_GHD.shape[1]
    for q0, q1, k0, k1 in zip(
        queries_N1[:-1].tolist(), queries_N1[1:].tolist(), keys_N1[:-1].tolist(), keys_N1[1:].tolist(), strict=True
    ):
        seen = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool, device=query_THD.device).tril((k1 - k0) - (q1 - q0))
        query_HQD = query_THD[q0:q1].transpose(0, 1)
        key_HKD, value_HKD = (x[k0:k1].transpose(0, 1).repeat_interleave(shared, 0) for x in (key_GHD, value_GHD))
        scores_HQK = (query_HQD @ key_HKD.mT * scale).masked_fill(~seen, -torch.inf)
        pieces.append((scores_HQK.softmax(-1) @ value_HKD).transpose(0, 1))
    return torch.cat(pieces)
