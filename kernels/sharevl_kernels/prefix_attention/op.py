"""Attention of a packed row, by variable-length attention on gathered keys or by a dense mask.

`varlen` gathers [prefix | own] keys per response and makes one call of `torch.nn.attention.varlen.varlen_attn`
(FlashAttention): work falls from T² to what is seen, and no mask exists. The gradient of a prefix key is a sum over all
responses behind it; `gather_rows` adds it up in float32 (an `index_add_` in bfloat16 would round it m·n times).

`mask` is scaled-dot-product attention under the layout's T × T mask: right on any device, and the oracle of the tests;
on a GPU it is for cards and dtypes that FlashAttention does not serve.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sharevl_kernels.index_sum import gather_rows
from sharevl_kernels.prefix_attention.layout import PrefixLayout
from sharevl_kernels.prefix_attention.reference import torch_varlen_attention

Backend = Literal["varlen", "mask"]


def choose_backend(device: torch.device, dtype: torch.dtype, head_dim: int) -> Backend:
    """`varlen` where FlashAttention runs: Ampere or later, half precision, heads up to 256 in steps of 8."""
    fits = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and head_dim <= 256 and head_dim % 8 == 0
    return "varlen" if fits and torch.cuda.get_device_capability(device) >= (8, 0) else "mask"


def prefix_attention(
    query_QTD: Float[Tensor, "Q T D"],
    key_KTD: Float[Tensor, "K T D"],
    value_KTD: Float[Tensor, "K T D"],
    layout: PrefixLayout,
    *,
    scale: float | None = None,
    backend: Backend | None = None,
) -> Float[Tensor, "T Q D"]:
    """Attention of the row's T tokens; Q query heads share K key heads (K divides Q). `scale`: None is 1/√D.

    `backend`: None chooses by device, dtype and head size. `varlen` where FlashAttention does not run is plain torch,
    sequence by sequence (for tests). Raises ValueError for shapes that do not fit the layout or each other.
    """
    heads, tokens, head_dim = query_QTD.shape
    if tokens != layout.group_T.numel() or key_KTD.shape[1] != tokens or value_KTD.shape[1] != tokens:
        raise ValueError(f"the layout is of {layout.group_T.numel()} tokens, there are {tokens}, {key_KTD.shape[1]}")
    if heads % key_KTD.shape[0]:
        raise ValueError(f"{heads} query heads cannot share {key_KTD.shape[0]} key heads")
    scale = head_dim**-0.5 if scale is None else scale
    best = choose_backend(query_QTD.device, query_QTD.dtype, head_dim)
    if (backend or best) == "mask":
        shared = heads // key_KTD.shape[0]
        key_QTD, value_QTD = (x.repeat_interleave(shared, 0) for x in (key_KTD, value_KTD))
        out_1QTD = scaled_dot_product_attention(
            query_QTD[None], key_QTD[None], value_QTD[None], attn_mask=layout.mask, scale=scale
        )
        return out_1QTD[0].transpose(0, 1)
    sequences = layout.sequences
    query_TQD = query_QTD.transpose(0, 1)
    key_GKD, value_GKD = (gather_rows(x.transpose(0, 1), sequences.gathered) for x in (key_KTD, value_KTD))
    if best == "mask":
        return torch_varlen_attention(query_TQD, key_GKD, value_GKD, sequences.queries_N1, sequences.keys_N1, scale)
    from torch.nn.attention.varlen import varlen_attn

    out_TQD = varlen_attn(
        query_TQD.contiguous(),
        key_GKD,
        value_GKD,
        sequences.queries_N1,
        sequences.keys_N1,
        sequences.longest_queries,
        sequences.longest_keys,
        scale=scale,
        window_size=(-1, 0),
        **_grouped_heads(),
    )
    assert isinstance(out_TQD, Tensor)  # no log-sum-exp was asked for
    return out_TQD


@cache
def _grouped_heads() -> dict[str, Any]:
    """Newer torch wants shared key heads to be announced; older takes them as they are."""
    from torch.nn.attention.varlen import varlen_attn

    return {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
