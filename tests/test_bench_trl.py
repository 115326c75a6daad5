"""The comparison with TRL's GRPOTrainer runs both sides, counts what they compute, and gives TRL its own numbers."""

import csv
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"
PROBLEMS, RESPONSES, LENGTH = 2, 4, 8  # of --quick
PLAIN = {"short": 40, "long": 48}
"""Tokens of the first prompt: 8 of the demo's picture, 16 of one with 112 pixels along its sides, and 32 of text."""


def bench(*words):
    command = [sys.executable, str(SCRIPTS / "bench_trl.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["short", "long"])
def test_both_sides_take_a_step_on_the_same_prompts(setting, tmp_path):
    done = bench("--quick", "--settings", setting, "--out", str(tmp_path))
    logs = "".join(file.read_text() for file in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    assert f"the first prompt has {PLAIN[setting]} tokens" in done.stdout
    assert "trl-8 / ours-1024: a step " in done.stdout
    ours, theirs = csv.DictReader((tmp_path / "trl.csv").open())
    assert (ours["way"], theirs["way"], theirs["trl"]) == ("ours-1024", "trl-8", metadata.version("trl"))
    for row in (ours, theirs):
        parts = [float(row[part]) for part in ("prepare", "sample", "reward", "train", "rest")]
        assert min(parts) >= 0
        assert sum(parts) == pytest.approx(float(row["seconds"]))
        assert float(row["sample"]) > 0 < float(row["train"])
    rows = PROBLEMS * RESPONSES
    if setting == "long":  # nothing ends by itself: all tokens but the last are read while sampling
        read = rows * (PLAIN[setting] + LENGTH - 1)
        assert float(theirs["sampled_tokens"]) == pytest.approx(read, rel=0.05)  # prompts differ by a few words
        assert float(theirs["trained_tokens"]) == pytest.approx(read + rows, rel=0.05)
    assert float(ours["sampled_tokens"]) <= float(theirs["sampled_tokens"])
    # A prompt and its picture once for all of its responses, not once for each.
    assert float(ours["trained_tokens"]) < 0.8 * float(theirs["trained_tokens"])
    assert float(ours["patches"]) < float(theirs["patches"])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_head_on_a_cpu_gives_trls_numbers(temperature, monkeypatch):
    """TRL's kernels run in Triton's interpreter here, one token at a time."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from trl.kernels import ChunkedLogProbFunction
    from trl_side import PlainHead

    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 16, generator=draw)
    weight = torch.randn(60, 16, generator=draw)
    targets = torch.randint(0, 60, (5,), generator=draw)
    grads, found = [], []
    for function in (ChunkedLogProbFunction, PlainHead):
        own = hidden.clone().requires_grad_(True)
        logprobs, entropies, *_ = function.apply(
            own, weight, None, targets, temperature, 64, None, 1.0, ("log_probs", "entropy")
        )
        (logprobs * torch.arange(1.0, 6.0)).sum().backward()
        grads.append(own.grad)
        found.append(torch.stack([logprobs.detach(), entropies.detach()]))
    # float32, sums of 60 terms in another order
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--trl-batch 7", "--trl-batch 7 does not divide the step's 128 responses"),
        ("--steps 0", "--steps must be at least 1, not 0"),
        ("--responses 1 --trl-batch 4", "--responses must be at least 2"),
        ("--side 100", "--side must be a multiple of 28, not 100"),
        ("--model nowhere", "nowhere holds no config.json"),
        ("--token-budget 0", "--token-budget must be at least 1, not 0"),
        ("--settings middle", "invalid choice: 'middle'"),
    ],
)
def test_bad_arguments_are_told(words, told):
    done = bench(*words.split())
    assert done.returncode == 2
    assert told in done.stderr


def test_a_model_for_a_gpu_is_the_only_setting_and_never_ends(tmp_path, monkeypatch):
    """What a GPU would be asked, without one: the sizes, and the model by links."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_trl
    from small_models import write_small_model
    from transformers import AutoProcessor, GenerationConfig
    from trl_setup import write_recipe

    from sharevl_lite.recipes import load_recipe

    model = tmp_path / "model"
    write_small_model("Qwen/Qwen2.5-VL-3B-Instruct", model, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["bench_trl.py", "--model", str(model), "--problems", "2", "--side", "112"])
    (setting,) = bench_trl.parse().chosen
    assert (setting.name, setting.problems, setting.responses, setting.length) == ("long", 2, 8, 300)
    assert setting.checkpointing
    recipe = load_recipe(write_recipe(setting, tmp_path / "long", 1), {})
    linked = Path(recipe.model.path)
    assert (linked / "model.safetensors").resolve() == (model / "model.safetensors").resolve()
    end = json.loads((model / "config.json").read_text())["video_token_id"]
    assert GenerationConfig.from_pretrained(linked).eos_token_id == [end]
    processor = AutoProcessor.from_pretrained(linked)
    assert processor.tokenizer.eos_token_id == end
    assert processor.image_processor.size["longest_edge"] == 112**2
