"""Unsloth's own savers, for those who want their result; the verification after them is that of our own.

Our savers take the adapters of an Unsloth run as well: they are PEFT's, under the same names. What differs:

- `merged-16bit`: the same weights, up to the rounding of Unsloth's matrix products.
- `merged-4bit`: Unsloth adds ΔW to weights that were packed before, and packs the sum: NF4(NF4(W) + ΔW). A sum that is
  less than half a step from its level falls back to it, so a small ΔW is lost (see `four_bit`), and such an export is
  refused.
- `gguf`: Unsloth merges and runs llama.cpp's converter, in a copy that it patches and keeps in llama.cpp's folder. It
  would fetch and build llama.cpp by itself; here it is told not to (`policy.unsloth.SETTINGS`), and asked beforehand
  whether it finds one.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sharevl_lite.errors import in_one_line
from sharevl_lite.export import four_bit, nf4
from sharevl_lite.export.adapter import LowRank
from sharevl_lite.export.base import BaseModel, read_tensor
from sharevl_lite.export.errors import ExportError
from sharevl_lite.export.merge import copy_files
from sharevl_lite.export.source import Source
from sharevl_lite.policy.hf import default_device
from sharevl_lite.policy.unsloth import import_unsloth

FAULTS = (OSError, KeyError, RuntimeError, ImportError, AttributeError, TypeError, ValueError, NotImplementedError)
"""What Unsloth raises where it cannot save."""


def save_merged(source: Source, base: BaseModel, folder: Path) -> None:
    """Writes the merged weights with `save_pretrained_merged`, and the base's own other files over Unsloth's.

    Raises PolicyError where Unsloth does not start, ExportError where it does not save.
    """
    with _adapted(source, base) as (model, processor):
        model.save_pretrained_merged(str(folder), processor, save_method="merged_16bit", safe_serialization=None)
    copy_files(base, folder)


def save_four_bits(source: Source, base: BaseModel, folder: Path) -> None:
    """Writes the weights of Unsloth's forced 4-bit merge, and the base's own other files over Unsloth's.

    Raises PolicyError where Unsloth does not start, ExportError where it does not save.
    """
    with _adapted(source, base, load_in_4bit=True, dtype=four_bit.stored_type(base)) as (model, processor):
        if getattr(model.config, "quantization_config", None) is None:
            raise ExportError(
                "--saver unsloth: Unsloth loads no model in 4 bits here, where it finds no GPU or no bitsandbytes that "
                "works with it; leave it out to pack without"
            )
        model.save_pretrained_merged(str(folder), processor, save_method="forced_merged_4bit", safe_serialization=None)
    four_bit.copy_beside(base, folder)


def weights_before_packing(base: BaseModel, changes: Mapping[str, LowRank], name: str) -> Tensor:
    """What Unsloth packs: the base's weight, where it is adapted packed once before and ΔW added."""
    from bitsandbytes.functional import quantize_4bit

    weight = read_tensor(base.tensors[name], name)
    if name not in changes:
        return weight
    packed, state = quantize_4bit(weight.to(default_device()), compress_statistics=True, quant_type="nf4")
    return (nf4.unpack(packed, state).cpu() + changes[name].delta()).to(weight.dtype)


def slack_of(base: BaseModel) -> float:
    """How far that may be from Unsloth's own sum, in units of a block's largest weight: unpacked, ΔW and sum are each
    rounded to half a unit in the last place there."""
    return 2.0 * torch.finfo(four_bit.stored_type(base)).eps


def require_llama_cpp() -> None:
    """Raises ExportError where Unsloth finds no llama.cpp that is ready, PolicyError where it does not start."""
    import_unsloth()
    from unsloth_zoo.llama_cpp import check_llama_cpp

    try:
        check_llama_cpp()
    except (RuntimeError, OSError) as error:
        raise ExportError(
            f"--saver unsloth --format gguf: Unsloth finds no llama.cpp that is ready ({in_one_line(error)}); set "
            "LLAMA_CPP_DIR to a folder of llama.cpp that holds convert_hf_to_gguf.py and a built llama-quantize. "
            "Nothing is fetched or built here. Without --saver unsloth the converter is enough"
        ) from error


def save_gguf(source: Source, base: BaseModel, merged: Path, name: str, kind: str) -> None:
    """Writes the merged weights into `merged`, and beside it `NAME.gguf` and `mmproj-NAME.gguf`.

    `kind` is one of `gguf.WIDTHS`. Raises PolicyError where Unsloth does not start, ExportError where it does not save
    or leaves the vision tower out.
    """
    merged = merged.absolute()
    if kind == "auto":
        kind = "bf16" if any(tensor.dtype == "BF16" for tensor in base.tensors.values()) else "f16"
    with _adapted(source, base) as (model, processor), contextlib.chdir(merged.parent):  # it converts into this folder
        written = model.save_pretrained_gguf(
            str(merged), processor, quantization_method=kind, merge_is_disposable=False, safe_serialization=None
        )
        files = [merged.parent / file for file in written["gguf_files"]]
        vision = [file for file in files if "mmproj" in file.name]
        text = [file for file in files if file not in vision]
        if len(vision) != 1 or len(text) != 1:
            raise ExportError(
                f"--saver unsloth --format gguf: Unsloth wrote {', '.join(file.name for file in files) or 'nothing'}, "
                "not a language model and a vision tower; leave --saver unsloth out to convert without"
            )
        text[0].rename(merged.parent / f"{name}.gguf")
        vision[0].rename(merged.parent / f"mmproj-{name}.gguf")
        if files[0].parent != merged.parent:
            shutil.rmtree(files[0].parent)  # a Modelfile for Ollama may lie there, with the old names in it
    copy_files(base, merged)


@contextlib.contextmanager
def _adapted(source: Source, base: BaseModel, **how: Any) -> Iterator[tuple[Any, Any]]:
    """Unsloth's base model with the adapter on it and its savers, and its processor; its faults become ExportErrors."""
    unsloth = import_unsloth()
    from peft import PeftModel

    try:
        model, processor = unsloth.FastVisionModel.from_pretrained(
            str(base.folder),
            **{"dtype": None, "load_in_4bit": False, **how},
            device_map={"": str(default_device())},
            use_gradient_checkpointing=False,
        )
        adapted = PeftModel.from_pretrained(model, str(source.adapter))
        unsloth.save.patch_saving_functions(adapted, vision=True)
        yield adapted, processor
    except ExportError:
        raise
    except FAULTS as error:
        raise ExportError(f"--saver unsloth: {in_one_line(error)}; leave it out to do without") from error
