"""Compiles the kernels for GPUs that need not be there, and prints what they take: registers, spills, shared memory.

    python kernels/benchmarks/resources.py [--json]

A spill or a matrix product that is not on the tensor cores costs more than any tuning wins, and both show without a
device. The assembler comes with Triton. `tests/kernels/test_resources.py` holds the table to its bounds.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from sharevl_kernels.grouped_logprob.kernel import (
    AMPERE,
    BLACKWELL,
    FLOAT32,
    HOPPER,
    ScanConfig,
    combine_kernel,
    reference_kernel,
    scan_kernel,
    unit_gradient_kernel,
)
from sharevl_kernels.grouped_logprob.launch import REFERENCE_ROWS
from sharevl_kernels.hierarchical_advantage.kernel import advantage_kernel
from sharevl_kernels.index_sum.kernel import index_sum_kernel
from sharevl_kernels.swiglu.kernel import SPAN, swiglu_backward_kernel, swiglu_kernel
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

PRODUCTS = {"wgmma": "wgmma.mma_async", "tcgen05": "tcgen05.mma", "mma": "mma.sync"}


@dataclass(frozen=True)
class Build:
    """One specialisation of a kernel for a compute capability (90 is sm_90)."""

    name: str
    kernel: Any
    capability: int
    signature: dict[str, str]
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class Resources:
    """What a build takes. `spills` are bytes; `shared` is bytes per block; `products` names the matrix instruction."""

    registers: int
    spills: int
    shared: int
    products: str
    copies: str


def scan_build(capability: int, config: ScanConfig, dtype: str = "bf16", **constants: Any) -> Build:
    """The scan with this tile. `constants` override its compile-time values (`MOMENT`: with entropies)."""
    if config.tma:
        operands = {
            "hidden": f"tensordesc<{dtype}[{config.rows},{config.width}]>",
            "weight": f"tensordesc<{dtype}[{config.columns},{config.width}]>",
        }
    else:
        operands = {"hidden": f"*{dtype}", "weight": f"*{dtype}"}
    signature = operands | {
        "targets_ptr": "*i64",
        "references_ptr": "*fp32",
        "exponentials_ptr": "*fp32" if dtype == "fp32" else "*bf16",
        "sums_ptr": "*fp32",
        "moments_ptr": "*fp32",
        **dict.fromkeys(("num_rows", "num_columns", "width", "exponentials_stride", "first_column"), "i32"),
        "scale": "fp32",
        "first_stored": "i32",
    }
    shape = {
        "ROWS": config.rows,
        "COLUMNS": config.columns,
        "WIDTH": config.width,
        "GROUP": config.group,
        "EVEN": True,
        "MOMENT": False,
        "TMA": config.tma,
        "FLATTEN": config.persistent,
        "PTX": True,
    }
    name = f"scan {config.rows}x{config.columns}x{config.width} {dtype}" + " tma" * config.tma
    name += "".join(f" {key.lower()}={value}" for key, value in constants.items())
    return Build(name, scan_kernel, capability, signature, shape | constants, config.warps, config.stages)


def row_builds(capability: int) -> Iterator[Build]:
    """The small kernels around the products."""
    logprob = {"targets_ptr": "*i64", "references_ptr": "*fp32"}
    logprob |= {"num_rows": "i32", "vocabulary": "i32", "width": "i32", "scale": "fp32"}
    half = {"hidden_ptr": "*bf16", "weight_ptr": "*bf16"}
    width = (HOPPER if capability == 90 else AMPERE).width
    yield Build("reference", reference_kernel, capability, half | logprob, {"ROWS": REFERENCE_ROWS, "WIDTH": width})
    floats = ("sums_ptr", "moments_ptr", "logprobs_ptr", "entropies_ptr", "own_ptr", "others_ptr")
    combine = dict.fromkeys(floats[:2], "*fp32") | {"targets_ptr": "*i64"} | dict.fromkeys(floats[2:], "*fp32")
    combine |= {"num_rows": "i32", "num_tiles": "i32", "vocabulary": "i32", "temperature": "fp32"}
    constants = {"ROWS": 32, "TILES": 32, "MOMENT": True, "UNIT": True}
    yield Build("combine", combine_kernel, capability, combine, constants)
    unit = {"weighted_ptr": "*fp32", "weight_ptr": "*bf16", "targets_ptr": "*i64", "own_ptr": "*fp32"}
    unit |= {"others_ptr": "*fp32", "width": "i32"}
    yield Build("unit gradient", unit_gradient_kernel, capability, unit, {"WIDTH": 1024})
    index = {"values_ptr": "*bf16", "order_ptr": "*i64", "starts_ptr": "*i64", "scales_ptr": "*fp32"}
    index |= {"sums_ptr": "*bf16", "width": "i32"}
    yield Build("index sum", index_sum_kernel, capability, index, {"WIDTH": 1024, "SCALED": True})
    levels = {"rewards_ptr": "*fp64", "mask_ptr": "*i1", "global_ptr": "*fp64", "local_ptr": "*fp64"}
    levels |= {"silent_variants_ptr": "*i1", "silent_problems_ptr": "*i1"}
    levels |= {"num_variants": "i32", "num_responses": "i32", "eps": "fp32", "repeats": "i32"}
    yield Build("advantage", advantage_kernel, capability, levels, {"VARIANTS": 2, "RESPONSES": 8, "SCALED": True})
    gated = dict.fromkeys(("gate_ptr", "up_ptr", "out_ptr"), "*bf16")
    yield Build("swiglu", swiglu_kernel, capability, gated | {"count": "i32"}, {"SPAN": SPAN})
    back = {"grad_ptr": "*bf16"} | gated | dict.fromkeys(("gate_grad_ptr", "up_grad_ptr"), "*bf16") | {"count": "i32"}
    yield Build("swiglu backward", swiglu_backward_kernel, capability, back, {"SPAN": SPAN})


def builds() -> Iterator[Build]:
    """Every kernel as it is launched on Ampere and Hopper cards, and the scan as on both kinds of Blackwell."""
    for constants in ({}, {"MOMENT": True}, {"EVEN": False}):
        yield scan_build(80, AMPERE, **constants)
        yield scan_build(90, HOPPER, **constants)
        yield scan_build(100, BLACKWELL, **constants)
    yield scan_build(120, AMPERE)
    yield scan_build(80, FLOAT32, "fp32")
    yield scan_build(90, FLOAT32, "fp32")
    yield scan_build(90, HOPPER, "fp16")
    for capability in (80, 90):
        yield from row_builds(capability)


def compile_build(build: Build) -> Resources:
    """Runs Triton's compiler and the assembler. Raises what they raise."""
    signature = build.signature | dict.fromkeys(build.constants, "constexpr")
    names = list(signature)
    source = ASTSource(
        fn=build.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in build.constants.items()},
        attrs={
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(names)
            if signature[name].startswith("*") or name in ("width", "exponentials_stride")
        },
    )
    options = {"num_warps": build.warps, "num_stages": build.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", build.capability, 32), options=options)
    code = compiled.asm["ptx"]
    registers, spills = _assemble(code, build.capability)
    return Resources(
        registers=registers,
        spills=spills,
        shared=compiled.metadata.shared,
        products=next((name for name, sign in PRODUCTS.items() if sign in code), "none"),
        copies="tma" if "cp.async.bulk.tensor" in code else "cp.async" if "cp.async" in code else "loads",
    )


def _assemble(code: str, capability: int) -> tuple[int, int]:
    """Registers per thread and bytes spilled, by the assembler's report."""
    assembler = get_ptxas(capability).path
    architecture = f"sm_{capability}" + ("a" if capability >= 90 else "")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(code)
        command = [assembler, "-v", f"--gpu-name={architecture}", str(source), "-o", f"{folder}/kernel.cubin"]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    registers = int(re.findall(r"Used (\d+) registers", report)[-1])
    return registers, sum(int(count) for count in re.findall(r"(\d+) bytes spill stores", report))


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a list of rows instead of a table")
    as_json = parser.parse_args().json
    rows = [{"name": b.name, "capability": b.capability, "warps": b.warps} | vars(compile_build(b)) for b in builds()]
    if as_json:
        print(json.dumps(rows))
        return 0
    print(f"triton {triton.__version__}")
    print(f"{'kernel':34} {'sm':>4} {'warps':>5} {'regs':>5} {'spills':>6} {'shared KiB':>10}  products copies")
    for row in rows:
        print(
            f"{row['name']:34} {row['capability']:>4} {row['warps']:>5} {row['registers']:>5} {row['spills']:>6} "
            f"{row['shared'] / 1024:>10.1f}  {row['products']:8} {row['copies']}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
