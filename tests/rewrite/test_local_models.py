"""`sharevl-lite variants` with a model in this process: batches, cache, resume, and what happens to useless replies."""

import json
from importlib.util import find_spec

import pytest
from parrot import save_parrot
from test_variants_command import data, manifest, run
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from sharevl_lite.config import DataSection
from sharevl_lite.data import load_problems

REWRITES = [f"{verb} the sum of the two digits. Case 0." for verb in ("Find", "Determine", "Calculate")]


@pytest.fixture(scope="module")
def parrot(tmp_path_factory):
    return save_parrot(tmp_path_factory.mktemp("parrot"), json.dumps(REWRITES))


def check_right_replies(engine, parrot, tmp_path):
    """The rewrites fit problem 0 and miss the case's number of problem 1; a second run generates nothing."""
    source, cache = data(tmp_path, 2), tmp_path / "replies.sqlite"
    words = [source, "--with", f"{engine}:{parrot}", "--max-tokens", 16, "--cache", cache]
    run(*words, "--out", tmp_path / "a")
    first, second = load_problems(str(tmp_path / "a"), DataSection(), split="train").problems
    assert list(first.variants) == REWRITES
    assert second.variants == ()
    assert manifest(tmp_path / "a")["rejected_by"] == {"numbers": 3}
    cost = manifest(tmp_path / "a")["cost"]
    assert cost["requests"] == 2
    assert cost["tokens_out"] == 4  # the reply is one token, its end another
    assert cost["tokens_in"] > 100
    run(*words, "--out", tmp_path / "b")
    assert manifest(tmp_path / "b")["cost"]["requests"] == 0
    assert manifest(tmp_path / "b")["cost"]["cached"] == 2


def test_right_replies_of_a_transformers_model_become_variants(parrot, tmp_path):
    check_right_replies("hf", parrot, tmp_path)


@pytest.mark.slow
def test_a_model_that_cannot_rewrite_is_counted_and_not_asked_again(tmp_path):
    words = ["builtin:digits", "--limit", 3, "--with", "hf:builtin:digits-vl", "--max-tokens", 24, "--concurrency", 2]
    cache = tmp_path / "replies.sqlite"
    run(*words, "--cache", cache, "--out", tmp_path / "a")
    first = manifest(tmp_path / "a")
    assert first["counts"]["without"] == first["cost"]["unparsable"] == 3
    assert first["cost"]["replies_unparsable"] == first["cost"]["requests"] == 9
    run(*words, "--cache", cache, "--out", tmp_path / "b")
    assert manifest(tmp_path / "b")["cost"]["requests"] == 0
    assert manifest(tmp_path / "b")["counts"] == first["counts"]


@pytest.mark.slow
def test_a_local_solver_checks_rules(tmp_path):
    """The digits model solves some of its questions: what it agrees with less often on a rewrite is rejected."""
    template = "{problem} Think, then box the answer."
    words = ["builtin:digits", "--limit", 6, "--num", 2, "--check-with", "hf:builtin:digits-vl"]
    words += ["--check-template", template, "--check-samples", 3, "--max-tokens", 32]
    run(*words, "--out", tmp_path / "a")
    found = manifest(tmp_path / "a")
    counts = found["check"]
    assert counts["samples"] == counts["right"] + counts["wrong"]
    assert counts["right"] > 0
    assert found["rejected_by"]["solver_disagrees"] > 0
    assert found["counts"]["accepted"] > 0
    assert found["cost"]["check_requests"] + found["cost"]["check_cached"] == counts["samples"]


@pytest.mark.slow
def test_a_text_model_rewrites_without_the_images_and_may_not_solve(parrot, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(parrot)
    tokenizer.save_pretrained(tmp_path / "text")
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "text")
    # One token is no list of rewrites, whatever the random weights choose: it is asked three times.
    words = ["builtin:digits", "--limit", 1, "--max-tokens", 1, "--out", tmp_path / "out"]
    told = run(*words, "--check-with", f"hf:{tmp_path / 'text'}", code=2)
    assert "sees no images" in told
    run(*words, "--with", f"hf:{tmp_path / 'text'}")
    assert manifest(tmp_path / "out")["cost"]["requests"] == 3


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_missing_vllm_is_said(tmp_path):
    told = run("builtin:digits", "--out", tmp_path / "x", "--with", "vllm:builtin:digits-vl", code=2)
    assert "vLLM is not installed" in told


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed; make test-vllm")
def test_right_replies_of_vllm_become_variants(parrot, tmp_path, monkeypatch):
    settings = {"HF_HUB_OFFLINE": "1", "TORCH_COMPILE_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    check_right_replies("vllm", parrot, tmp_path)
