"""The shell command that starts a vLLM server (0.31 or newer) which samples as a recipe's training needs it."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import torch

from sharevl_lite.policy.hf import dtype_of, resolve_model_path
from sharevl_lite.rollout.limits import vllm_dtype, vllm_rank

if TYPE_CHECKING:
    from sharevl_lite.config import Recipe
    from sharevl_lite.config_model import ModelSection

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def serve_command(
    recipe: Recipe, *, dtype: str | None = None, max_images: int | None = None, url: str | None = None
) -> str:
    """One shell line that starts the server of `url` (default: the recipe's first).

    `dtype` is the policy's, by default what the recipe means on this machine; `max_images` bounds the images of a
    prompt, where it is known. The server may listen to others only where its URL is not this machine's.
    """
    parts = urlsplit(url or (recipe.rollout.server_urls or ["http://localhost:8000/v1"])[0])
    words = ["vllm", "serve", resolve_model_path(recipe.model.path)]
    if parts.hostname in LOOPBACK:
        words += ["--host", parts.hostname]
    words += ["--port", str(parts.port or (443 if parts.scheme == "https" else 80))]
    if recipe.rollout.server_model is not None:
        words += ["--served-model-name", recipe.rollout.server_model]
    words += ["--dtype", dtype or _dtype(recipe.model)]
    if recipe.model.load_in_4bit:
        words += ["--quantization", "bitsandbytes"]
    words += ["--max-model-len", str(recipe.max_sequence_length)]
    words += ["--enable-lora", "--max-lora-rank", str(vllm_rank(recipe.model.lora.rank)), "--max-loras", "1"]
    words += ["--logprobs-mode", "processed_logprobs", "--enable-scale-out"]
    images = {} if max_images is None else {"image": max_images}
    words += ["--limit-mm-per-prompt", json.dumps({**images, "video": 0})]
    size = picture_size(recipe)
    if size is not None:
        words += ["--mm-processor-kwargs", json.dumps({"size": size})]
    return "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True " + shlex.join(words)


def _dtype(section: ModelSection) -> str:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return vllm_dtype(dtype_of(section, device), device, four_bits=section.load_in_4bit)


def picture_size(recipe: Recipe) -> dict[str, int] | None:
    """The processor's bounds in pixels where the recipe moves them, so that the server resizes nothing again.

    None where it does not, or where only one is given and the model, which has the other, is not on this machine.
    """
    low, high = recipe.model.min_pixels, recipe.model.max_pixels
    if low is None and high is None:
        return None
    if low is None or high is None:
        from transformers import AutoImageProcessor

        try:
            own = AutoImageProcessor.from_pretrained(resolve_model_path(recipe.model.path), local_files_only=True).size
        except (OSError, ValueError):
            return None
        low, high = low or own["shortest_edge"], high or own["longest_edge"]
    return {"shortest_edge": low, "longest_edge": high}
