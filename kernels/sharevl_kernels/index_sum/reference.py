"""out[s] = Σ over the g with index[g] = s of scale[g]·values[g], one addition after another, in float64."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def reference_index_sum(
    values_GX: Float[Tensor, "G X"], index_G: Int[Tensor, "G"], num_rows: int, scales_G: Float[Tensor, "G"] | None
) -> Float[Tensor, "S X"]:
    """The sums, in float64; a row that nothing belongs to is 0."""
    sums_SX = torch.zeros(num_rows, values_GX.shape[1], dtype=torch.float64)
    for g, row in enumerate(index_G.tolist()):
        sums_SX[row] += values_GX[g].double() * (1.0 if scales_G is None else scales_G[g].double())
    return sums_SX
