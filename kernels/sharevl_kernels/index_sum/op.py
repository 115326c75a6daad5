"""Rows that several others share: gathered in the forward pass, their gradients added up in the backward pass.

    gathered[g] = values[index[g]]          sums[s] = Σ over the g with index[g] = s of scale[g]·rows[g]

A prompt's keys are read by every response behind it, and its last hidden state predicts every response's first token:
their gradients are sums over m·n responses. torch's own (`index_add_` in the gradient's dtype) adds them in bfloat16
and in any order; here a sum runs in float32, in the order of `index`, and is rounded once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sharevl_kernels.devices import runs_triton, send


class RowIndex(NamedTuple):
    """`index_G[g]` in [0, S), and the same sorted: row s has the places `order_G[starts_S1[s]:starts_S1[s + 1]]`."""

    index_G: Int[Tensor, "G"]
    order_G: Int[Tensor, "G"]
    starts_S1: Int[Tensor, "S1"]

    def to(self, device: torch.device) -> RowIndex:
        """The same on a device."""
        return RowIndex(*(send(part, device) for part in self))


def sort_index(index_G: Int[Tensor, "G"], num_rows: int) -> RowIndex:
    """Sorts an index into `num_rows` rows, on its device and without waiting for it. Places of one row keep order."""
    ordered_G, order_G = index_G.sort(stable=True)
    starts_S1 = torch.searchsorted(ordered_G, torch.arange(num_rows + 1, device=index_G.device))
    return RowIndex(index_G, order_G, starts_S1)


def index_sum(
    values_GX: Float[Tensor, "G X"], index: RowIndex, *, scales_G: Float[Tensor, "G"] | None = None
) -> Float[Tensor, "S X"]:
    """Sums in the values' dtype, added up in float32 (float64 for float64); without a gradient of its own."""
    if values_GX.shape[0] != index.index_G.numel():
        raise ValueError(f"{values_GX.shape[0]} rows for an index of {index.index_G.numel()}")
    if runs_triton(values_GX):
        from sharevl_kernels.index_sum.kernel import launch_index_sum

        scales_G = None if scales_G is None else scales_G.contiguous()
        with torch.cuda.device_of(values_GX):
            return launch_index_sum(values_GX.contiguous(), index.order_G, index.starts_S1, scales_G)
    wide = torch.float64 if values_GX.dtype == torch.float64 else torch.float32
    terms_GX = values_GX.to(wide) if scales_G is None else values_GX.to(wide) * scales_G[:, None]
    sums_SX = terms_GX.new_zeros((index.starts_S1.numel() - 1, values_GX.shape[1]))
    return sums_SX.index_add_(0, index.index_G, terms_GX).to(values_GX.dtype)


def gather_rows(values_SX: Float[Tensor, "S *X"], index: RowIndex) -> Float[Tensor, "G *X"]:
    """values[index], differentiable once; gradients of a row are added up in float32."""
    if values_SX.shape[0] != index.starts_S1.numel() - 1:
        raise ValueError(f"the index is of {index.starts_S1.numel() - 1} rows, there are {values_SX.shape[0]}")
    return _gather_rows(values_SX, *index)


@torch.library.custom_op("sharevl::gather_rows", mutates_args=())
def _gather_rows(values_SX: Tensor, index_G: Tensor, order_G: Tensor, starts_S1: Tensor) -> Tensor:
    return values_SX.index_select(0, index_G)


@_gather_rows.register_fake
def _(values_SX: Tensor, index_G: Tensor, order_G: Tensor, starts_S1: Tensor) -> Tensor:
    return values_SX.new_empty((index_G.shape[0], *values_SX.shape[1:]))


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _differentiate(ctx: torch.autograd.function.FunctionCtx, grad_GX: Tensor) -> tuple[Tensor | None, ...]:
    return _gather_rows_backward(grad_GX, *ctx.saved_tensors), None, None, None  # type: ignore[attr-defined]


_gather_rows.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("sharevl::gather_rows_backward", mutates_args=())
def _gather_rows_backward(grad_GX: Tensor, index_G: Tensor, order_G: Tensor, starts_S1: Tensor) -> Tensor:
    sums_SX = index_sum(grad_GX.flatten(1), RowIndex(index_G, order_G, starts_S1))
    return sums_SX.view(-1, *grad_GX.shape[1:])


@_gather_rows_backward.register_fake
def _(grad_GX: Tensor, index_G: Tensor, order_G: Tensor, starts_S1: Tensor) -> Tensor:
    return grad_GX.new_empty((starts_S1.shape[0] - 1, *grad_GX.shape[1:]))
