"""The kernels compile for the cards they are meant for, and take what was planned. Needs no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "kernels" / "benchmarks" / "resources.py"
SHARED_LIMIT = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
"""Shared memory a block may have, bytes (CUDA programming guide); for 8.x that of its smallest cards, 8.6 and 8.9."""


@pytest.fixture(scope="module")
def table():
    """Compiled in a process of its own: in this one the kernels are interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--json"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_nothing_spills_and_everything_fits(table):
    assert {row["capability"] for row in table} == set(SHARED_LIMIT)
    for row in table:
        assert row["spills"] <= 16, row  # a few bytes are addresses, next to 64 KiB of accumulators a tile
        assert row["registers"] * row["warps"] * 32 <= 65536, row
        assert row["shared"] <= SHARED_LIMIT[row["capability"]], row


def test_half_precision_products_are_on_the_tensor_cores(table):
    scans = {(row["name"], row["capability"]): row for row in table if row["name"].startswith("scan")}
    half = [row for (name, _), row in scans.items() if "fp32" not in name]
    products = {(row["capability"], row["products"], row["copies"]) for row in half}
    assert products == {
        (80, "mma", "cp.async"),
        (90, "wgmma", "tma"),
        (100, "tcgen05", "tma"),
        (120, "mma", "cp.async"),
    }
