"""SwiGLU: h = silu(gate) · up, silu(x) = x · sigmoid(x) (arXiv 2002.05202).

Its backward pass needs `gate` and `up` alone, and so does the activation itself, which the gradient of the layer behind
it reads: `swiglu_backward` gives it again. An autograd function around both keeps two tensors of the MLP's width
where autograd over torch operations keeps four (`silu`'s input and output, `up`, and the activation).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from sharevl_kernels.devices import runs_triton

PIECE_NUMBERS = 1 << 21
"""Numbers that torch's operations take at a time: about 34 bytes each beyond inputs and results, 70 MiB."""


def swiglu(gate_TI: Float[Tensor, "T I"], up_TI: Float[Tensor, "T I"]) -> Float[Tensor, "T I"]:
    """The activation, rounded once to the inputs' dtype; without a gradient of its own.

    Raises ValueError where shapes or dtypes differ.
    """
    _check(gate_TI, up_TI)
    if runs_triton(gate_TI):
        from sharevl_kernels.swiglu.kernel import launch_swiglu

        with torch.cuda.device_of(gate_TI):
            return launch_swiglu(gate_TI.contiguous(), up_TI.contiguous())
    out_TI = torch.empty_like(gate_TI)
    for out, gate, up in _pieces(out_TI, gate_TI, up_TI):
        out.copy_(torch.nn.functional.silu(_wide(gate)) * _wide(up))
    return out_TI


def swiglu_backward(
    grad_TI: Float[Tensor, "T I"], gate_TI: Float[Tensor, "T I"], up_TI: Float[Tensor, "T I"]
) -> tuple[Float[Tensor, "T I"], Float[Tensor, "T I"], Float[Tensor, "T I"]]:
    """From the gradient of the activation: the activation again, and the gradients of `gate` and of `up`.

    Raises ValueError where shapes or dtypes differ.
    """
    _check(gate_TI, up_TI, grad_TI)
    if runs_triton(gate_TI):
        from sharevl_kernels.swiglu.kernel import launch_swiglu_backward

        with torch.cuda.device_of(gate_TI):
            return launch_swiglu_backward(grad_TI.contiguous(), gate_TI.contiguous(), up_TI.contiguous())
    out_TI, gate_grad_TI, up_grad_TI = (torch.empty_like(gate_TI) for _ in range(3))
    for out, gate_grad, up_grad, *inputs in _pieces(out_TI, gate_grad_TI, up_grad_TI, grad_TI, gate_TI, up_TI):
        grad, gate, up = map(_wide, inputs)
        share = gate.sigmoid()
        silu = gate * share
        out.copy_(silu * up)
        gate_grad.copy_(grad * up * (share + silu * (1.0 - share)))
        up_grad.copy_(grad * silu)
    return out_TI, gate_grad_TI, up_grad_TI


def _pieces(*tensors: Float[Tensor, "T I"]) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of all tensors, few enough at a time that float32 copies of them are small."""
    rows = max(1, PIECE_NUMBERS // max(1, tensors[0].shape[1]))
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _check(first: Tensor, *others: Tensor) -> None:
    for other in others:
        if other.shape != first.shape or other.dtype != first.dtype:
            raise ValueError(
                f"all tensors must be alike, got {tuple(first.shape)} {first.dtype} and {tuple(other.shape)} "
                f"{other.dtype}"
            )
