"""SwiGLU: h = silu(gate) · up, silu(x) = x · sigmoid(x) (arXiv 2002.05202).

Its backward pass needs `gate` and `up` alone, and so does the activation itself, which the gradient of the layer behind
it reads: `swiglu_backward` gives it again. An autograd function around both keeps two tensors of the MLP's width
where autograd over torch operations keeps four (`silu`'s input and output, `up`, and the activation).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sharevl_kernels.devices import runs_triton


def swiglu(gate_TI: Float[Tensor, "T I"], up_TI: Float[Tensor, "T I"]) -> Float[Tensor, "T I"]:
    """The activation, rounded once to the inputs' dtype; without a gradient of its own.

    Raises ValueError where shapes or dtypes differ.
    """
    _check(gate_TI, up_TI)
    if runs_triton(gate_TI):
        from sharevl_kernels.swiglu.kernel import launch_swiglu

        with torch.cuda.device_of(gate_TI):
            return launch_swiglu(gate_TI.contiguous(), up_TI.contiguous())
    return (torch.nn.functional.silu(_wide(gate_TI)) * _wide(up_TI)).to(gate_TI.dtype)


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
    grad, gate, up, dtype = _wide(grad_TI), _wide(gate_TI), _wide(up_TI), gate_TI.dtype
    share = gate.sigmoid()
    silu = gate * share
    return (silu * up).to(dtype), (grad * up * (share + silu * (1.0 - share))).to(dtype), (grad * silu).to(dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _check(first: Tensor, *others: Tensor) -> None:
    for other in others:
        if other.shape != first.shape or other.dtype != first.dtype:
            raise ValueError(
                f"all tensors must be alike, got {tuple(first.shape)} {first.dtype} and {tuple(other.shape)} "
                f"{other.dtype}"
            )
