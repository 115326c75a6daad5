"""What a transform costs on an image of 1024 × 1024: a line each, the best of many runs on one core.

python scripts/bench_transforms.py
"""

from __future__ import annotations

import sys
import time

import numpy as np
from PIL import Image

from sharevl_lite.variants import TRANSFORMS

SIDE, RUNS, GOAL_MS = 1024, 30, 5.0


def cost_ms(name: str, runs: int = RUNS) -> float:
    """Milliseconds of the fastest of `runs`."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(256, size=(64, 64, 3), dtype=np.uint8)).resize((SIDE, SIDE))
    transform = TRANSFORMS[name]
    transform.apply(image, rng)  # tables are made once
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        transform.apply(image, rng)
        times.append(time.perf_counter() - started)
    return min(times) * 1e3


def main() -> int:
    """Prints the table; 1 where one is above the goal."""
    costs = {name: cost_ms(name) for name in TRANSFORMS}
    for name, milliseconds in costs.items():
        print(f"{name:20} {milliseconds:6.2f} ms")
    print(f"goal: {GOAL_MS} ms")
    return int(max(costs.values()) > GOAL_MS)


if __name__ == "__main__":
    sys.exit(main())
