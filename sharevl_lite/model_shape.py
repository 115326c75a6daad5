"""Sizes of a model, from its configuration alone: what the memory plan counts with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from sharevl_lite.policy.hf import linear_layers_of_text, resolve_model_path

_QWEN2_VISION = {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16}
_QWEN2_5_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_QWEN3_VISION = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "out_hidden_size": 2560,
    "deepstack_visual_indexes": [5, 11, 17],
    "num_position_embeddings": 2304,
    "patch_size": 16,
}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen/Qwen2-VL-2B-Instruct": (
        "qwen2_vl",
        {
            "text_config": {
                "hidden_size": 1536,
                "intermediate_size": 8960,
                "num_hidden_layers": 28,
                "num_attention_heads": 12,
                "num_key_value_heads": 2,
                "vocab_size": 151936,
                "tie_word_embeddings": True,
            },
            "vision_config": _QWEN2_VISION | {"hidden_size": 1536},
            "tie_word_embeddings": True,
        },
    ),
    "Qwen/Qwen2.5-VL-3B-Instruct": (
        "qwen2_5_vl",
        {
            "text_config": {
                "hidden_size": 2048,
                "intermediate_size": 11008,
                "num_hidden_layers": 36,
                "num_attention_heads": 16,
                "num_key_value_heads": 2,
                "vocab_size": 151936,
                "tie_word_embeddings": True,
            },
            "vision_config": _QWEN2_5_VISION | {"out_hidden_size": 2048},
            "tie_word_embeddings": True,
        },
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": (
        "qwen2_5_vl",
        {
            "text_config": {
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "vocab_size": 152064,
            },
            "vision_config": _QWEN2_5_VISION | {"out_hidden_size": 3584},
            "tie_word_embeddings": False,
        },
    ),
    "Qwen/Qwen3-VL-4B-Instruct": (
        "qwen3_vl",
        {
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 9728,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 151936,
                "tie_word_embeddings": True,
            },
            "vision_config": _QWEN3_VISION,
            "tie_word_embeddings": True,
        },
    ),
}
"""Family and sizes of models whose configuration may not be on this machine; from their config.json on the Hub."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model: parameters of the text model's linear layers and all others, and what activations depend on."""

    text_linear: int
    others: int
    linear: dict[str, tuple[int, int]] = field(repr=False)
    """In and out features of the text model's linear layers, by name."""
    layers: int = 0
    hidden: int = 0
    intermediate: int = 0
    kv_width: int = 0
    vocabulary: int = 0
    vision_levels: int = 1
    """Widths of features that a picture's token has: 1, and one for each layer that gets some (Qwen3-VL)."""

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.text_linear + self.others

    @property
    def kv_numbers(self) -> int:
        """Keys and values of a token, over all layers."""
        return self.layers * 2 * self.kv_width


def find_config(path: str) -> tuple[Any, str] | None:
    """A model's configuration and where it is from: its folder, the local cache, or the published sizes. None: nowhere.

    Raises PolicyError for an unknown built-in.
    """
    from transformers import AutoConfig

    folder = resolve_model_path(path)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True), "its configuration"
    except (OSError, ValueError):
        if path not in PUBLISHED:
            return None
    family, sizes = PUBLISHED[path]
    return AutoConfig.for_model(family, **sizes), "its published sizes"


def measure_shape(config: Any) -> ModelShape:
    """Builds the model without memory and counts."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    model.tie_weights()
    linear = linear_layers_of_text(model)
    inside = sum(parameter.numel() for module in linear.values() for parameter in module.parameters())
    text = config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelShape(
        text_linear=inside,
        others=sum(parameter.numel() for parameter in model.parameters()) - inside,
        linear={name: (module.in_features, module.out_features) for name, module in linear.items()},
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        kv_width=text.num_key_value_heads * head_dim,
        vocabulary=text.vocab_size,
        vision_levels=1 + len(getattr(config.vision_config, "deepstack_visual_indexes", None) or ()),
    )
