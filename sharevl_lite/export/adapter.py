"""A LoRA adapter as files: which weights it changes, and by how much.

ΔW = s·B·A,   s = alpha / r, or alpha / √r with rank-stabilised LoRA (arXiv 2312.03732)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sharevl_lite.export.base import BaseModel
from sharevl_lite.export.errors import ExportError
from sharevl_lite.policy.folder import ADAPTER_FILE

PEFT_PREFIX = "base_model.model."
UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
)
"""Settings of PEFT under which a merge is more, or something else, than W + s·B·A. No recipe sets one."""


@dataclass(frozen=True)
class LowRank:
    """The change of one weight [O, I]."""

    a_RI: Float[Tensor, "R I"]
    b_OR: Float[Tensor, "O R"]
    scale: float

    def delta(self) -> Float[Tensor, "O I"]:
        """ΔW in float32."""
        return self.scale * (self.b_OR.float() @ self.a_RI.float())


def read_adapter(folder: Path, base: BaseModel) -> dict[str, LowRank]:
    """The changes by the name that the base checkpoint gives to the weight.

    Raises ExportError where a tensor of the adapter has no such weight, or is not a low-rank change of a matrix.
    """
    from peft import LoraConfig

    if not (folder / ADAPTER_FILE).is_file():
        raise ExportError(f"{folder}: holds no {ADAPTER_FILE}; choose another one with --checkpoint")
    try:
        config = LoraConfig.from_pretrained(str(folder))
        halves = load_file(str(folder / ADAPTER_FILE))
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise ExportError(
            f"{folder}: the adapter is damaged ({error}); choose another one with --checkpoint"
        ) from error
    odd = [name for name in UNSUPPORTED if getattr(config, name, None)]
    if odd or config.bias != "none":
        raise ExportError(f"{folder}: {', '.join(odd) or 'bias'} of PEFT cannot be merged; export with --format lora")
    changes: dict[str, LowRank] = {}
    for name in [name for name in halves if name.endswith(".lora_A.weight")]:
        module = name.removeprefix(PEFT_PREFIX).removesuffix(".lora_A.weight")
        a_RI, b_OR = halves.pop(name), halves.pop(name.replace(".lora_A.", ".lora_B."), None)
        stored = base.names.get(f"{module}.weight")
        if stored is None:
            raise ExportError(f"{folder}: adapts {module}, which {base.name} stores no weight for; is it the base?")
        if b_OR is None or (b_OR.shape[0], a_RI.shape[1]) != base.tensors[stored].shape:
            raise ExportError(
                f"{folder}: the change of {module} does not fit its weight {list(base.tensors[stored].shape)} in "
                f"{base.name}; is it the base? Otherwise export with --format lora"
            )
        changes[stored] = LowRank(a_RI, b_OR, _scale(config, module, a_RI.shape[0]))
    if halves:
        raise ExportError(f"{folder}: {next(iter(halves))} cannot be merged; export with --format lora")
    return changes


def _scale(config: Any, module: str, rank: int) -> float:
    from peft.utils.other import get_pattern_key

    key = get_pattern_key(config.alpha_pattern.keys(), module)
    alpha = float(config.alpha_pattern.get(key, config.lora_alpha))
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)


def merged(weight: Float[Tensor, "O I"], change: LowRank) -> Float[Tensor, "O I"]:
    """W + ΔW, computed in float32 (or W's own type, if that is wider) and rounded once to W's type."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(wide) + change.delta().to(wide)).to(weight.dtype)
