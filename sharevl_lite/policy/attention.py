"""`sharevl_prefix`: the attention that a policy's text layers use, registered with transformers.

A scoring pass hands a :class:`PrefixLayout` through the model's keyword arguments (they survive gradient checkpointing
and PEFT), and its layers attend as the layout says. Any other pass, sampling above all, has none and is plain `sdpa`
with the masks transformers makes for it. So the setting stays for good: a backward pass that computes layers again,
long after the forward pass, finds the same attention.
"""

from __future__ import annotations

from typing import Any

import torch
from sharevl_kernels.prefix_attention import PrefixLayout, prefix_attention
from torch import Tensor, nn

NAME = "sharevl_prefix"
LAYOUT = "prefix_layout"
"""The keyword under which a layout travels."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    prefix_layout: PrefixLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: [1, heads, T, D] each in, [1, T, heads, D] out.

    Raises ValueError for a packed row with dropout, a sliding window or more than one row.
    """
    if prefix_layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, None
    if dropout > 0.0 or kwargs.get("sliding_window") is not None or query.shape[0] != 1:
        raise ValueError("a packed row is one row, scored with full attention and without attention dropout")
    dtype = value.dtype  # rotary embeddings under autocast can leave queries and keys wider
    packed = prefix_attention(query[0].to(dtype), key[0].to(dtype), value[0], prefix_layout, scale=scaling)
    return packed[None], None


def check_full_attention(config: Any) -> None:
    """Raises ValueError where a text layer is not full attention: a response could not see its whole prompt."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    dropout = getattr(text, "attention_dropout", 0.0)
    if kinds != {"full_attention"} or dropout:
        raise ValueError(
            f"shared-prefix packing needs full attention without dropout in every text layer; this model has "
            f"{', '.join(sorted(kinds))} and attention_dropout {dropout}. Use another model of the Qwen2.5-VL or "
            "Qwen3-VL families, or set use_sliding_window to false and attention_dropout to 0 in its config.json"
        )


def use_prefix_attention(model: Any) -> None:
    """Sets the text layers of a conditional-generation model to `sharevl_prefix`; the vision tower keeps its own.

    Raises ValueError as :func:`check_full_attention`.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    check_full_attention(model.config)
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation({"text_config": NAME})
    # Unsloth's model with shared weights has copies of the configuration in its layers, which are not found by that.
    for module in model.model.language_model.modules():
        if (config := getattr(module, "config", None)) is not None:
            config._attn_implementation = NAME


def packed_arguments(layout: PrefixLayout) -> dict[str, Any]:
    """What a text model gets for a packed row. A 4-D mask is passed on unread, so that no T × T one is made."""
    return {"attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=layout.device), LAYOUT: layout}
