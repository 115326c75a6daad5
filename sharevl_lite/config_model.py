"""What a recipe says about the model and its adapter: its section `model`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sharevl_lite.config_base import Count, Positive, Section


class LoraSection(Section):
    """Low-rank adapters (PEFT). The base weights stay frozen."""

    rank: Count = 32
    """Rank r of the update."""
    alpha: Positive = 64.0
    """Scale: the update is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the adapter's input. Above 0, on-policy ratios no longer start at exactly 1."""
    target_modules: str | list[str] = "all-linear"
    """Layers to adapt: "all-linear" or a list of name endings (linear layers of the text model), or a regular
    expression over all module names."""
    start_from: str | None = None
    """A run, or a folder with an adapter of this rank, alpha and layers, whose weights training starts with. None:
    adapters that change nothing yet. With `objective.beta` the reference is the model without adapters all the same."""


class ModelSection(Section):
    """The vision-language model to fine-tune."""

    path: Annotated[str, Field(min_length=1)] = "Qwen/Qwen2.5-VL-3B-Instruct"
    """Hub id, local folder, or `builtin:digits-vl` (the 1.9M-parameter model shipped for the CPU demo)."""
    loader: Literal["hf", "unsloth"] = "hf"
    """`hf`: transformers and PEFT, on any device. `unsloth`: Unsloth's loader and offloaded checkpointing, on a
    GPU (the extra [gpu], or [unsloth] without vLLM)."""
    dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "auto"
    """Precision of the frozen base; `auto` is bfloat16 on GPUs that have it (Ampere and newer), else float32, or
    float16 with `load_in_4bit`. Adapters are float32. float16 is for GPUs without bfloat16 (T4, which only emulates
    it); its loss is scaled so that small gradients do not vanish."""
    load_in_4bit: bool = False
    """Keep the frozen text layers in 4 bits (bitsandbytes NF4), on a GPU: a quarter of the memory, slower."""
    lora: LoraSection = LoraSection()
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    checkpointing_layers: Count | None = None
    """With `gradient_checkpointing`: recompute so many text layers only, the first ones; the others keep activations,
    which saves time and takes memory. None: all layers. `sharevl-lite doctor` says how few may do."""
    min_pixels: Count | None = None
    """Images below this many pixels are enlarged (paper: 262144). None keeps the processor's own bound."""
    max_pixels: Count | None = None
    """Images above this many pixels are shrunk (paper: 1048576). None keeps the processor's own bound."""

    @model_validator(mode="after")
    def _checkpointing(self) -> ModelSection:
        if self.checkpointing_layers is not None and not self.gradient_checkpointing:
            raise ValueError("checkpointing_layers needs gradient_checkpointing: true")
        return self
