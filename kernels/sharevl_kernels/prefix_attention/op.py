"""Attention of a packed row, over [prefix | own] keys gathered per response; and of blocks that see themselves alone.

`varlen` is one call of `torch.nn.attention.varlen.varlen_attn` (FlashAttention) for all sequences of the row.
`sequences` is one scaled-dot-product attention after another, for CPUs and for cards and dtypes that FlashAttention
does not serve. For both, work falls from T² to what is seen and no T × T mask exists. The gradient of a prefix key is
a sum over all responses behind it; `gather_rows` adds it up in float32 (an `index_add_` in bfloat16 would round it m·n
times).
"""

from __future__ import annotations

import inspect
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sharevl_kernels.index_sum import gather_rows
from sharevl_kernels.prefix_attention.layout import PrefixLayout, Sequences

Backend = Literal["varlen", "sequences"]


def choose_backend(device: torch.device, dtype: torch.dtype, head_dim: int) -> Backend:
    """`varlen` where FlashAttention runs: Ampere or later, half precision, heads up to 256 in steps of 8."""
    fits = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and head_dim <= 256 and head_dim % 8 == 0
    return "varlen" if fits and torch.cuda.get_device_capability(device) >= (8, 0) else "sequences"


def prefix_attention(
    query_QTD: Float[Tensor, "Q T D"],
    key_KTD: Float[Tensor, "K T D"],
    value_KTD: Float[Tensor, "K T D"],
    layout: PrefixLayout,
    *,
    scale: float | None = None,
) -> Float[Tensor, "T Q D"]:
    """Attention of the row's T tokens; Q query heads share K key heads (K divides Q). `scale`: None is 1/√D.

    Raises ValueError for shapes that do not fit the layout or each other.
    """
    heads, tokens, head_dim = query_QTD.shape
    if tokens != layout.num_tokens or key_KTD.shape[1] != tokens or value_KTD.shape[1] != tokens:
        raise ValueError(f"the layout is of {layout.num_tokens} tokens, there are {tokens}, {key_KTD.shape[1]}")
    if heads % key_KTD.shape[0]:
        raise ValueError(f"{heads} query heads cannot share {key_KTD.shape[0]} key heads")
    scale = head_dim**-0.5 if scale is None else scale
    sequences = layout.sequences
    key_GKD, value_GKD = (gather_rows(x.transpose(0, 1), sequences.gathered) for x in (key_KTD, value_KTD))
    if choose_backend(query_QTD.device, query_QTD.dtype, head_dim) == "sequences":
        return _sequence_attention(query_QTD, key_GKD, value_GKD, sequences, scale)
    return _varlen_attention(query_QTD.transpose(0, 1).contiguous(), key_GKD, value_GKD, sequences, scale)


def block_attention(
    query_QTD: Float[Tensor, "Q T D"],
    key_QTD: Float[Tensor, "Q T D"],
    value_QTD: Float[Tensor, "Q T D"],
    bounds_N1: Int[Tensor, "N1"],
    longest: int,
    *,
    scale: float | None = None,
) -> Float[Tensor, "T Q D"]:
    """Attention in both directions within blocks of tokens, one call for all of them where FlashAttention runs.

    Block i has the tokens `bounds_N1[i]:bounds_N1[i + 1]` (int32), at most `longest`. `scale`: None is 1/√D.

    Raises ValueError where key or value have another shape than the query.
    """
    if key_QTD.shape != query_QTD.shape or value_QTD.shape != query_QTD.shape:
        raise ValueError(f"{tuple(query_QTD.shape)} queries, {tuple(key_QTD.shape)}, {tuple(value_QTD.shape)}")
    scale = query_QTD.shape[-1] ** -0.5 if scale is None else scale
    if choose_backend(query_QTD.device, query_QTD.dtype, query_QTD.shape[-1]) == "varlen":
        query_TQD, key_TQD, value_TQD = (x.transpose(0, 1).contiguous() for x in (query_QTD, key_QTD, value_QTD))
        bounds = (bounds_N1, bounds_N1, longest, longest)
        return _flash_attention(query_TQD, key_TQD, value_TQD, *bounds, scale=scale, **_both_ways(longest))
    lengths = bounds_N1.diff().tolist()
    blocks = zip(*(x.split(lengths, dim=1) for x in (query_QTD, key_QTD, value_QTD)), strict=True)
    pieces = [scaled_dot_product_attention(q[None], k[None], v[None], scale=scale)[0] for q, k, v in blocks]
    return torch.cat(pieces, dim=1).transpose(0, 1)


def _attend(
    query_QTD: Tensor, key_QSD: Tensor, value_QSD: Tensor, scale: float, mask: Tensor | None = None
) -> Float[Tensor, "Q T D"]:
    """Causal where there is no mask."""
    return scaled_dot_product_attention(
        query_QTD[None], key_QSD[None], value_QSD[None], attn_mask=mask, is_causal=mask is None, scale=scale
    )[0]


def _sequence_attention(
    query_QTD: Float[Tensor, "Q T D"],
    key_GKD: Float[Tensor, "G K D"],
    value_GKD: Float[Tensor, "G K D"],
    sequences: Sequences,
    scale: float,
) -> Float[Tensor, "T Q D"]:
    key_QGD, value_QGD = (
        x.transpose(0, 1).repeat_interleave(query_QTD.shape[0] // x.shape[1], 0) for x in (key_GKD, value_GKD)
    )
    num_queries, num_keys = ([b - a for a, b in pairwise(bounds)] for bounds in (sequences.queries, sequences.keys))
    pieces = []
    # Split, not sliced: the backward pass of a slice writes a gradient as long as the row.
    for q, k, v in zip(
        query_QTD.split(num_queries, 1), key_QGD.split(num_keys, 1), value_QGD.split(num_keys, 1), strict=True
    ):
        before = k.shape[1] - q.shape[1]
        mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).tril(before) if before else None
        pieces.append(_attend(q, k, v, scale, mask))
    return torch.cat(pieces, dim=1).transpose(0, 1)


def _varlen_attention(
    query_TQD: Float[Tensor, "T Q D"],
    key_GKD: Float[Tensor, "G K D"],
    value_GKD: Float[Tensor, "G K D"],
    sequences: Sequences,
    scale: float,
) -> Float[Tensor, "T Q D"]:
    bounds = (sequences.queries_N1, sequences.keys_N1, *sequences.longest)
    causal = {"window_size": (-1, 0), **_grouped_heads()}  # aligned to the last key
    return _flash_attention(query_TQD, key_GKD, value_GKD, *bounds, scale=scale, **causal)


def _flash_attention(*args: Any, **kwargs: Any) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    out_TQD = varlen_attn(*args, **kwargs)
    assert isinstance(out_TQD, Tensor)  # no log-sum-exp was asked for
    return out_TQD


def _both_ways(longest: int) -> dict[str, Any]:
    """Attention without bounds, said as a window over all of the longest block where torch (2.14) would else hand it to
    cuDNN, which plans anew for every size of picture."""
    from torch.nn.attention import varlen

    return {"window_size": (longest, longest)} if hasattr(varlen, "_can_use_cudnn") else {}


@cache
def _grouped_heads() -> dict[str, Any]:
    """Newer torch wants shared key heads to be announced; older takes them as they are."""
    from torch.nn.attention.varlen import varlen_attn

    return {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
