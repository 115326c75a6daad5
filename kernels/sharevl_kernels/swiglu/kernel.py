"""Triton: one pass over memory each way. Everything is computed in float32 and rounded once.

Forward reads two tensors and writes one, backward reads three and writes three. As torch operations the two passes read
and write 14 tensors, and 5 more where the activation is wanted again for the next layer's gradient.
"""

from __future__ import annotations

import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

SPAN = 1024
"""Numbers a program computes."""


@triton.jit
def swiglu_kernel(gate_ptr, up_ptr, out_ptr, count, SPAN: tl.constexpr):
    """`SPAN` numbers of the activation, from one place on."""
    places = tl.program_id(0).to(tl.int64) * SPAN + tl.arange(0, SPAN)
    inside = places < count
    gate = tl.load(gate_ptr + places, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + places, mask=inside, other=0.0).to(tl.float32)
    out = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + places, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward_kernel(grad_ptr, gate_ptr, up_ptr, out_ptr, gate_grad_ptr, up_grad_ptr, count, SPAN: tl.constexpr):
    """`SPAN` numbers of the activation and of both gradients."""
    places = tl.program_id(0).to(tl.int64) * SPAN + tl.arange(0, SPAN)
    inside = places < count
    grad = tl.load(grad_ptr + places, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + places, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + places, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    silu = gate * share
    gate_grad = grad * up * (share + silu * (1.0 - share))
    tl.store(out_ptr + places, (silu * up).to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(gate_grad_ptr + places, gate_grad.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(up_grad_ptr + places, (grad * silu).to(out_ptr.dtype.element_ty), mask=inside)


def launch_swiglu(gate_TI: Float[Tensor, "T I"], up_TI: Float[Tensor, "T I"]) -> Float[Tensor, "T I"]:
    """The activation; inputs are contiguous and of one dtype."""
    out_TI = gate_TI.new_empty(gate_TI.shape)
    if count := gate_TI.numel():
        swiglu_kernel[(triton.cdiv(count, SPAN),)](gate_TI, up_TI, out_TI, count, SPAN=SPAN)
    return out_TI


def launch_swiglu_backward(
    grad_TI: Float[Tensor, "T I"], gate_TI: Float[Tensor, "T I"], up_TI: Float[Tensor, "T I"]
) -> tuple[Float[Tensor, "T I"], Float[Tensor, "T I"], Float[Tensor, "T I"]]:
    """The activation, and the gradients of `gate` and `up`; inputs are contiguous and of one dtype."""
    out_TI, gate_grad_TI, up_grad_TI = (gate_TI.new_empty(gate_TI.shape) for _ in range(3))
    if count := gate_TI.numel():
        swiglu_backward_kernel[(triton.cdiv(count, SPAN),)](
            grad_TI, gate_TI, up_TI, out_TI, gate_grad_TI, up_grad_TI, count, SPAN=SPAN
        )
    return out_TI, gate_grad_TI, up_grad_TI
