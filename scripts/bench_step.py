"""A whole training step in the shape of a real model: ours against separate rows with transformers and PEFT.

    python scripts/bench_step.py [--problems 32 --response 300] [--only baseline ours ...]

Builds a random model in the shape of Qwen2.5-VL-3B (real sizes, the shipped tokenizer) and problems with an image of
1,024 tokens. A random model's answers are never right and seldom end, so the reward is a coin that depends on the
tokens, and every response has its full length. Each way is the trainer of `sharevl-lite train`, one step of two
problems to warm up and one that counts; ways with one loader and one sampler share both, in a process of their own
(`step_worker.py`). Ways that need what is not installed are lines that say so.

- baseline: transformers + PEFT (without PEFT's casts of inputs), every pair with its own copy of the prompt, four of
  them in a pass (without padding), vLLM samples.
- packed: the same model in packed rows, with fused layers.
- ours: packed rows and fused layers on Unsloth's model, vLLM samples.
- hf: packed rows, transformers samples as well (not by default).

`--without-sampling` makes the responses up instead: scores and updates alone, without the minutes that vLLM takes to
start. `--at-once` starts all processes together, where the GPU has room for them all; their steps still take turns,
when the last one has started.

`--tiny` takes the shipped 1.9M-parameter model, short prompts and transformers only: it tries the script on a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sharevl_lite.policy.unsloth import import_unsloth

SIDE = 896
"""Pixels along an image: 32 x 32 tokens of 28 x 28 pixels."""
PROMPT = 1200
"""Bound of a prompt in tokens: the image and about 60 tokens of text."""
MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"
GOAL = 3.0
COIN = """
import hashlib

def coin(completion_ids, **columns):
    return [hashlib.sha256(repr(list(ids)).encode()).digest()[0] / 255 for ids in completion_ids]
"""
READY = "ready\n"
"""A process's line when it has started; it goes on when it gets one."""
SHOWN = (
    *("seconds/step", "seconds/expand", "seconds/rollout", "seconds/score", "seconds/update"),
    *("sampled/s", "trained/s", "peak_memory_mib"),
)
"""Of a step's metrics and :func:`rates`."""


@dataclass(frozen=True)
class Way:
    """A way to train: who loads the model, who samples, and whether each pair has a prompt of its own."""

    name: str
    loader: str = "hf"
    engine: str = "vllm"
    separate: bool = False

    @property
    def needs(self) -> list[str]:
        """Packages besides those of the project."""
        return [package for package in (self.engine, self.loader) if package in ("vllm", "unsloth")]


WAYS = (Way("baseline", separate=True), Way("packed"), Way("ours", loader="unsloth"), Way("hf", engine="hf"))
DEFAULT = ("baseline", "packed", "ours")
TINY_WAYS = (Way("baseline", engine="hf", separate=True), Way("packed", engine="hf"))


# ---------------------------------------------------------------- model, data, recipe


def build_model(folder: Path, layers: int | None) -> None:
    """Writes a random model of real size; in a process of its own, which leaves nothing on the GPU."""
    script = Path(__file__).with_name("random_models.py")
    words = [] if layers is None else [f"--layers={layers}"]
    subprocess.run([sys.executable, str(script), MODEL, str(folder), *words], check=True)


def build_data(folder: Path, problems: int) -> Path:
    """Problems with a smooth image each (a shift of a gradient, so that no two are equal)."""
    from PIL import Image

    rows = []
    for number in range(problems):
        image = Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB")
        image.paste((number % 256, number // 256, 90), (0, 0, 28, 28))
        file = folder / f"{number}.png"
        image.save(file)
        rows.append({"problem": f"<image>What is {number} + {number}?", "images": [str(file)], "answer": "0"})
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(folder: Path, options: argparse.Namespace) -> Path:
    """The recipe that all ways share."""
    (folder / "coin.py").write_text(COIN)
    model, prompt, data = ("builtin:digits-vl", 96, "builtin:digits")
    if not options.tiny:
        if options.model is None:
            build_model(folder / "model", options.layers)
        model, prompt = str((options.model or folder / "model").resolve()), PROMPT
        data = str(build_data(folder, options.problems))
    sections: dict[str, Any] = {
        "name": "bench",
        "output_dir": str(folder / "runs"),
        "model": {"path": model, "gradient_checkpointing": not options.tiny},
        "data": {"train": data, "max_prompt_length": prompt, "prompt_template": "{problem}"},
        "share": {"num_variants": 2, "num_responses": 6},
        "rollout": {
            "max_completion_length": options.response,
            "batch_size": 12 * options.problems,
            "vllm_gpu_memory_utilization": options.vllm_share,
        },
        "reward": {
            "accuracy_weight": 0.0,
            "format_weight": 0.0,
            "functions": [{"path": str(folder / "coin.py") + ":coin"}],
        },
        "train": {"rollouts": 1, "token_budget": options.token_budget},
    }
    if not options.tiny:
        sections["model"] |= {"min_pixels": SIDE**2, "max_pixels": SIDE**2}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(sections))  # JSON is YAML
    return path


# ---------------------------------------------------------------- all ways


class Process:
    """A process of ways that share a loader and a sampler (see `step_worker.py`)."""

    def __init__(self, ways: list[Way], file: Path, options: argparse.Namespace) -> None:
        self.ways = ways
        self.log = options.out / f"step-{ways[0].loader}-{ways[0].engine}.log"
        words = [sys.executable, __file__, *sys.argv[1:], "--work", str(file), *(way.name for way in ways)]
        with self.log.open("w") as errors:
            pipe = subprocess.PIPE
            self.run = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=errors, text=True)

    def wait_until_ready(self) -> None:
        """Until it has loaded everything, or has ended."""
        assert self.run.stdout is not None
        next((line for line in self.run.stdout if line == READY), None)

    def measure(self) -> Iterator[tuple[Way, dict[str, Any] | str]]:
        """Lets it run; each way's record as it comes, or why there is none."""
        assert self.run.stdin is not None
        assert self.run.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.run.stdin.write("\n")
            self.run.stdin.close()
        missing = {way.name: way for way in self.ways}
        for record in filter(None, map(as_record, self.run.stdout)):
            yield missing.pop(record["way"]), record
        self.run.wait()
        for way in missing.values():
            yield way, f"failed with exit code {self.run.returncode}, see {self.log}"


def measure(ways: list[Way], file: Path, options: argparse.Namespace) -> Iterator[tuple[Way, dict[str, Any] | str]]:
    """Each way's record, or why there is none."""
    shared: dict[tuple[str, str], list[Way]] = {}
    for way in ways:
        shared.setdefault((way.loader, way.engine), []).append(way)
    groups = list(shared.values())
    missing = [[package for package in group[0].needs if find_spec(package) is None] for group in groups]
    for group, packages in zip(groups, missing, strict=True):
        if packages:
            yield from ((way, f"not installed: {', '.join(packages)}") for way in group)
    sound = [group for group, packages in zip(groups, missing, strict=True) if not packages]
    for batch in [sound] if options.at_once else [[group] for group in sound]:
        processes = [Process(group, file, options) for group in batch]
        for process in processes:
            process.wait_until_ready()
        for process in processes:
            yield from process.measure()


def rates(record: dict[str, Any]) -> dict[str, float]:
    """Tokens a second: sampled in the rollout; in the update those of all pairs, each with a prompt, packed or not."""
    return {
        "sampled/s": record["sampled_tokens"] / record["seconds/rollout"],
        "trained/s": record["tokens_separate"] / record["seconds/update"],
    }


def as_record(line: str) -> dict[str, Any] | None:
    """A line of :func:`work`; None for what libraries print."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record | rates(record) if isinstance(record, dict) and "way" in record else None


def versions() -> dict[str, str]:
    """Where this was measured."""
    import torch

    found = {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}
    for package in ("torch", "triton", "transformers", "peft", "vllm", "unsloth"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "-"
    return found


def chosen(options: argparse.Namespace) -> list[Way]:
    """The ways that are asked for, in that order."""
    known = {way.name: way for way in (TINY_WAYS if options.tiny else WAYS)}
    ways = [known[name] for name in options.only if name in known]
    return [replace(way, engine="random") for way in ways] if options.without_sampling else ways


def parse() -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--problems", type=int, default=32, help="problems of a step (default: 32)")
    parser.add_argument("--response", type=int, default=300, help="tokens of a response (default: 300)")
    parser.add_argument("--token-budget", type=int, default=16384, help="tokens of a packed row (default: 16384)")
    parser.add_argument("--vllm-share", type=float, default=0.3, help="vLLM's share of the GPU (default: 0.3)")
    parser.add_argument("--model", type=Path, help="a folder that random_models.py has written, instead of a new model")
    parser.add_argument("--layers", type=int, help="fewer layers than the real model, to try the script on a GPU")
    parser.add_argument("--tiny", action="store_true", help="the shipped model, on any device")
    parser.add_argument("--without-sampling", action="store_true", help="made-up responses: scores and updates alone")
    ways = [way.name for way in WAYS]
    told = f"of {', '.join(ways)} (default: {', '.join(DEFAULT)})"
    parser.add_argument("--at-once", action="store_true", help="start all processes together")
    parser.add_argument("--only", nargs="+", metavar="WAY", choices=ways, default=DEFAULT, help=told)
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="folder of all figures and the logs")
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Prints a line per way and writes the CSV."""
    options = parse()
    if options.work:
        ways = [way for way in chosen(options) if way.name in options.work[1:]]
        if ways[0].loader == "unsloth":
            import_unsloth()
        from sharevl_lite.heavy_imports import without_collecting

        with without_collecting():
            from step_worker import work

        work(ways, Path(options.work[0]), options.problems)
        return 0
    where = versions()
    if not options.tiny and where["device"] == "cpu":
        print("this benchmark needs a CUDA device (--tiny tries the script itself)", file=sys.stderr)
        return 2
    print(", ".join(f"{name} {value}" for name, value in where.items()), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="sharevl-bench-"))
    ways = chosen(options)
    results: dict[str, dict[str, Any] | str] = {}
    try:
        with (options.out / "step.csv").open("w", newline="") as sheet, (options.out / "step.jsonl").open("w") as full:
            writer = csv.DictWriter(sheet, ["way", "status", *SHOWN, *where])
            writer.writeheader()
            for way, result in measure(ways, recipe(folder, options), options):
                results[way.name] = result
                show(way.name, result)
                figures = {key: result[key] for key in SHOWN} if isinstance(result, dict) else {}
                writer.writerow({"way": way.name, "status": "ok" if figures else result, **figures, **where})
                full.write(json.dumps(result) + "\n" if figures else "")
                full.flush()
                sheet.flush()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    compare(results)
    print(f"written to {options.out / 'step.csv'}")
    return int(any(isinstance(result, str) and result.startswith("failed") for result in results.values()))


def show(name: str, result: dict[str, Any] | str) -> None:
    """Prints one way."""
    if isinstance(result, dict):
        result = "  ".join(f"{key.removeprefix('seconds/')} {result[key]:,.1f}" for key in SHOWN)
    print(f"{name:9} {result}", flush=True)


def compare(results: dict[str, dict[str, Any] | str]) -> None:
    """Prints how much faster each way is than the baseline."""
    baseline = results.get("baseline")
    for name, result in results.items():
        if isinstance(result, dict) and isinstance(baseline, dict) and result is not baseline:
            speed = baseline["seconds/step"] / result["seconds/step"]
            print(f"{name:9} {speed:.2f} x baseline" + (f" (goal {GOAL})" if name == "ours" else ""))


if __name__ == "__main__":
    sys.exit(main())
