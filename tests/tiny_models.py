"""Tiny random models of the supported families, with real processors, for tests that need a policy.

Weights are drawn wide, so that every part of a model (prompt, image, position, adapter) moves its log-probs by nats and
an error in any of them cannot hide.
"""

from functools import cache

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from sharevl_lite.policy.hf import enable_checkpointing
from sharevl_lite.policy.packed import PackedPolicy
from sharevl_lite.policy.prompts import PromptEncoder

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MERGED = {"qwen2_vl": 28, "qwen2_5_vl": 28, "qwen3_vl": 32}
"""Pixels along a side of the square that becomes one image token."""


@cache
def tiny_processor(family):
    """A processor over bytes and Qwen's special tokens: 263 ids."""
    alphabet = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytewise = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    bytewise.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )
    side = MERGED[family]
    size = {"shortest_edge": side**2, "longest_edge": 16 * side**2}
    images = {"size": size, "patch_size": side // 2, "temporal_patch_size": 2, "merge_size": 2}
    parts = {
        "qwen2_vl": (Qwen2VLProcessor, Qwen2VLVideoProcessor),
        "qwen2_5_vl": (Qwen2_5_VLProcessor, Qwen2VLVideoProcessor),
        "qwen3_vl": (Qwen3VLProcessor, Qwen3VLVideoProcessor),
    }[family]
    return parts[0](
        image_processor=Qwen2VLImageProcessor(**images),
        tokenizer=tokenizer,
        video_processor=parts[1](**images),
        chat_template=CHAT_TEMPLATE,
    )


def tiny_model(family, *, seed=0, dtype=torch.float32):
    """A frozen random model: two to three layers of 32, grouped-query attention, windowed or deep-stacked vision."""
    tokenizer = tiny_processor(family).tokenizer
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    }
    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    shared = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }
    torch.manual_seed(seed)
    if family == "qwen2_vl":
        text["rope_parameters"]["mrope_section"] = [2, 1, 1]
        vision = {"depth": 3, "embed_dim": 16, "mlp_ratio": 3, "num_heads": 2, "hidden_size": 32}
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **shared))
    elif family == "qwen2_5_vl":
        text["rope_parameters"]["mrope_section"] = [2, 1, 1]
        vision |= {"fullatt_block_indexes": [2], "window_size": 56}
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **shared))
    else:
        text |= {"head_dim": 8}
        text["rope_parameters"] |= {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
        vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **shared))
    with torch.no_grad():
        for parameter in model.parameters():
            width = parameter[0].numel() if parameter.ndim > 1 else 25
            parameter.normal_(0.0, 1.5 / width**0.5).add_(1.0 if parameter.ndim == 1 else 0.0)
    model.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    return model.to(dtype).eval().requires_grad_(False)


def tiny_policy(family, *, seed=0, dtype=torch.float32, temperature=1.0, checkpointing=False, adapt_vision=False):
    """A policy whose adapter is not zero, on the text model's linear layers (and the vision tower's)."""
    model = tiny_model(family, seed=seed, dtype=dtype)
    wanted = ("language_model", "visual") if adapt_vision else ("language_model",)
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and any(part in name.split(".") for part in wanted)
    ]
    adapted = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules=targets))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.15)
    if dtype == torch.float64:
        adapted.double()
    if checkpointing:
        enable_checkpointing(adapted)
    return PackedPolicy(adapted, tiny_processor(family), temperature=temperature)


def encoder(policy):
    """Prompts for this policy."""
    return PromptEncoder(policy.processor, policy.base.model.get_rope_index)


def picture(family, rows, columns, seed):
    """An image of noise that becomes rows × columns image tokens."""
    side = MERGED[family]
    values = np.random.default_rng(seed).integers(256, size=(rows * side, columns * side, 3), dtype=np.uint8)
    return Image.fromarray(values)
