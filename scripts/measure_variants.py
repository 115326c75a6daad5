"""Seconds and peak memory of `sharevl-lite variants --with rules` on 2,000 and on 10,000 problems with an image each.

python scripts/measure_variants.py
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

QUESTIONS = (
    "In triangle ABC, AB = {n} cm and BC = 8 cm. Find the area of the triangle.",
    "How many red cubes are there to the left of ball {n}?",
    "Which country has the highest value in {n}?",
    "If AB = {n} and CD = 7 cm, find AC.\nOptions:\n(A) 3\n(B) {n}",
)


def main() -> None:
    for count in (2_000, 10_000):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            rng = np.random.default_rng(count)
            with (folder / "train.jsonl").open("w") as file:
                for n in range(count):
                    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{n}.png")
                    question = QUESTIONS[n % len(QUESTIONS)].format(n=n + 11)
                    file.write(json.dumps({"problem": question, "images": [f"{n}.png"], "answer": "3"}) + "\n")
            words = [sys.executable, "-m", "sharevl_lite", "variants", str(folder / "train.jsonl")]
            started = time.perf_counter()
            pid = os.spawnv(os.P_NOWAIT, sys.executable, [*words, "--out", str(folder / "out")])
            _, status, usage = os.wait4(pid, 0)
            seconds = time.perf_counter() - started
            print(
                f"{count} problems: {seconds:.1f} s, peak {usage.ru_maxrss / 1024:.0f} MiB, exit {status}", flush=True
            )


if __name__ == "__main__":
    main()
