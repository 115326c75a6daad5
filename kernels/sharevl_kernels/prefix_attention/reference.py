"""Packed attention from its definition, one token after another in float64; and under a dense mask, for longer rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sharevl_kernels.prefix_attention.layout import PrefixLayout


def reference_attention(
    query_THD: Float[Tensor, "T Q D"],
    key_THD: Float[Tensor, "T K D"],
    value_THD: Float[Tensor, "T K D"],
    seen_T: Sequence[Sequence[int]],
    scale: float,
) -> Float[Tensor, "T Q D"]:
    """Every token t over the tokens `seen_T[t]` that it sees."""
    heads, shared = query_THD.shape[1], query_THD.shape[1] // key_THD.shape[1]
    out_THD = torch.zeros_like(query_THD, dtype=torch.float64)
    for t, seen in enumerate(map(list, seen_T)):
        for head in range(heads):
            scores = key_THD[seen, head // shared].double() @ query_THD[t, head].double() * scale
            out_THD[t, head] = scores.softmax(0) @ value_THD[seen, head // shared].double()
    return out_THD


def masked_attention(
    query_QTD: Float[Tensor, "Q T D"],
    key_KTD: Float[Tensor, "K T D"],
    value_KTD: Float[Tensor, "K T D"],
    layout: PrefixLayout,
    *,
    scale: float | None = None,
) -> Float[Tensor, "T Q D"]:
    """As :func:`prefix_attention`, by scaled-dot-product attention under the layout's T × T mask."""
    return scaled_dot_product_attention(
        query_QTD[None], key_KTD[None], value_KTD[None], attn_mask=layout.mask, scale=scale, enable_gqa=True
    )[0].transpose(0, 1)
