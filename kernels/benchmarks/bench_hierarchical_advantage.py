"""hierarchical_advantage: equal to the float64 reference, one launch, and what it takes.

    python kernels/benchmarks/bench_hierarchical_advantage.py

The data are tiny (512 problems × 2 variants × 6 responses); the yardstick is the plain torch form on the same device.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from harness import OK, Report, Row, arguments, device_of, measure
from sharevl_kernels.hierarchical_advantage import hierarchical_advantage, kernel
from sharevl_kernels.hierarchical_advantage.reference import Advantages, reference_advantage

SHAPES = ((32, 2, 6), (512, 2, 6), (512, 4, 16))
LIMIT = 1e-6


def launches(rewards_PMN: torch.Tensor, mask_PMN: torch.Tensor) -> int:
    """How often one call starts the kernel."""
    grids = []
    original = kernel.advantage_kernel

    class Counted:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            grids.append(grid)
            return original[grid]

    kernel.advantage_kernel = Counted()
    try:
        hierarchical_advantage(rewards_PMN, mask_PMN)
    finally:
        kernel.advantage_kernel = original
    return len(grids)


def plain_torch(rewards_PMN: torch.Tensor, mask_PMN: torch.Tensor) -> Advantages:
    """The torch form with the check that the op makes."""
    if not bool(torch.isfinite(rewards_PMN[mask_PMN]).all()):
        raise ValueError("a reward is not finite")
    return reference_advantage(rewards_PMN, mask_PMN, 1e-6, 1)


def row_of(shape: tuple[int, int, int], device: torch.device, repeats: int) -> list[Row]:
    """One shape: the op and the torch form."""
    draw = torch.Generator().manual_seed(0)
    rewards_PMN = torch.tensor([0.0, 0.1, 1.0])[torch.randint(3, shape, generator=draw)].to(device)
    mask_PMN = (torch.rand(shape, generator=draw) < 0.9).to(device)
    found = hierarchical_advantage(rewards_PMN, mask_PMN)
    expected = reference_advantage(rewards_PMN.cpu(), mask_PMN.cpu(), 1e-6, 1)
    error = max(
        (found.global_PMN.cpu() - expected.global_PMN).abs().max().item(),
        (found.local_PMN.cpu() - expected.local_PMN).abs().max().item(),
    )
    case, version = "P={} M={} N={}".format(*shape), f"torch {torch.__version__}"
    count = launches(rewards_PMN, mask_PMN) if device.type == "cuda" else 1
    if not error <= LIMIT or count != 1:
        return [Row(case, "hierarchical_advantage", version, f"RED: off by {error:.1e}, {count} launches")]
    plain = measure(lambda: plain_torch(rewards_PMN, mask_PMN), device, repeats)
    ours = measure(lambda: hierarchical_advantage(rewards_PMN, mask_PMN), device, repeats)
    note = f"largest error {error:.1e}, {count} launch" if device.type == "cuda" else f"largest error {error:.1e}"
    return [
        Row(case, "torch", version, OK, plain.median, plain.lowest, plain.highest, 1.0),
        Row(
            case,
            "hierarchical_advantage",
            version,
            OK,
            ours.median,
            ours.lowest,
            ours.highest,
            ours.median / plain.median,
            note=note,
        ),
    ]


def main() -> int:
    """Prints the table and writes the CSV. Exit code 1 where a row is red."""
    run = arguments(str(__doc__).splitlines()[0], repeats="50").parse_args()
    device = device_of(run)
    table = Report("hierarchical_advantage", "× torch", device, run.out)
    for shape in SHAPES:
        table.add(row_of(shape, device, run.repeats))
    return table.finish()


if __name__ == "__main__":
    sys.exit(main())
