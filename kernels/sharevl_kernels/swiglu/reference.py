"""h = gate · sigmoid(gate) · up from its definition, in float64; gradients are autograd's."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def reference_swiglu(gate_TI: Float[Tensor, "T I"], up_TI: Float[Tensor, "T I"]) -> Float[Tensor, "T I"]:
    """The activation, in float64."""
    gate_TI, up_TI = gate_TI.double(), up_TI.double()
    return gate_TI / (1.0 + torch.exp(-gate_TI)) * up_TI


def reference_swiglu_backward(
    grad_TI: Float[Tensor, "T I"], gate_TI: Float[Tensor, "T I"], up_TI: Float[Tensor, "T I"]
) -> tuple[Float[Tensor, "T I"], Float[Tensor, "T I"], Float[Tensor, "T I"]]:
    """The activation, and the gradients of `gate` and `up`, in float64."""
    gate_TI, up_TI = (x.detach().double().requires_grad_() for x in (gate_TI, up_TI))
    with torch.enable_grad():
        h_TI = reference_swiglu(gate_TI, up_TI)
        gate_grad_TI, up_grad_TI = torch.autograd.grad(h_TI, (gate_TI, up_TI), grad_TI.double())
    return h_TI.detach(), gate_grad_TI, up_grad_TI
