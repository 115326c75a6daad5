"""Layers with an adapter as single autograd functions: a linear layer, and the gated MLP of the Qwen families.

    y = x Wᵀ + b + s · (x Aᵀ) Bᵀ                       the LoRA of arXiv 2106.09685, W frozen
    y = down(silu(gate(x)) · up(x))                    three of them (SwiGLU, arXiv 2002.05202)

PEFT writes a layer's output, the adapter's, the adapter's scaled and the sum, each as wide as the layer; here low-rank
products add themselves to the wide ones (`addmm`). Of the MLP's own width autograd keeps four tensors; here two are
kept, what `gate` and `up` gave, and the rest is computed again. Everything is in W's precision, and so are gradients
until they are handed over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from sharevl_kernels.swiglu import swiglu, swiglu_backward
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

_NARROW: ContextVar[dict[int, tuple[Tensor, Tensor]] | None] = ContextVar("narrow", default=None)
"""Adapters and what they are in their layer's precision, by `id`; None: nothing is kept."""


@contextlib.contextmanager
def narrowed_once() -> Iterator[None]:
    """Inside, where no weight may change, an adapter is narrowed once and not in every pass: sampling has one for each
    token."""
    token = _NARROW.set({})
    try:
        yield
    finally:
        _NARROW.reset(token)


def _narrow(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    kept = _NARROW.get()
    if kept is None or tensor.dtype == dtype:
        return tensor.to(dtype)
    if id(tensor) not in kept:
        kept[id(tensor)] = (tensor, tensor.to(dtype))  # with the tensor, so that its id is no other's meanwhile
    return kept[id(tensor)][1]


class Adapted(NamedTuple):
    """A frozen linear layer with an adapter: y = x Wᵀ + b + s · (x Aᵀ) Bᵀ."""

    weight_OI: Float[Tensor, "O I"]
    bias_O: Float[Tensor, "O"] | None
    a_RI: Float[Tensor, "R I"]
    b_OR: Float[Tensor, "O R"]
    scale: float

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What autograd has to see."""
        return self[:4]

    @classmethod
    def each_of(cls, tensors: Sequence[Any], scales: Sequence[float]) -> list[Adapted]:
        """The layers whose :attr:`tensors` stand one after the other."""
        return [cls._make((*tensors[4 * k : 4 * k + 4], scale)) for k, scale in enumerate(scales)]

    def narrowed(self) -> Adapted:
        """With an adapter of W's precision."""
        dtype = self.weight_OI.dtype
        return self._replace(a_RI=_narrow(self.a_RI, dtype), b_OR=_narrow(self.b_OR, dtype))

    def apply(self, x_TI: Float[Tensor, "T I"]) -> tuple[Float[Tensor, "T O"], Float[Tensor, "T R"]]:
        """y, and x Aᵀ, which the gradient of B reads."""
        low_TR = x_TI @ self.a_RI.T
        y_TO = linear(x_TI, self.weight_OI, self.bias_O)
        y_TO.addmm_(low_TR, self.b_OR.T, alpha=self.scale)
        return y_TO, low_TR

    def input_gradient(
        self, dy_TO: Float[Tensor, "T O"], onto: Float[Tensor, "T I"] | None = None
    ) -> tuple[Float[Tensor, "T I"], Float[Tensor, "T R"]]:
        """The gradient of x, added to `onto` in place where that is given, and dy B, which that of A reads."""
        back_TR = dy_TO @ self.b_OR
        dx_TI = dy_TO @ self.weight_OI if onto is None else onto.addmm_(dy_TO, self.weight_OI)
        return dx_TI.addmm_(back_TR, self.a_RI, alpha=self.scale), back_TR

    def gradients(
        self, x_TI: Tensor, low_TR: Tensor, dy_TO: Tensor, back_TR: Tensor, dtype: torch.dtype
    ) -> tuple[None, None, Float[Tensor, "R I"], Float[Tensor, "O R"]]:
        """Gradients of :attr:`tensors` as `dtype`, None for what is frozen.

        (With beta 0 only the shape of what `addmm` adds to counts.)
        """
        da_RI = torch.addmm(self.a_RI, back_TR.T, x_TI, beta=0, alpha=self.scale)
        db_OR = torch.addmm(self.b_OR, dy_TO.T, low_TR, beta=0, alpha=self.scale)
        return None, None, da_RI.to(dtype), db_OR.to(dtype)


class LoRALinear(torch.autograd.Function):
    """See :func:`adapted_linear`."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "... I"], scale: float, *tensors: Any) -> Float[Tensor, "... O"]:
        """The output, of W's precision. `tensors`: of :class:`Adapted`."""
        layer = Adapted._make((*tensors, scale))
        ctx.scale, ctx.shape, ctx.dtypes = scale, x.shape, (x.dtype, layer.a_RI.dtype)
        layer = layer.narrowed()
        x_TI = x.reshape(-1, x.shape[-1]).to(layer.weight_OI.dtype)
        y_TO, low_TR = layer.apply(x_TI)
        ctx.save_for_backward(x_TI, low_TR, *layer.tensors)
        return y_TO.view(*x.shape[:-1], y_TO.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Float[Tensor, "... O"]) -> tuple[Tensor | None, ...]:
        """Gradients of x (where anything before it trains), A and B."""
        x_TI, low_TR, *tensors = ctx.saved_tensors
        layer, (x_dtype, dtype) = Adapted._make((*tensors, ctx.scale)), ctx.dtypes
        dy_TO = dy.reshape(-1, dy.shape[-1]).to(layer.weight_OI.dtype)
        dx = None
        if ctx.needs_input_grad[0]:
            dx_TI, back_TR = layer.input_gradient(dy_TO)
            dx = dx_TI.view(ctx.shape).to(x_dtype)
        else:
            back_TR = dy_TO @ layer.b_OR
        return dx, None, *layer.gradients(x_TI, low_TR, dy_TO, back_TR, dtype)


class LoRAMLP(torch.autograd.Function):
    """See :func:`adapted_mlp`; J is the MLP's own width."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "... I"], scales: tuple[float, ...], *tensors: Any
    ) -> Float[Tensor, "... I"]:
        """The output. `tensors`: of gate, up and down, one after the other."""
        layers = Adapted.each_of(tensors, scales)
        ctx.scales, ctx.shape, ctx.dtypes = scales, x.shape, (x.dtype, layers[0].a_RI.dtype)
        gate, up, down = layers = [layer.narrowed() for layer in layers]
        x_TI = x.reshape(-1, x.shape[-1]).to(gate.weight_OI.dtype)
        gate_TJ, gate_low_TR = gate.apply(x_TI)
        up_TJ, up_low_TR = up.apply(x_TI)
        y_TI, down_low_TR = down.apply(swiglu(gate_TJ, up_TJ))
        made = x_TI, gate_TJ, up_TJ, gate_low_TR, up_low_TR, down_low_TR
        ctx.save_for_backward(*made, *(tensor for layer in layers for tensor in layer.tensors))
        return y_TI.view(*x.shape[:-1], y_TI.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Float[Tensor, "... I"]) -> tuple[Tensor | None, ...]:
        """Gradients of x, and of A and B of each layer."""
        x_TI, gate_TJ, up_TJ, gate_low_TR, up_low_TR, down_low_TR, *tensors = ctx.saved_tensors
        (gate, up, down), (x_dtype, dtype) = Adapted.each_of(tensors, ctx.scales), ctx.dtypes
        dy_TI = dy.reshape(-1, dy.shape[-1]).to(down.weight_OI.dtype)
        dh_TJ, down_back_TR = down.input_gradient(dy_TI)
        h_TJ, dgate_TJ, dup_TJ = swiglu_backward(dh_TJ, gate_TJ, up_TJ)
        dx_TI, gate_back_TR = gate.input_gradient(dgate_TJ)
        dx_TI, up_back_TR = up.input_gradient(dup_TJ, onto=dx_TI)
        return (
            dx_TI.view(ctx.shape).to(x_dtype),
            None,
            *gate.gradients(x_TI, gate_low_TR, dgate_TJ, gate_back_TR, dtype),
            *up.gradients(x_TI, up_low_TR, dup_TJ, up_back_TR, dtype),
            *down.gradients(h_TJ, down_low_TR, dy_TI, down_back_TR, dtype),
        )


def adapted_linear(x: Float[Tensor, "... I"], layer: Adapted) -> Float[Tensor, "... O"]:
    """The layer, differentiable once in x, A and B."""
    out: Tensor = LoRALinear.apply(x, layer.scale, *layer.tensors)
    return out


def adapted_mlp(x: Float[Tensor, "... I"], gate: Adapted, up: Adapted, down: Adapted) -> Float[Tensor, "... I"]:
    """The MLP, differentiable once in x and in A and B of each layer."""
    scales = gate.scale, up.scale, down.scale
    out: Tensor = LoRAMLP.apply(x, scales, *gate.tensors, *up.tensors, *down.tensors)
    return out
