"""A whole training step in the shape of a real model: ours against separate rows with transformers and PEFT.

    python scripts/bench_step.py [--problems 32 --response 300] [--only baseline ours ...]

Builds a random model in the shape of Qwen2.5-VL-3B (real sizes, the shipped tokenizer) and problems with an image of
1,024 tokens, and trains on them with `sharevl-lite train`, each way in a process of its own. A random model's answers
are never right and seldom end, so the reward is a coin that depends on the tokens, and every response has its full
length. The second step is shown; the first one warms up. Ways that need what is not installed are lines that say so.

- baseline: transformers + PEFT, one row per pair (a token budget of one prompt and one response), vLLM samples.
- packed: the same, packed rows.
- ours: packed rows on Unsloth's model, vLLM samples.
- hf: packed rows, transformers samples as well.

`--tiny` takes the shipped 1.9M-parameter model, short prompts and transformers only: it tries the script on a CPU.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from sharevl_lite.policy.hf import resolve_model_path

TEXT_3B = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
VISION_3B = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "window_size": 112,
}
SIDE = 896
"""Pixels along an image: 32 x 32 tokens of 28 x 28 pixels."""
PROMPT = 1200
"""Bound of a prompt in tokens: the image and about 60 tokens of text."""
GOAL = 3.0
COIN = """
import hashlib

def coin(completion_ids, **columns):
    return [hashlib.sha256(repr(list(ids)).encode()).digest()[0] / 255 for ids in completion_ids]
"""
SHOWN = ("seconds/step", "seconds/rollout", "seconds/score", "seconds/update", "tokens_per_second", "peak_memory_mib")


@dataclass(frozen=True)
class Way:
    """A way to train: what it needs, and its knobs."""

    name: str
    needs: tuple[str, ...]
    knobs: tuple[str, ...]
    separate: bool = False


WAYS = (
    Way("baseline", ("vllm",), ("--rollout.engine=vllm",), separate=True),
    Way("packed", ("vllm",), ("--rollout.engine=vllm",)),
    Way("ours", ("vllm", "unsloth"), ("--rollout.engine=vllm", "--model.loader=unsloth")),
    Way("hf", (), ("--rollout.engine=hf",)),
)
TINY_WAYS = (Way("baseline", (), (), separate=True), Way("packed", (), ()))


def config_3b() -> Qwen2_5_VLConfig:
    """The shipped model's configuration with the sizes of Qwen2.5-VL-3B-Instruct."""
    shipped = AutoConfig.from_pretrained(resolve_model_path("builtin:digits-vl")).to_dict()
    text, vision = shipped.pop("text_config"), shipped.pop("vision_config")
    text.pop("layer_types")  # as many as there are layers
    shipped |= {"tie_word_embeddings": True}
    return Qwen2_5_VLConfig(text_config=text | TEXT_3B, vision_config=vision | VISION_3B, **shipped)


def build_model(folder: Path) -> None:
    """Writes a random model of real size with the shipped processor; in bfloat16, on the GPU."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Qwen2_5_VLForConditionalGeneration(config_3b()).to(torch.bfloat16)
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(resolve_model_path("builtin:digits-vl")).save_pretrained(folder)


def build_data(folder: Path, problems: int) -> Path:
    """Problems with a smooth image each (a shift of a gradient, so that no two are equal)."""
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
        build_model(folder / "model")
        model, prompt, data = str(folder / "model"), PROMPT, str(build_data(folder, 2 * options.problems))
    sections = {
        "name": "bench",
        "model": {"path": model, "gradient_checkpointing": not options.tiny},
        "data": {"train": data, "max_prompt_length": prompt, "prompt_template": "{problem}"},
        "share": {"num_variants": 2, "num_responses": 6},
        "rollout": {"max_completion_length": options.response, "batch_size": 256},
        "reward": {
            "accuracy_weight": 0.0,
            "format_weight": 0.0,
            "functions": [{"path": str(folder / "coin.py") + ":coin"}],
        },
        "train": {"rollouts": 2, "problems_per_rollout": options.problems, "problems_per_update": options.problems},
    }
    if not options.tiny:
        sections["model"] |= {"min_pixels": SIDE**2, "max_pixels": SIDE**2}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(sections))  # JSON is YAML
    return path


def train(way: Way, file: Path, options: argparse.Namespace) -> dict[str, float] | str:
    """The second step's record, or why there is none."""
    missing = [package for package in way.needs if find_spec(package) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    budget = (96 if options.tiny else PROMPT) + options.response if way.separate else options.token_budget
    words = [sys.executable, "-m", "sharevl_lite", "train", str(file), f"--name={way.name}", *way.knobs]
    words += [f"--output-dir={file.parent / 'runs'}", f"--train.token_budget={budget}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1][:200]}"
    lines = (file.parent / "runs" / way.name / "metrics.jsonl").read_text().splitlines()
    record: dict[str, float] = json.loads(lines[-1])
    return record


def versions() -> dict[str, str]:
    """Where this was measured."""
    found = {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}
    for package in ("torch", "transformers", "peft", "vllm", "unsloth"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "-"
    return found


def main() -> int:
    """Prints a line per way and writes the CSV."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--problems", type=int, default=32, help="problems of a step (default: 32)")
    parser.add_argument("--response", type=int, default=300, help="tokens of a response (default: 300)")
    parser.add_argument("--token-budget", type=int, default=8192, help="tokens of a packed row (default: 8192)")
    parser.add_argument("--tiny", action="store_true", help="the shipped model, on any device")
    parser.add_argument("--only", nargs="+", metavar="WAY", help="some of the ways")
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="folder of the CSV")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        print("this benchmark needs a CUDA device (--tiny tries the script itself)", file=sys.stderr)
        return 2
    where = versions()
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    folder = Path(tempfile.mkdtemp(prefix="sharevl-bench-"))
    results: dict[str, dict[str, float] | str] = {}
    try:
        file = recipe(folder, options)
        for way in TINY_WAYS if options.tiny else WAYS:
            if not options.only or way.name in options.only:
                results[way.name] = train(way, file, options)
                show(way.name, results)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "step.csv").open("w", newline="") as sheet:
        writer = csv.DictWriter(sheet, ["way", "status", *SHOWN, *where])
        writer.writeheader()
        for name, result in results.items():
            figures = {key: result[key] for key in SHOWN} if isinstance(result, dict) else {}
            writer.writerow({"way": name, "status": "ok" if figures else result, **figures, **where})
    print(f"written to {options.out / 'step.csv'}")
    return int(any(isinstance(result, str) and result.startswith("failed") for result in results.values()))


def show(name: str, results: dict[str, dict[str, float] | str]) -> None:
    """Prints one way, and how much faster it is than the baseline."""
    result, baseline = results[name], results.get("baseline")
    if isinstance(result, str):
        print(f"{name:9} {result}", flush=True)
        return
    figures = "  ".join(f"{key.removeprefix('seconds/')} {result[key]:,.1f}" for key in SHOWN)
    ratio = ""
    if isinstance(baseline, dict) and name != "baseline":
        speed = baseline["seconds/step"] / result["seconds/step"]
        ratio = f"  {speed:.2f} x baseline" + (f" (goal {GOAL})" if name == "ours" else "")
    print(f"{name:9} {figures}{ratio}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
