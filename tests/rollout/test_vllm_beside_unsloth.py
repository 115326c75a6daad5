"""The published recipes as they are run: Unsloth's model trains and vLLM samples, in one process.

The models are small and random, in the recipes' families; pictures, pixel bounds, transforms, prompts and objective are
the recipes' own. Each alone is tested elsewhere; Unsloth patches what both read (see `pixel_settings`).
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_models import write_small_model

from sharevl_lite.recipes import load_recipe
from sharevl_lite.rollout.vllm import graphs

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "digits_cpu.yaml"
RECIPES = {
    recipe.model.path: path
    for path in sorted((ROOT / "configs").glob("*.yaml"), reverse=True)
    if (recipe := load_recipe(path)).model.loader == "unsloth" and recipe.rollout.engine == "vllm"
}
"""One for each model."""
BOTH = pytest.mark.skipif(
    find_spec("vllm") is None or find_spec("unsloth") is None, reason="needs vLLM and Unsloth; make test-beside"
)


def run(recipe, changes):
    """Trains in a process of its own; what it said, and the records of its metrics."""
    words = [f"--{name}={value}" for name, value in changes.items()]
    command = [sys.executable, str(Path(__file__).with_name("unsloth_vllm_command.py")), "train", str(recipe), *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    log = changes["output_dir"] / changes["name"] / "metrics.jsonl"
    return done.stdout, [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.vllm
@pytest.mark.unsloth
@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("path", RECIPES.values(), ids=lambda path: path.stem)
def test_a_recipe_trains_with_both(tmp_path, monkeypatch, path):
    recipe = load_recipe(path)
    write_small_model(recipe.model.path, tmp_path / "model", monkeypatch)
    from bench_step import COIN

    rows = []
    for number, size in enumerate([(700, 400), (300, 900)]):
        Image.effect_noise(size, 80).convert("RGB").save(tmp_path / f"{number}.png")
        rows.append({"problem": f"<image>What is {number} + 1?", "images": [f"{number}.png"], "answer": "1"})
    (tmp_path / "coin.py").write_text(COIN)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    on_gpu = torch.cuda.is_available()  # where it is the recipe's precision and checkpointing, which needs CUDA streams
    changes = {} if on_gpu else {"model.dtype": "float32", "model.gradient_checkpointing": "false"}
    changes |= {
        "model.path": tmp_path / "model",
        "data.train": tmp_path / "rows.jsonl",
        "data.eval": tmp_path / "rows.jsonl",
        "reward.functions": json.dumps([{"path": f"{tmp_path / 'coin.py'}:coin"}]),
        "rollout.max_completion_length": 8,
        "rollout.vllm_gpu_memory_utilization": 0.2,
        "train.rollouts": 2,
        "train.problems_per_rollout": 2,
        "train.problems_per_update": 1,
        "output_dir": tmp_path,
        "name": "run",
    }
    said, records = run(path, changes)
    assert f"model     loading {tmp_path / 'model'} with Unsloth" in said
    steps = [record for record in records if "loss" in record]
    assert len(records) > len(steps)  # the held-out problems were asked
    assert [step["update"] for step in steps] == [2, 4]
    share = recipe.share
    for step in steps:
        assert step["sampler_gap"] < (0.05 if on_gpu else 1e-4)
        assert step["grad_norm"] > 0.0
        assert step["tokens_separate"] / step["pairs"] > recipe.model.min_pixels / 32**2  # the picture is in each
        assert 0 < step["sampled_tokens"] <= 2 * share.num_variants * share.num_responses * 8


@pytest.mark.vllm
@pytest.mark.unsloth
@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen3-VL-4B-Instruct"])
def test_a_model_that_shares_its_weights_with_vllm_trains(tmp_path, monkeypatch, name):
    """`rollout.engine: unsloth`, in bfloat16: trainer and sampler are one model, before and after an update."""
    write_small_model(name, tmp_path / "model", monkeypatch, layers=3)
    from bench_step import COIN

    (tmp_path / "coin.py").write_text(COIN)
    changes = {
        "model.path": tmp_path / "model",
        "model.loader": "unsloth",
        "model.dtype": "bfloat16",
        "model.gradient_checkpointing": "false",
        "data.eval": "null",
        "data.max_prompt_length": 200,
        "share.num_responses": 4,
        "reward.functions": json.dumps([{"path": f"{tmp_path / 'coin.py'}:coin"}]),
        "rollout.engine": "unsloth",
        "rollout.batch_size": 16,
        "rollout.max_completion_length": 12,
        "train.rollouts": 2,
        "train.problems_per_rollout": 2,
        "train.problems_per_update": 2,
        "train.learning_rate": 0.05,
        "output_dir": tmp_path,
        "name": "run",
    }
    _, records = run(DEMO, changes)
    steps = [record for record in records if "loss" in record]
    assert len(steps) == 2
    assert steps[0]["gap_mean"] != steps[1]["gap_mean"]  # the adapter that the second step samples with is another
    for step in steps:
        assert step["grad_norm"] > 0.0
        assert step["sampler_gap"] < (0.05 if torch.cuda.is_available() else 0.01)


def test_graphs_are_few_and_reach_the_whole_batch():
    for batch in (1, 2, 7, 64, 96, 256, 384, 1000):
        sizes = graphs(batch)["cudagraph_capture_sizes"]
        assert sizes[0] == 1
        assert sizes[-1] == batch
        assert sizes == sorted(set(sizes))
        assert all(after <= before + max(1, before // 4) for before, after in pairwise(sizes))
        assert len(sizes) <= 8 + 4 * 4 + 8 * max(0, batch.bit_length() - 6)
