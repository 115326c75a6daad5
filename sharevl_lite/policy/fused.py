"""Fewer and smaller operations for the text layers of a half-precision policy, on any device.

A packed pass of a few thousand tokens is many small operations beside its matrix products (docs/LOG.md counts them):
PEFT writes a layer's output, the adapter's, the adapter's scaled and the sum, each as wide as the layer, and
transformers normalises in eight steps. Here a linear layer with an adapter is one autograd function, whose low-rank
products add themselves to the wide ones (`addmm`), and a norm is torch's own. Fewer roundings, otherwise the same
mathematics (the LoRA of arXiv 2106.09685).

:func:`fuse` puts this in front of what loaded the model (transformers and PEFT, or Unsloth, whose vision models run
the stock layers where its compiler is off); :func:`stock_layers` does without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, rms_norm

FUSED = "_sharevl_fused"


class LoRALinear(torch.autograd.Function):
    """y = x Wᵀ + b + s · (x Aᵀ) Bᵀ for a frozen W, in W's precision; gradients of x, A and B."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "... I"],
        weight_OI: Float[Tensor, "O I"],
        bias_O: Float[Tensor, "O"] | None,
        a_RI: Float[Tensor, "R I"],
        b_OR: Float[Tensor, "O R"],
        scale: float,
    ) -> Float[Tensor, "... O"]:
        """The output, of W's precision."""
        dtype = weight_OI.dtype
        x_TI = x.reshape(-1, x.shape[-1]).to(dtype)
        a, b = a_RI.to(dtype), b_OR.to(dtype)
        low_TR = x_TI @ a.T
        y_TO = linear(x_TI, weight_OI, bias_O)
        y_TO.addmm_(low_TR, b.T, alpha=scale)
        ctx.save_for_backward(x_TI, weight_OI, a, b, low_TR)
        ctx.scale, ctx.shape, ctx.dtypes = scale, x.shape, (x.dtype, a_RI.dtype, b_OR.dtype)
        return y_TO.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Float[Tensor, "... O"]) -> tuple[Tensor | None, ...]:
        """Gradients of x (where anything before it trains), A and B."""
        x_TI, weight_OI, a, b, low_TR = ctx.saved_tensors
        x_dtype, a_dtype, b_dtype = ctx.dtypes
        dy_TO = dy.reshape(-1, dy.shape[-1]).to(weight_OI.dtype)
        back_TR = dy_TO @ b
        da = torch.addmm(a, back_TR.T, x_TI, beta=0, alpha=ctx.scale).to(a_dtype)  # beta 0: only the shape of a counts
        db = torch.addmm(b, dy_TO.T, low_TR, beta=0, alpha=ctx.scale).to(b_dtype)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dy_TO @ weight_OI
            dx.addmm_(back_TR, a, alpha=ctx.scale)
            dx = dx.view(ctx.shape).to(x_dtype)
        return dx, None, None, da, db, None


def fuse(model: Any) -> int:
    """Fuses the text layers of a PEFT model in place; returns how many. What does not fit stays as it was:
    layers in 4 bits, with dropout, with a variant of LoRA, or with a base that trains."""
    from peft.tuners.lora import Linear

    count = 0
    for name, module in model.get_base_model().named_modules():
        if ".language_model." not in f".{name}." or FUSED in module.__dict__:
            continue
        before = module.__dict__.get("forward")
        if isinstance(module, Linear) and (adapter := _adapter(module)) is not None:
            module.forward = partial(_linear, module, adapter, module.forward)
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
    """The one adapter of a layer that :class:`LoRALinear` computes as PEFT would; None where there is no such."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1 or type(layer.base_layer) is not nn.Linear or layer.base_layer.weight.requires_grad:
        return None
    (name,) = names
    plain = name not in layer.lora_variant and isinstance(layer.lora_dropout[name], nn.Identity)
    return name if plain and layer.lora_B[name].bias is None else None


def _linear(layer: Any, adapter: str, plain: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    out: Tensor
    if layer.disable_adapters or layer.merged or args or kwargs or layer.active_adapters != [adapter]:
        out = plain(x, *args, **kwargs)
    else:
        base, a, b = layer.base_layer, layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        out = LoRALinear.apply(x, base.weight, base.bias, a, b, layer.scaling[adapter])
    return out


def _norm(norm: Any, plain: Any, x: Tensor) -> Tensor:
    out: Tensor
    if x.dtype == norm.weight.dtype:
        with torch.autocast(x.device.type, enabled=False):  # it would be in float32 on a GPU, from torch 2.13 on
            out = rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
    else:
        out = plain(x)
    return out
