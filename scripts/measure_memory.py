"""What a recipe's training takes of a GPU, beside what `sharevl-lite doctor` plans for it.

    python scripts/measure_memory.py configs/geometry3k_qwen2_5_vl_3b_80gb.yaml ...

A random model of the recipe's size is loaded by the recipe's loader and updated twice on a row that fills the token
budget: prompts of text (the vision tower runs without gradients, before the text model and in less memory), answers of
full length. With `rollout.engine: hf` a batch of full length is sampled as well, its last 16 tokens. vLLM is not
started: it takes the share that the recipe gives it. Each recipe has a process of its own, all at once (--one-by-one:
not); memory is what that process allocated at most (and reserved: with what its allocator holds on to).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sharevl_lite.config import Recipe
from sharevl_lite.policy.unsloth import import_unsloth
from sharevl_lite.recipes import load_recipe

GIB = 2**30
SAMPLED = 16


def measure(file: Path, layers: int | None) -> dict[str, float | str]:
    """GiB by phase, allocated and reserved, and what was planned."""
    recipe = load_recipe(file)
    name = recipe.model.path
    if recipe.model.loader == "unsloth":
        import_unsloth()
    import torch
    from random_models import write_random_model

    from sharevl_lite.engines import load_policy_of
    from sharevl_lite.memory_plan import plan_memory
    from sharevl_lite.model_shape import find_config, measure_shape

    found = find_config(name)
    assert found is not None
    plan = plan_memory(recipe, measure_shape(found[0]), total=80 * GIB, half=True)
    with tempfile.TemporaryDirectory(prefix="sharevl-model-") as folder:
        dtype = torch.float16 if recipe.model.dtype == "float16" else torch.bfloat16
        write_random_model(name, Path(folder), dtype=dtype, layers=layers)
        torch.cuda.empty_cache()
        policy = load_policy_of(load_recipe(file, {"model.path": folder}))
    record: dict[str, float | str] = {"recipe": recipe.name, "loaded": torch.cuda.memory_allocated() / GIB}
    torch.cuda.reset_peak_memory_stats()
    optimizer = update(policy.train(), recipe)
    record["update"], record["update reserved"] = peak()
    record["planned"] = measured_part(plan.training) / GIB
    if recipe.rollout.engine == "hf":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        sample(policy, recipe)  # beside Adam's averages
        record["sampling"], record["sampling reserved"] = peak()
        record["sampling planned"] = measured_part(plan.sampling) / GIB
    del optimizer
    return record | {"device": torch.cuda.get_device_name()}


def measured_part(planned: dict[str, int]) -> int:
    """Bytes of a plan that this script can see: neither what torch does not allocate, nor vLLM, nor pictures."""
    unseen = ("CUDA and slack", "features of pictures")
    return sum(size for part, size in planned.items() if part not in unseen and "vLLM" not in part)


def peak() -> tuple[float, float]:
    """Most that was allocated and reserved, GiB."""
    import torch

    return torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB


def update(policy: Any, recipe: Recipe) -> Any:
    """Two updates with Adam on a row of the whole token budget; returns the optimizer."""
    import torch

    from sharevl_lite.share import Prefix, SegmentGroup, pack_row

    draw = torch.Generator().manual_seed(1)
    length, longest = recipe.data.max_prompt_length, recipe.rollout.max_completion_length
    count = max(1, (recipe.train.token_budget - length) // longest)
    responses = tuple(torch.randint(8, 400, (longest,), generator=draw) for _ in range(count))
    positions = torch.arange(length).expand(3, -1)
    prefix = Prefix(torch.randint(8, 400, (length,), generator=draw), positions, ())
    row = pack_row([SegmentGroup(prefix, responses, tuple(range(count)))])
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-6)
    scale = 2.0**10 if policy.base_dtype == torch.float16 else 1.0
    for _ in range(2):
        optimizer.zero_grad()
        (policy(row, {}).logprobs_S.mean() * scale).backward()
        optimizer.step()
    optimizer.zero_grad()
    return optimizer


def sample(policy: Any, recipe: Recipe) -> None:
    """A batch of different prompts whose sequences end at their longest, sampled with transformers."""
    from sharevl_lite.policy.prompts import PromptEncoder
    from sharevl_lite.rollout.engine import Sampling, SamplingRequest
    from sharevl_lite.rollout.hf import HFRolloutEngine

    section = recipe.rollout
    encoder = PromptEncoder(policy.processor, policy.base.model.get_rope_index)
    words = recipe.max_sequence_length - SAMPLED
    prompts = [encoder.encode(f"{number:04d}" + "7" * (words - 44), []) for number in range(section.batch_size)]
    engine = HFRolloutEngine(policy, section.batch_size)
    sampling = Sampling(temperature=1.0, top_p=1.0, max_completion_length=SAMPLED, seed=0)
    engine.sample([SamplingRequest("memory", prompt, 1) for prompt in prompts], sampling)


def main() -> int:
    """A line per recipe."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--layers", type=int, help="fewer layers than the real model, to try the script")
    parser.add_argument("--one-by-one", action="store_true", help="one process after another")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(measure(options.recipes[0], options.layers)))
        return 0
    extra = [] if options.layers is None else [f"--layers={options.layers}"]

    def start(recipe: Path) -> subprocess.Popen[str]:
        words = [sys.executable, __file__, "--work", *extra, str(recipe)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    runs = map(start, options.recipes)  # each when its turn comes
    failed = 0
    for recipe, run in zip(options.recipes, runs if options.one_by_one else list(runs), strict=True):
        out, errors = run.communicate()
        if run.returncode:
            failed, reason = 1, (errors.strip().splitlines() or ["no message"])[-1]
            print(f"{recipe.stem}: failed: {reason}", flush=True)
            continue
        record = json.loads(out.strip().splitlines()[-1])
        figures = ", ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items())
        print(f"{figures} (GiB)", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
