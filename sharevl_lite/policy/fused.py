"""Fewer and smaller operations for the text layers of a half-precision policy, on any device.

A packed pass of a few thousand tokens is many small operations beside its matrix products (docs/LOG.md counts them).
Here a linear layer with an adapter and an MLP of three are one autograd function each (`policy.adapted`), and a norm,
which transformers takes in eight steps, is torch's own. Fewer roundings, otherwise the same mathematics.

:func:`fuse` puts this in front of what loaded the model (transformers and PEFT, or Unsloth, whose vision models run
the stock layers where its compiler is off); :func:`stock_layers` does without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from sharevl_lite.policy.adapted import Adapted, adapted_linear, adapted_mlp

FUSED = "_sharevl_fused"


def fuse(model: Any) -> int:
    """Fuses the text layers of a PEFT model in place; returns how many. What does not fit stays as it was:
    layers in 4 bits, with dropout, with a variant of LoRA, or with a base that trains."""
    from peft.tuners.lora import Linear

    gated = model.get_base_model().config.get_text_config().hidden_act in ("silu", "swish")
    count = 0
    for name, module in model.get_base_model().named_modules():
        if ".language_model." not in f".{name}." or FUSED in module.__dict__:
            continue
        before = module.__dict__.get("forward")
        if isinstance(module, Linear) and (adapter := _adapter(module)) is not None:
            module.forward = partial(_linear, module, adapter, module.forward)
        elif gated and (projections := _projections(module)) is not None:
            module.forward = partial(_mlp, projections, module.forward)
        elif type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = partial(_norm, module, module.forward)
        else:
            continue
        setattr(module, FUSED, before)
        count += 1
    return count


@contextlib.contextmanager
def stock_layers(model: Any) -> Iterator[None]:
    """Inside, a fused model runs the layers of those who loaded it."""
    fused = {module: module.__dict__.pop("forward") for module in model.modules() if FUSED in module.__dict__}
    for module in fused:
        if (before := getattr(module, FUSED)) is not None:
            module.forward = before
    try:
        yield
    finally:
        for module, forward in fused.items():
            module.forward = forward


def _adapter(layer: Any) -> str | None:
    """The one adapter of a layer that `policy.adapted` computes as PEFT would; None where there is no such."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1 or type(layer.base_layer) is not nn.Linear or layer.base_layer.weight.requires_grad:
        return None
    (name,) = names
    plain = name not in layer.lora_variant and isinstance(layer.lora_dropout[name], nn.Identity)
    return name if plain and layer.lora_B[name].bias is None else None


def _projections(module: Any) -> list[tuple[Any, str]] | None:
    """The layers of a gated MLP with the adapter of each; None for another module, or with others in it."""
    from peft.tuners.lora import Linear

    projections = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(isinstance(layer, Linear) for layer in projections):
        return None
    adapters = [(layer, adapter) for layer in projections if (adapter := _adapter(layer)) is not None]
    return adapters if len(adapters) == len(projections) else None


def _as_made(layer: Any, adapter: str) -> Adapted | None:
    """A layer as :func:`_adapter` has found it; None where adapters are switched off, merged or others since."""
    if layer.disable_adapters or layer.merged or layer.active_adapters != [adapter]:
        return None
    base, a, b = layer.base_layer, layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    return Adapted(base.weight, base.bias, a, b, layer.scaling[adapter])


def _linear(layer: Any, adapter: str, plain: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    adapted = None if args or kwargs else _as_made(layer, adapter)
    out: Tensor = plain(x, *args, **kwargs) if adapted is None else adapted_linear(x, adapted)
    return out


def _mlp(projections: list[tuple[Any, str]], plain: Any, x: Tensor) -> Tensor:
    layers = [adapted for layer, adapter in projections if (adapted := _as_made(layer, adapter)) is not None]
    out: Tensor = adapted_mlp(x, *layers) if len(layers) == len(projections) else plain(x)
    return out


def _norm(norm: Any, plain: Any, x: Tensor) -> Tensor:
    out: Tensor
    if x.dtype == norm.weight.dtype:
        with torch.autocast(x.device.type, enabled=False):  # it would be in float32 on a GPU, from torch 2.13 on
            out = rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
    else:
        out = plain(x)
    return out
