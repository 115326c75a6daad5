"""Merging with Unsloth's own saver, for those who want its result; the verification after it is the same.

Our merge takes the adapters of an Unsloth run as well: they are PEFT's, under the same names. GGUF files come from
llama.cpp's converter here too: Unsloth's `save_pretrained_gguf` would fetch and build llama.cpp by itself.
"""

from __future__ import annotations

from pathlib import Path

from sharevl_lite.policy.unsloth import import_unsloth

from .base import BaseModel
from .errors import ExportError
from .merge import copy_files
from .source import Source


def save_merged(source: Source, base: BaseModel, folder: Path) -> None:
    """Writes the merged weights with `save_pretrained_merged`, and the base's own other files over Unsloth's.

    Raises PolicyError where Unsloth does not start, ExportError where it does not save.
    """
    unsloth = import_unsloth()
    from peft import PeftModel

    from sharevl_lite.policy.hf import default_device

    try:
        model, processor = unsloth.FastVisionModel.from_pretrained(
            str(base.folder),
            dtype=None,
            load_in_4bit=False,
            device_map={"": str(default_device())},
            use_gradient_checkpointing=False,
        )
        adapted = PeftModel.from_pretrained(model, str(source.adapter))
        unsloth.save.patch_saving_functions(adapted, vision=True)
        adapted.save_pretrained_merged(str(folder), processor, save_method="merged_16bit", safe_serialization=None)
    except (OSError, KeyError, RuntimeError, ImportError, AttributeError) as error:
        raise ExportError(f"--saver unsloth: {' '.join(str(error).split())}; leave it out to merge without") from error
    copy_files(base, folder)
