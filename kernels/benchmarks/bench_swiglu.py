"""swiglu and its backward pass: as close to float64 as torch's, and how long they take beside torch's operations.

    python kernels/benchmarks/bench_swiglu.py

Shapes are the MLPs of Qwen2.5-VL-3B and 7B over a packed row. torch's row is what autograd runs for
`silu(gate) * up`, with the activation computed again for the gradient of the layer behind it.
"""

from __future__ import annotations

import sys

import torch
from harness import OK, Report, Row, arguments, device_of, measure_in_turns, peak_mib
from sharevl_kernels.swiglu import swiglu, swiglu_backward
from sharevl_kernels.swiglu.reference import reference_swiglu_backward
from torch import Tensor
from torch.nn.functional import silu

SHAPES = ((8192, 11008), (8192, 18944))
ON_A_CPU = ((256, 344),)
CHECKED = 64
"""Rows compared with float64."""


def ours(grad_TI: Tensor, gate_TI: Tensor, up_TI: Tensor) -> tuple[Tensor, ...]:
    """Both passes."""
    return swiglu(gate_TI, up_TI), *swiglu_backward(grad_TI, gate_TI, up_TI)


def plain_torch(grad_TI: Tensor, gate_TI: Tensor, up_TI: Tensor) -> tuple[Tensor, ...]:
    """The same by torch's operations."""
    out_TI = silu(gate_TI) * up_TI
    act_TI = silu(gate_TI)
    gate_grad_TI = torch.ops.aten.silu_backward(grad_TI * up_TI, gate_TI)
    return out_TI, act_TI * up_TI, gate_grad_TI, grad_TI * act_TI


def error(found: tuple[Tensor, ...], case: tuple[Tensor, ...]) -> float:
    """Largest difference from float64, relative to the largest number."""
    few = [x[:CHECKED].cpu() for x in case]
    expected = reference_swiglu_backward(*few)
    pairs = zip((x[:CHECKED].cpu().double() for x in found), (expected[0], *expected), strict=True)
    return max(((ours - theirs).abs().max() / theirs.abs().max()).item() for ours, theirs in pairs)


def rows_of(shape: tuple[int, int], device: torch.device, repeats: int) -> list[Row]:
    """One shape: torch and the op."""
    draw = torch.Generator().manual_seed(0)
    grad, gate, up = (torch.randn(shape, generator=draw).to(device, torch.bfloat16) for _ in range(3))
    ways = {"torch": plain_torch, "swiglu": ours}
    limit = torch.finfo(torch.bfloat16).eps
    errors = {name: error(way(grad, gate, up), (grad, gate, up)) for name, way in ways.items()}
    times = measure_in_turns({name: lambda w=way: w(grad, gate, up) for name, way in ways.items()}, device, repeats)  # type: ignore[misc]
    version, made = f"torch {torch.__version__}", []
    for name, way in ways.items():
        case = "T={} J={} both passes".format(*shape)
        if name == "swiglu" and not errors[name] <= limit:
            made.append(Row(case, name, version, f"RED: off by {errors[name]:.1e}"))
            continue
        time, peak = times[name], peak_mib(lambda w=way: w(grad, gate, up), device)  # type: ignore[misc]
        ratio = time.median / times["torch"].median
        made.append(
            Row(
                case,
                name,
                version,
                OK,
                time.median,
                time.lowest,
                time.highest,
                ratio,
                peak,
                gradient_error=errors[name],
            )
        )
    return made


def main() -> int:
    """Prints the table and writes the CSV. Exit code 1 where a row is red."""
    run = arguments(str(__doc__).splitlines()[0]).parse_args()
    device = device_of(run)
    table = Report("swiglu", "× torch", device, run.out)
    for shape in SHAPES if device.type == "cuda" else ON_A_CPU:
        table.add(rows_of(shape, device, run.repeats))
    return table.finish("swiglu")


if __name__ == "__main__":
    sys.exit(main())
