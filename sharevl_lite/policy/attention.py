"""`sharevl_prefix` and `sharevl_flash_blocks`: the attention of a policy's layers, registered with transformers.

A scoring pass hands a :class:`PrefixLayout` through the model's keyword arguments (they survive gradient checkpointing
and PEFT), and its layers attend as the layout says. Any other pass, sampling above all, has none and is plain `sdpa`
with the masks transformers makes for it. So the setting stays for good: a backward pass that computes layers again,
long after the forward pass, finds the same attention.

The vision tower attends within windows and images. With transformers' own choice, `sdpa`, that is a call for each of
them in each layer (1,796 for a picture of 896 × 896 in Qwen2.5-VL's), and a wait for the device before; where
FlashAttention runs it is one call a layer. transformers hands bounds of all blocks to attentions with `flash` in their
name.
"""

from __future__ import annotations

from typing import Any

import torch
from sharevl_kernels.prefix_attention import PrefixLayout, block_attention, choose_backend, prefix_attention
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

NAME = "sharevl_prefix"
BLOCKS = "sharevl_flash_blocks"
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
        if query.shape[2] == 1:
            return _decode(query, key, value, attention_mask, scaling), None
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


def _decode(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None) -> Tensor:
    """One new token per row, [B, heads, 1, D]. Queries that share a head of keys are a row of queries to it, where
    transformers 5.17 copies all keys and values for each of them (5.24 does as here)."""
    batch, heads, _, size = query.shape
    grouped = query.reshape(batch, key.shape[1], -1, size)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(batch, 1, heads, size)


def attend_within_blocks(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface for a vision tower: [1, heads, T, D] each in, [1, T, heads, D] out."""
    dtype = value.dtype
    blocks = (cu_seq_lens_q.to(torch.int32), max_length_q)
    attended = block_attention(query[0].to(dtype), key[0].to(dtype), value[0], *blocks, scale=scaling)
    return attended[None], None


def check_full_attention(config: Any) -> None:
    """Raises ValueError where a text layer is not full attention: a response could not see its whole prompt."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    dropout = getattr(text, "attention_dropout", 0.0)
    if kinds != {"full_attention"} or dropout:
        raise ValueError(
            f"shared-prefix packing needs full attention without dropout in every text layer; this model has "
            f"{', '.join(sorted(kinds))} and attention_dropout {dropout}. Use another model of the Qwen2-VL, "
            "Qwen2.5-VL or Qwen3-VL families, or set use_sliding_window to false and attention_dropout to 0 in its "
            "config.json"
        )


def use_prefix_attention(model: Any) -> None:
    """Sets the text layers of a conditional-generation model to `sharevl_prefix`, and its vision tower to
    `sharevl_flash_blocks` where FlashAttention runs; else that keeps its own.

    Raises ValueError as :func:`check_full_attention`.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    check_full_attention(model.config)
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation({"text_config": NAME})
    # Unsloth's model with shared weights has copies of the configuration in its layers, which are not found by that.
    _set_attention(model.model.language_model, NAME)
    tower = model.model.visual
    weight, sizes = next(tower.parameters()), model.config.vision_config
    width = getattr(sizes, "embed_dim", sizes.hidden_size)  # Qwen2-VL's hidden_size is what the tower hands on
    if choose_backend(weight.device, weight.dtype, width // sizes.num_heads) == "varlen":
        use_block_attention(tower)


def use_block_attention(tower: nn.Module) -> None:
    """Sets a vision tower to `sharevl_flash_blocks`."""
    from transformers import AttentionInterface

    AttentionInterface.register(BLOCKS, attend_within_blocks)
    _set_attention(tower, BLOCKS)  # not by the model's own setter, which looks for a package of the name


def _set_attention(part: nn.Module, name: str) -> None:
    for module in part.modules():
        if (config := getattr(module, "config", None)) is not None:
            config._attn_implementation = name


def packed_arguments(layout: PrefixLayout) -> dict[str, Any]:
    """What a text model gets for a packed row. A 4-D mask is passed on unread, so that no T × T one is made."""
    return {"attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=layout.device), LAYOUT: layout}
