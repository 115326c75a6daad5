"""Triton: every output row adds up its own input rows in float32, in order. No atomics, so that a sum has one value."""

from __future__ import annotations

import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor


@triton.jit
def index_sum_kernel(
    values_ptr,
    order_ptr,
    starts_ptr,
    scales_ptr,
    sums_ptr,
    width,
    WIDTH: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Row s of the output: the input rows `order[starts[s]:starts[s + 1]]`, scaled, one after another."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = columns < width
    total = tl.zeros((WIDTH,), dtype=tl.float32)
    for place in range(tl.load(starts_ptr + row), tl.load(starts_ptr + row + 1)):
        source = tl.load(order_ptr + place)
        values = tl.load(values_ptr + source * width + columns, mask=inside, other=0.0).to(tl.float32)
        if SCALED:
            values *= tl.load(scales_ptr + source)
        total += values
    tl.store(sums_ptr + row * width + columns, total.to(sums_ptr.dtype.element_ty), mask=inside)


def launch_index_sum(
    values_GX: Float[Tensor, "G X"],
    order_G: Int[Tensor, "G"],
    starts_S1: Int[Tensor, "S1"],
    scales_G: Float[Tensor, "G"] | None,
) -> Float[Tensor, "S X"]:
    """The sums in the values' dtype; inputs are contiguous."""
    num_rows, width = starts_S1.numel() - 1, values_GX.shape[1]
    sums_SX = values_GX.new_empty((num_rows, width))
    span = min(1024, triton.next_power_of_2(width))
    index_sum_kernel[(num_rows, triton.cdiv(width, span))](
        values_GX,
        order_G,
        starts_S1,
        values_GX if scales_G is None else scales_G,
        sums_SX,
        width,
        WIDTH=span,
        SCALED=scales_G is not None,
    )
    return sums_SX
