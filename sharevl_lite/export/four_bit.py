"""Merged weights in 4 bits: NF4 with double quantisation (arXiv 2305.14314), as `model.load_in_4bit` trains with.

A block of 64 weights w is stored as the largest magnitude a in it and, for each, the nearest of 16 levels to w / a.
The a are stored in 8 bits, in blocks of 256. Packed are the linear layers of the text model; embeddings, norms, the
head and the vision tower are the merged checkpoint's.

It is packed from the merged checkpoint, not from a base that was packed before: NF4(W + ΔW) holds a small ΔW on
average, because W lies anywhere between two levels and ΔW carries some weights over the middle. NF4(NF4(W) + ΔW), what
merging into a packed base comes to, rounds back to the level that was there, and the adapter is gone.

bitsandbytes packs on a CPU too. One weight is in memory beside the packed model at a time.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from sharevl_lite.export import verify
from sharevl_lite.export.base import GENERATION_CONFIG, PROCESSING, BaseModel
from sharevl_lite.export.errors import ExportError
from sharevl_lite.export.merge import copy_files
from sharevl_lite.policy.folder import CONFIG_FILE
from sharevl_lite.policy.hf import four_bits, text_layers

SAME = (*PROCESSING, GENERATION_CONFIG)
"""The base's files that are the same beside packed weights; `config.json` gains a section."""
TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits of a packed weight: itself, and its shares of its block's maximum and of the maxima's block."""
LEVELS_BYTES = 4 * (16 + 256) + 512
"""What each packed layer stores beside that: the levels of weights and maxima, and a description."""


def require_bitsandbytes() -> None:
    """Raises ExportError where bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise ExportError(
            "--format merged-4bit needs bitsandbytes, on a CPU too: pip install bitsandbytes, or choose another format"
        )


def stored_type(base: BaseModel) -> torch.dtype:
    """The type of the base's weights, which packed layers compute in. Raises ExportError where there are several."""
    kinds = sorted({tensor.dtype for tensor in base.tensors.values()})
    if len(kinds) > 1 or kinds[0] not in TYPES:
        raise ExportError(
            f"{base.name}: stores weights as {', '.join(kinds)}; 4 bits are made of one of float32, float16 and "
            "bfloat16. Export with --format merged-16bit"
        )
    return TYPES[kinds[0]]


def packing_of(base: BaseModel) -> Any:
    """transformers' configuration of the quantisation. Raises ExportError."""
    return four_bits(stored_type(base))


def packed_names(base: BaseModel) -> set[str]:
    """The checkpoint's names of the weights that are packed: of every linear layer of the text model."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(str(base.folder)))
    return {base.names[f"{layer}.weight"] for layer in text_layers(model, "all-linear")}


def size_of(base: BaseModel) -> int:
    """Bytes of the packed checkpoint."""
    packed = packed_names(base)
    width = torch.finfo(stored_type(base)).bits
    return sum(
        int(tensor.nbytes * BITS / width) + LEVELS_BYTES if name in packed else tensor.nbytes
        for name, tensor in base.tensors.items()
    )


def pack(merged: Path, base: BaseModel, folder: Path, max_shard_bytes: int) -> None:
    """Writes the merged checkpoint of `merged` in 4 bits, and the base's other files. Raises ExportError."""
    with verify.loaded(merged, "the merged model", packing=packing_of(base)) as (model, _):
        model.save_pretrained(str(folder), max_shard_size=max_shard_bytes)
    copy_beside(base, folder)


def copy_beside(base: BaseModel, folder: Path) -> None:
    """The base's other files, over those written with the weights; its `config.json` says how they are packed."""
    copy_files(base, folder)
    config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
    config["quantization_config"] = packing_of(base).to_dict()
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    for file in folder.glob("*.safetensors"):
        file.chmod((folder / CONFIG_FILE).stat().st_mode)  # safetensors' own is for the user alone
