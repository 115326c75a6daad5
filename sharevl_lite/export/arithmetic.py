"""Float32 arithmetic on weights that stay stored in 16 bits.

Two models whose weights differ by a little cannot be told apart in 16-bit arithmetic: its own rounding moves logits by
as much. And a 7B model in float32 does not fit a workstation. So each layer's weights are widened while the layer runs,
one layer at a time, and the memory stays that of the stored weights.

Layers packed in 4 bits are unpacked in the same way. bitsandbytes' own forward pass computes in 16 bits on a GPU and,
where the CPU has AVX-512 for bfloat16, repacks its weights for that and computes in 16 bits as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from sharevl_lite.export.nf4 import unpack
from sharevl_lite.policy.packed import HALF


@contextlib.contextmanager
def float32_arithmetic(model: nn.Module) -> Iterator[None]:
    """Inside, every module that holds 16-bit or 4-bit parameters computes with them, and its inputs, in float32."""
    undo = contextlib.ExitStack()
    for module in model.modules():
        if hasattr(getattr(module, "weight", None), "quant_state"):
            undo.callback(_unpack(module))
        elif any(parameter.dtype in HALF for parameter in module.parameters(recurse=False)):
            stored: dict[str, Tensor] = {}
            undo.callback(module.register_forward_pre_hook(_widen(stored), with_kwargs=True).remove)
            undo.callback(module.register_forward_hook(_restore(stored), always_call=True).remove)
    with undo:
        yield


def _unpack(layer: Any) -> Callable[[], None]:
    """Replaces the forward pass of one of bitsandbytes' 4-bit layers; returns what puts it back."""

    def forward(inputs: Tensor) -> Tensor:
        weight = unpack(layer.weight.data, layer.weight.quant_state)
        return linear(inputs.float(), weight, None if layer.bias is None else layer.bias.float())

    before = layer.__dict__.get("forward")  # accelerate puts its own there
    layer.forward = forward

    def restore() -> None:
        del layer.forward
        if before is not None:
            layer.forward = before

    return restore


def _widen(stored: dict[str, Tensor]) -> Any:
    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dtype in HALF:
                stored[name] = parameter.data
                parameter.data = parameter.data.float()
        return tuple(map(_wide, args)), {name: _wide(value) for name, value in kwargs.items()}

    return hook


def _restore(stored: dict[str, Tensor]) -> Any:
    def hook(module: nn.Module, *_: Any) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            if name in stored:
                parameter.data = stored.pop(name)

    return hook


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value
