"""Random models in the sizes of published ones, for benchmarks on machines that have no checkpoints.

    python scripts/random_models.py Qwen/Qwen2.5-VL-3B-Instruct FOLDER [--layers 2]

The tokenizer and the processor are those of the shipped model; its token ids are in every vocabulary.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from sharevl_lite.model_shape import PUBLISHED
from sharevl_lite.policy.hf import resolve_model_path

SHIPPED = "builtin:digits-vl"
ROPE = {
    "qwen2_vl": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    "qwen2_5_vl": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    "qwen3_vl": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True},
}


def random_config(name: str, layers: int | None = None) -> Any:
    """Configuration with the sizes of a published model and the shipped tokenizer's ids; `layers`: fewer of them."""
    family, sizes = PUBLISHED[name]
    shipped = AutoConfig.from_pretrained(resolve_model_path(SHIPPED)).to_dict()
    ids = {key: value for key, value in shipped.items() if key.endswith("_token_id")}
    special = {key: shipped["text_config"][key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = sizes["text_config"] | special | {"max_position_embeddings": 32768, "rope_parameters": ROPE[family]}
    if layers is not None:
        text |= {"num_hidden_layers": layers}
    return AutoConfig.for_model(family, **sizes | ids | {"text_config": text})


def write_random_model(name: str, folder: Path, *, dtype: torch.dtype, layers: int | None = None) -> None:
    """Writes such a model with its processor, drawn on the GPU where there is one."""
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForImageTextToText.from_config(random_config(name, layers), dtype=dtype)
    model.save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(resolve_model_path(SHIPPED))
    processor.image_processor.patch_size = model.config.vision_config.patch_size
    processor.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("name", choices=PUBLISHED)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="fewer layers than the real model")
    options = parser.parse_args()
    write_random_model(options.name, options.folder, dtype=torch.bfloat16, layers=options.layers)
