"""The explorer over a generated store: time to start, p95 of pages and filters, memory.

    python apps/explorer/benchmarks/bench_explorer.py [--steps 200] [--keep FOLDER]

200 steps of 512 responses (32 problems, 4 variants, 4 responses of about 120 tokens) with 2,000 images. The app runs
as a user starts it, in a process of its own; pages are asked by HTTP as the browser asks them, one after another, and
timed until the last byte. Start is from the process to the first page.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

from sharevl_lite.store import Rewards, RolloutRow, RolloutStore, Scorer, Verification

PROBLEMS, VARIANTS, RESPONSES, IMAGES, PORT = 32, 4, 4, 2000, 17861
VIEWS = ("problem", "response", "response&under=1", "compare")
TEXT = "the angle of triangle is half so we add both sides then divide by two which gives area length result"
WORDS = TEXT.split()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the explorer.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--keep", type=Path, help="a folder for the store; used again if it is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = (options.keep or Path(scratch)) / "bench"
        if not run.exists():
            generate(run, options.steps)
        measure(run, options.steps)


def generate(run: Path, steps: int) -> None:
    chance, numbers = random.Random(0), np.random.default_rng(0)
    store = RolloutStore(run)
    pixels = numbers.integers(0, 256, (IMAGES, 24, 32, 3), dtype=np.uint8)
    shas = [store.put_image(Image.fromarray(image)) for image in pixels]
    for step in range(1, steps + 1):
        rows = []
        for problem in chance.sample(range(1500), PROBLEMS):
            for j in range(VARIANTS):
                rows += [response(chance, numbers, step, problem, j, i, shas) for i in range(RESPONSES)]
        store.write("train", step, rows)


def response(
    chance: random.Random, numbers: np.random.Generator, step: int, problem: int, j: int, i: int, shas: list[str]
) -> RolloutRow:
    right = float(chance.random() < 0.2 + step / 400)
    tokens = chance.randint(60, 180)
    text = f"<think>{' '.join(chance.choices(WORDS, k=tokens))}</think> \\boxed{{{problem}}}"
    scorers = [
        Scorer(k, chance.gauss(0, 1), -0.3, 0.0 if k == j else chance.gauss(-0.1, 0.2), chance.random() / 10)
        for k in range(VARIANTS)
    ]
    return RolloutRow(
        run_id="bench", step=step, problem_id=f"problem-{problem:04d}", variant_index=j,
        variant_text=f"<image>In figure {problem}, {' '.join(chance.choices(WORDS, k=15))}?",
        transform=[None, "rotate_90_cw", "noise_10", "mirror"][j], image_sha=[shas[(problem + 500 * (j % 2)) % IMAGES]],
        answer=str(problem), response_index=i, text=text, token_ids=numbers.integers(0, 150_000, tokens).tolist(),
        truncated=chance.random() < 0.03, sampling_logprobs=(-numbers.exponential(0.3, tokens)).tolist(),
        rewards=Rewards(0.9 * right + 0.1, right, 1.0), verification=Verification(str(problem), "exact"),
        adv_global=chance.gauss(0, 1), adv_local=chance.gauss(0, 1), scorers=scorers,
        scorer_logprobs=(-numbers.exponential(0.3, (VARIANTS, tokens))).tolist(),
    )  # fmt: skip


def queries(steps: int, number: int = 150) -> list[str]:
    """A mix of every view; half are pages and filters of the Step view."""
    chance = random.Random(1)
    mix = []
    for place in range(number):
        step = chance.randint(1, steps)
        filters = ["", "&outcome=mixed&sort=success", "&q=triangle", "&transform=mirror&down=1&sort=reward", "&page=2"]
        mix.append(
            f"?view=step&step={step}{filters[place % 5]}" if place % 2 else ["", "?view=compare"][place % 4 // 2]
        )
    return mix


def measure(run: Path, steps: int) -> None:
    began = time.perf_counter()
    command = [sys.executable, "-m", "sharevl_explorer", str(run), "--port", str(PORT)]
    app = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        component = wait_for_app()
        ask(component, "")
        started = time.perf_counter() - began
        asked = queries(steps)
        sample = ask(component, "?view=step&step=7")
        problem = sample.split("problem=problem-", 1)[1][:4]
        asked += [f"?view={view}&step=7&problem=problem-{problem}" for view in VIEWS] * 10
        seconds = sorted((timed(component, query), query) for query in asked)
        print(f"responses {steps * PROBLEMS * VARIANTS * RESPONSES:,}, images {IMAGES:,}, pages asked {len(seconds)}")
        print(f"start      {started:6.2f} s    (target 5)")
        print(f"page p50   {1000 * seconds[len(seconds) // 2][0]:6.0f} ms")
        print(f"page p95   {1000 * seconds[int(len(seconds) * 0.95)][0]:6.0f} ms   (target 300)")
        print(f"page worst {1000 * seconds[-1][0]:6.0f} ms   {seconds[-1][1]!r}")
        print(f"memory     {peak_mib(app.pid):6.0f} MiB  (target 1024; highest resident size)")
    finally:
        app.terminate()
        app.wait()


def wait_for_app() -> int:
    """The id of the one HTML component, once the app answers."""
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/config") as answer:
                found = [part["id"] for part in json.load(answer)["components"] if part["type"] == "html"]
                return int(found[0])
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    raise SystemExit("the app did not start in 30 s")


def ask(component: int, query: str) -> str:
    body = {"data": query, "component_id": component, "fn_name": "view", "session_hash": "bench"}
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/gradio_api/component_server",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return str(json.load(answer))


def timed(component: int, query: str) -> float:
    began = time.perf_counter()
    page = ask(component, query)
    seconds = time.perf_counter() - began
    if "This cannot be read" in page:
        raise SystemExit(f"{query}: {page[:500]}")
    return seconds


def peak_mib(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:", 1)[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
