"""The benchmark of a whole step runs, on the shipped model, and says what it could not run."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_models import write_small_model
from transformers import AutoModelForImageTextToText

from sharevl_lite.model_shape import PUBLISHED
from sharevl_lite.policy.attention import check_full_attention
from sharevl_lite.policy.hf import load_policy
from sharevl_lite.policy.prompts import PromptEncoder
from sharevl_lite.recipes import load_recipe
from sharevl_lite.share import SegmentGroup, pack_row

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_step.py"
DEMO = SCRIPT.parents[1] / "configs" / "digits_cpu.yaml"
PARAMETERS = {  # as their checkpoints say
    "Qwen/Qwen2-VL-2B-Instruct": 2_208_985_600,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen3-VL-4B-Instruct": 4_437_815_808,
}


@pytest.mark.slow
@pytest.mark.parametrize("words", ["--only packed", "--without-sampling --at-once"])
def test_each_way_trains_a_step(tmp_path, words):
    command = [sys.executable, str(SCRIPT), *["--tiny", "--problems", "2", "--response", "9", "--out"], str(tmp_path)]
    done = subprocess.run([*command, *words.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader((tmp_path / "step.csv").open()))
    assert [row["way"] for row in rows] == (["packed"] if "--only" in words else ["baseline", "packed"])
    for row in rows:
        assert row["status"] == "ok"
        assert 0 < float(row["seconds/update"]) < float(row["seconds/step"])
        seconds = float(row["seconds/rollout"])
        assert float(row["sampled/s"]) * seconds < 2 * 2 * 6 * 9 + 0.5  # problems, variants, responses, tokens
        assert float(row["trained/s"]) * float(row["seconds/update"]) > 2 * 24 * 30  # pairs, a prompt and more each
    assert ("x baseline" in done.stdout) == (len(rows) > 1)


def test_random_models_have_the_published_sizes(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from random_models import random_config

    for name, parameters in PARAMETERS.items():
        config = random_config(name)
        check_full_attention(config)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        model.tie_weights()
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_a_random_model_reads_pictures(tmp_path, monkeypatch):
    """With the shipped processor: what a benchmark of either family asks of it."""
    for name, (family, _) in PUBLISHED.items():
        write_small_model(name, tmp_path / family, monkeypatch)
        recipe = load_recipe(DEMO, {"model.path": str(tmp_path / family), "model.max_pixels": 100_352})
        policy = load_policy(recipe.model, seed=0)
        encoder = PromptEncoder(policy.processor, policy.base.model.get_rope_index)
        prompt = encoder.encode("<image>2 + 3?", [Image.linear_gradient("L").convert("RGB")])
        row = pack_row([SegmentGroup(prompt.prefix, (torch.tensor([9, 10]),), (0,))])
        assert torch.isfinite(policy(row, prompt.images).logprobs_S).all()
