"""The two places where kernels run in tests, and how close to float64 each dtype must come, with the reason."""

from dataclasses import dataclass

import pytest
import torch
from triton import knobs

INTERPRETED = bool(knobs.runtime.interpret)
CPU = pytest.param(
    "cpu",
    marks=pytest.mark.skipif(
        not INTERPRETED, reason="kernels are compiled for the GPU in this process; set TRITON_INTERPRET=1"
    ),
)
GPU = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set: kernels are not compiled"),
    ],
)


@dataclass(frozen=True)
class Tolerance:
    """Largest error against float64 from the same inputs: log-probs and entropies in nats, gradients relative to the
    largest entry of the reference."""

    logprob: float
    gradient: float
    reason: str


TOLERANCES = {
    torch.float32: Tolerance(
        2e-5,
        2e-6,
        "logits up to 60 are rounded to 4e-6 once as a sum and once as a difference; sums of positive terms keep 1e-7",
    ),
    torch.bfloat16: Tolerance(
        5e-5,
        4e-3,
        "products of bfloat16 are exact in float32 and the tensor cores' sums lose some of its last bits; the gradient "
        "reads exponentials rounded to 8 bits (2e-3 each, half of a last place)",
    ),
    torch.float16: Tolerance(
        5e-5, 6e-3, "as bfloat16; the weight is rounded to bfloat16 for the gradient too (float16 has no range for it)"
    ),
}
