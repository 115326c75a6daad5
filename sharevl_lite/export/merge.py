"""The merged checkpoint, written tensor by tensor: one shard and one weight in float32 are in memory at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file

from sharevl_lite.export.adapter import LowRank, merged
from sharevl_lite.export.base import INDEX, SINGLE, BaseModel, StoredTensor, read_tensor
from sharevl_lite.policy.folder import CONFIG_FILE


def write_merged(base: BaseModel, changes: Mapping[str, LowRank], folder: Path, max_shard_bytes: int) -> None:
    """Writes the base's tensors, changed where `changes` says so, in its order, and its other files.

    A shard holds at most `max_shard_bytes`, or one tensor that is larger than that.
    """
    copy_files(base, folder)
    shards = plan_shards(base.tensors, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: read_tensor(base.tensors[name], name) for name in names}
        for name in names:
            if name in changes:
                tensors[name] = merged(tensors[name], changes[name])
        save_file(tensors, str(folder / file), metadata={"format": "pt"})
        (folder / file).chmod((folder / CONFIG_FILE).stat().st_mode)  # safetensors' own is for the user alone
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in base.tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def plan_shards(tensors: Mapping[str, StoredTensor], max_bytes: int) -> list[list[str]]:
    """Names of the tensors of each shard."""
    shards: list[list[str]] = [[]]
    room = max_bytes
    for name, tensor in tensors.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(name)
        room -= tensor.nbytes
    return shards


def copy_files(base: BaseModel, folder: Path, patterns: tuple[str, ...] | None = None) -> None:
    """Copies configuration, tokenizer, processor, chat template and licence as they are."""
    for file in base.files() if patterns is None else base.files(patterns):
        target = folder / file.relative_to(base.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)  # follows the links of the Hub's cache, and takes none of their rights
