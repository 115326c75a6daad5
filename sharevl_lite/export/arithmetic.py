"""Float32 arithmetic on weights that stay stored in 16 bits.

Two models whose weights differ by a little cannot be told apart in 16-bit arithmetic: its own rounding moves logits by
as much. And a 7B model in float32 does not fit a workstation. So each layer's weights are widened while the layer runs,
one layer at a time, and the memory stays that of the stored weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

HALF = (torch.bfloat16, torch.float16)


@contextlib.contextmanager
def float32_arithmetic(model: nn.Module) -> Iterator[None]:
    """Inside, every module that holds 16-bit parameters computes with them, and with its inputs, in float32."""
    handles = []
    for module in model.modules():
        if any(parameter.dtype in HALF for parameter in module.parameters(recurse=False)):
            stored: dict[str, Tensor] = {}
            handles.append(module.register_forward_pre_hook(_widen(stored), with_kwargs=True))
            handles.append(module.register_forward_hook(_restore(stored), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
