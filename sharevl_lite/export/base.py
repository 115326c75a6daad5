"""The base model as it lies on the disk: its files, its tensors, and which tensor becomes which parameter.

Checkpoints of Qwen2.5-VL name their tensors as the first transformers release of the family did (`model.layers…`,
`visual.blocks…`); transformers renames them while it loads (`model.language_model.layers…`, `model.visual.blocks…`),
and PEFT knows the new names only. The map between the two is transformers' own, asked of a model without weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sharevl_lite.errors import in_one_line
from sharevl_lite.export.errors import ExportError
from sharevl_lite.policy.folder import BUILTIN_PREFIX, CONFIG_FILE, resolve_model_path
from sharevl_lite.policy.weights_digest import INDEX, SINGLE, weights_digests
from sharevl_lite.run_files import DATA_FILE

GENERATION_CONFIG = "generation_config.json"
COPIED = (
    CONFIG_FILE,
    GENERATION_CONFIG,
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "chat_template*",
    "additional_chat_templates/*",
    "LICENSE*",
    "NOTICE*",
)
"""Files of a model that are neither weights nor its card."""
PROCESSING = tuple(name for name in COPIED if name not in (CONFIG_FILE, GENERATION_CONFIG))
"""Those of them that an adapter needs beside it."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies, its type in safetensors' words (such as `BF16`), shape and size."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class BaseModel:
    """A model's folder. `name` is what the recipe calls it; `commit` that of the Hub, where it comes from there."""

    name: str
    folder: Path
    commit: str | None

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """Tensors by name, in the order of the files."""
        return stored_tensors(self.folder)

    @cached_property
    def names(self) -> dict[str, str]:
        """The checkpoint's name of each parameter of the model that transformers builds."""
        return _checkpoint_names(self.folder, self.tensors)

    @property
    def is_on_hub(self) -> bool:
        """Whether the name can be found by others."""
        return self.commit is not None

    @property
    def is_built_in(self) -> bool:
        """Whether it is a part of sharevl-lite."""
        return self.name.startswith(BUILTIN_PREFIX)

    @property
    def public_name(self) -> str:
        """The name without the folders of this machine."""
        return self.name if self.is_on_hub or self.is_built_in else self.folder.resolve().name

    def files(self, patterns: tuple[str, ...] = COPIED) -> Iterator[Path]:
        """What is copied along, in order."""
        found = {path for pattern in patterns for path in self.folder.glob(pattern) if path.is_file()}
        return iter(sorted(found))


def find_base(name: str, *, mergeable: bool = True) -> BaseModel:
    """The model of that name: built in, a local folder, or the newest snapshot on the Hub (from the cache, if it is
    there).

    Raises ExportError where it is not found or, with `mergeable`, is quantised itself; PolicyError for an unknown
    built-in name.
    """
    folder, commit = _fetch(name)
    base = BaseModel(name, folder, commit)
    config = _read_json(folder / CONFIG_FILE)
    if mergeable and "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "quantised")
        raise ExportError(
            f"{name}: its weights are quantised themselves ({method}), and an adapter cannot be merged into them; name "
            "the 16-bit model it was made from with --base, or export with --format lora"
        )
    return base


def check_base(base: BaseModel, kept: Mapping[str, str], *, named: bool) -> tuple[str, bool]:
    """In a sentence, and as yes or no: whether this is the model that the run was trained on.

    `kept` are the digests of its files of weights that the run wrote down, if any. Raises
    ExportError where the weights are others, unless the user `named` this base: a quantised one is merged with
    another's weights.
    """
    if not kept:
        told = "it was not checked that the base model is the one the run was trained on: the run kept no digests of "
        return f"{told}its weights (an older version, or a loader that fetched them elsewhere)", False
    if _holds(base.folder, kept):
        return "the base model's weights are those the run was trained on, by their digests", True
    if named:
        return (
            f"the weights of {base.public_name} are not those the run was trained on: what was learned on one base "
            "model is put on another, and compared with that",
            False,
        )
    where = f" (commit {base.commit})" if base.commit else ""
    raise ExportError(
        f"{base.name}{where}: its weights are not those the run was trained on, by the digests in its {DATA_FILE}; the "
        f"adapter would be merged into another model. {_how_to_go_on(base, kept)}"
    )


def _holds(folder: Path, kept: Mapping[str, str]) -> bool:
    """Whether every file that the weights are read from is as it was kept."""
    found = weights_digests(str(folder))
    return bool(found) and all(kept.get(name) == digest for name, digest in found.items())


def _how_to_go_on(base: BaseModel, kept: Mapping[str, str]) -> str:
    if base.is_built_in:
        return "Export with the version of sharevl-lite that trained it"
    if base.commit is None:
        return "Name the folder of that model with --base"
    older = sorted(folder for folder in base.folder.parent.iterdir() if folder != base.folder and _holds(folder, kept))
    if older:
        return f"That model lies in the cache here: --base {older[0]}"
    return f"Fetch that model (hf download {base.name} --revision COMMIT --local-dir DIR) and name it with --base DIR"


def _fetch(name: str) -> tuple[Path, str | None]:
    local = Path(resolve_model_path(name)).expanduser()
    if name.startswith(BUILTIN_PREFIX) or local.is_dir():
        return local, None
    from huggingface_hub import snapshot_download

    wanted = [*COPIED, "*.safetensors", INDEX, "README.md"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{name}: neither a folder here nor a model that can be fetched ({in_one_line(error)}); give its "
            "folder or Hub id with --base"
        ) from error
    return folder, folder.name


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a model's folder. Raises ExportError where there are none, or the index tells of others."""
    index = folder / INDEX
    if index.is_file():
        weight_map: dict[str, str] = _read_json(index)["weight_map"]
        files = [folder / name for name in dict.fromkeys(weight_map.values())]
    else:
        weight_map = {}
        files = [folder / SINGLE]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ExportError(f"{folder}: there is no {', '.join(missing[:3])}; weights are read as safetensors only")
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors |= _tensors_of(file)
    if index.is_file() and weight_map != {name: tensor.file.name for name, tensor in tensors.items()}:
        wrong = sorted(weight_map.keys() ^ tensors.keys()) or ["a tensor in another file"]
        raise ExportError(f"{index}: does not tell what the files hold ({wrong[0]})")
    return tensors


def _tensors_of(file: Path) -> dict[str, StoredTensor]:
    """Read from the header: eight bytes of its length, then JSON."""
    try:
        with open(file, "rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    except (OSError, ValueError, MemoryError) as error:
        raise ExportError(f"{file}: not a readable safetensors file ({error})") from error
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(
            file, entry["dtype"], tuple(entry["shape"]), entry["data_offsets"][1] - entry["data_offsets"][0]
        )
        for name, entry in header.items()
    }


def read_tensor(stored: StoredTensor, name: str) -> Tensor:
    """One tensor, mapped from its file."""
    with safe_open(str(stored.file), framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def _checkpoint_names(folder: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(str(folder)))
    transforms: list[Any] = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if not isinstance(t, WeightRenaming)]
    parameters = model.state_dict()
    names: dict[str, str] = {}
    for name in tensors:
        renamed, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, parameters)
        if pattern is None:  # a tensor that is cut or joined while it is loaded has no one name
            names[renamed] = name
    return names


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: cannot be read ({error})") from error
    return value
