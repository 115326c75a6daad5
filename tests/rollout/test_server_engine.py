"""The real vLLM server beside a policy: the same prompts, the same numbers, the adapter of the last update, a restart.

The shipped digits model in float32. One server runs for most tests of this file; a second has a model that likes image
placeholders. Faults that a real server will not show when asked are in test_server_faults.py.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from test_vllm_engine import RECIPE, SAMPLING, assert_same_scores, move, sampler_scores, trained_scores
from vllm_server import VLLMServer, free_port

from sharevl_lite.data import load_problems
from sharevl_lite.policy.hf import load_base, load_policy
from sharevl_lite.policy.prompts import PromptEncoder
from sharevl_lite.recipes import load_recipe
from sharevl_lite.rollout import server_client
from sharevl_lite.rollout.engine import Sampling, SamplingRequest
from sharevl_lite.rollout.errors import RolloutError
from sharevl_lite.rollout.hf import HFRolloutEngine
from sharevl_lite.rollout.server import ServerRolloutEngine, check_servers

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed; make test-vllm"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def changes(folder):
    return {
        "rollout.engine": "server",
        "rollout.server_urls": [f"http://127.0.0.1:{free_port()}/v1"],
        "rollout.server_retries": 120,
        "rollout.temperature": 0.9,
        "output_dir": str(folder),
    }


@pytest.fixture(scope="module")
def recipe(changes):
    return load_recipe(RECIPE, changes)


@pytest.fixture(scope="module")
def server(recipe, folder):
    running = VLLMServer(recipe, folder / "server.log")
    running.launch()
    running.wait()
    yield running
    running.kill()


@pytest.fixture(scope="module")
def policy(recipe):
    return load_policy(recipe.model, seed=0, temperature=recipe.rollout.temperature)


@pytest.fixture(scope="module")
def engine(server, policy, recipe):
    running = ServerRolloutEngine(policy, recipe)
    yield running
    running.close()


@pytest.fixture(scope="module")
def requests(policy, recipe):
    """Four problems with an image, one without, six responses each."""
    encoder = PromptEncoder(policy.processor, policy.base.model.get_rope_index, recipe.data.prompt_template)
    problems = load_problems(recipe.data.train, recipe.data, split="train", limit=4).problems
    prompts = [encoder.encode(problem.text, problem.images) for problem in problems]
    prompts.append(encoder.encode("2 + 3?", []))
    return [SamplingRequest(f"test/{number}", prompt, 6) for number, prompt in enumerate(prompts)]


def ids(sampled):
    return [[response.token_ids for response in block] for block in sampled]


def test_the_offered_command_starts_a_server_that_passes_the_first_look(server, recipe):
    check_servers(recipe)


def test_log_probs_are_the_policys_and_follow_its_adapter(engine, policy, requests):
    engine.sync()
    fresh = engine.sample(requests, SAMPLING)
    assert [len(block) for block in fresh] == [6] * 5
    assert_same_scores(policy, requests, fresh)
    assert len({response.token_ids for block in fresh for response in block}) > 10

    move(policy, seed=1)
    stale = engine.sample(requests, SAMPLING)
    assert ids(stale) == ids(fresh)
    assert (sampler_scores(stale) - trained_scores(policy, requests, stale)).abs().mean() > 0.01

    engine.sync()
    moved = engine.sample(requests, SAMPLING)
    assert ids(moved) != ids(fresh)
    assert_same_scores(policy, requests, moved)

    move(policy, seed=2)
    engine.sync()
    again = engine.sample(requests, SAMPLING)
    assert_same_scores(policy, requests, again)


def test_a_nucleus_has_the_log_probs_of_what_is_left(engine, policy, requests):
    """Tokens outside are never drawn and those inside are rescaled: no log-prob is below the policy's own."""
    engine.sync()
    sampled = engine.sample(requests, replace(SAMPLING, top_p=0.8))
    excess = sampler_scores(sampled) - trained_scores(policy, requests, sampled)
    assert float(excess.min()) > -1e-4
    assert 0.1 < float(excess.max()) < -torch.tensor(0.8).log() + 1e-3


def test_responses_end_with_the_end_token_or_are_truncated(engine, policy, requests):
    engine.sync()
    short = engine.sample(requests, replace(SAMPLING, max_completion_length=4))
    sampled = [response for block in short for response in block]
    assert any(response.truncated for response in sampled)
    for response in sampled:
        assert len(response.token_ids) == len(response.logprobs) <= 4
        assert response.truncated == (response.token_ids[-1] not in engine.end_ids)
        assert "<|im_end|>" not in response.text


def test_greedy_responses_are_the_policys_most_likely(engine, policy, requests):
    engine.sync()
    greedy = replace(SAMPLING, temperature=0.0)
    assert ids(engine.sample(requests, greedy)) == ids(HFRolloutEngine(policy, 64).sample(requests, greedy))


def test_a_prompt_that_it_reads_otherwise_is_refused(engine, requests):
    """The server expands the placeholder by the picture it gets; here that is another one's."""
    from PIL import Image

    prompt = requests[0].prompt
    taller = prompt.pictures[0].resize(
        (prompt.pictures[0].width, 2 * prompt.pictures[0].height), Image.Resampling.NEAREST
    )
    with pytest.raises(RolloutError, match=r"test/0: .* read \d+ prompt tokens where the policy reads"):
        engine.sample([replace(requests[0], prompt=replace(prompt, pictures=(taller,)))], SAMPLING)


def test_an_adapter_that_does_not_fit_is_said_in_the_servers_words(server, changes):
    big = load_recipe(RECIPE, {**changes, "model.lora.rank": 64, "name": "big"})
    engine = ServerRolloutEngine(load_policy(big.model, seed=0), big)
    with pytest.raises(RolloutError, match=r"(?s)did not load the adapter in .* rank.*--max-lora-rank 64"):
        engine.sync()
    engine.close()


def test_a_server_killed_and_started_again_goes_on_with_the_same_responses(
    engine, server, policy, requests, monkeypatch
):
    monkeypatch.setattr(server_client, "LONGEST_PAUSE", 2.0)  # nobody else waits for this server
    move(policy, seed=3)
    engine.sync()
    before = engine.sample(requests, SAMPLING)
    server.kill()
    later = threading.Timer(2.0, server.launch)
    later.start()
    after = engine.sample(requests, SAMPLING)  # nobody listens, then the adapter is unknown
    later.join()
    assert ids(after) == ids(before)
    torch.testing.assert_close(sampler_scores(after), sampler_scores(before), rtol=0.0, atol=1e-5)
    assert '"POST /v1/load_lora_adapter HTTP/1.1" 200' in server.log.read_text().rpartition("startup complete")[2]


def test_two_processes_train_through_a_restart(server, changes, folder):
    """Killed after the first step of four; both processes go on, with the adapter of every step."""
    options = {
        **changes,
        "name": "run",
        "share.num_responses": 3,
        "train.rollouts": 4,
        "train.problems_per_rollout": 8,
        "train.problems_per_update": 8,
        "train.save_rollouts": 1,
        "data.eval": "null",
        "reward.workers": 1,
    }
    flags = [f"--{key}={json.dumps(value) if isinstance(value, list) else value}" for key, value in options.items()]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    with (folder / "run.log").open("w") as output:
        run = subprocess.Popen(
            [*launch, "-m", "sharevl_lite", "train", str(RECIPE), *flags],
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        metrics = folder / "run" / "metrics.jsonl"
        while run.poll() is None and not (metrics.is_file() and metrics.read_text()):
            time.sleep(0.1)
        assert run.poll() is None, (folder / "run.log").read_text()[-4000:]
        server.kill()
        server.launch()
        assert run.wait(timeout=900) == 0, (folder / "run.log").read_text()[-4000:]
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    server.wait()
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [step for step in steps if "reward" in step]
    assert len(steps) == 4
    for step in steps:
        # float32 on both sides, with the adapter of every step: one that was not handed over shows as 1e-2 and more.
        assert step["sampler_gap"] < 1e-4
        assert step["sampler_gap_max"] < 1e-3
    assert not list((folder / "run" / "served").iterdir())


# ---------------------------------------------------------------- another model


@pytest.fixture(scope="module")
def placeholders(changes, folder):
    """(recipe, its server) of a model that likes to write image placeholders, under a name of its own."""
    model, processor = load_base(load_recipe(RECIPE).model, torch.device("cpu"))
    head = model.get_output_embeddings().weight
    head.data[model.config.image_token_id] = 2 * head.data[processor.tokenizer.convert_tokens_to_ids("2")]
    for part in (model, processor):
        part.save_pretrained(folder / "model")
    other = {
        **changes,
        "rollout.server_urls": [f"http://127.0.0.1:{free_port()}/v1"],
        "rollout.server_model": "placeholders",
        "model.path": str(folder / "model"),
        "name": "placeholders",
    }
    recipe = load_recipe(RECIPE, other)
    running = VLLMServer(recipe, folder / "placeholders.log")
    running.launch()
    running.wait()
    yield recipe
    running.kill()


def test_a_server_of_another_model_is_named(placeholders, recipe, changes):
    urls = {"rollout.server_urls": list(placeholders.rollout.server_urls)}
    with pytest.raises(
        RolloutError, match=r"serves 'placeholders' \(.*\), the recipe trains model.path 'builtin:digits"
    ):
        check_servers(load_recipe(RECIPE, {**changes, **urls}))
    check_servers(placeholders)


def test_vision_tokens_are_banned_and_noticed_where_they_are_not(placeholders, monkeypatch):
    policy = load_policy(placeholders.model, seed=0)
    encoder = PromptEncoder(policy.processor, policy.base.model.get_rope_index)
    engine = ServerRolloutEngine(policy, placeholders)
    request = SamplingRequest("a", encoder.encode("2 + 3?", []), 64)
    sampling = Sampling(temperature=2.0, top_p=1.0, max_completion_length=32, seed=0)
    tokens = {token for response in engine.sample([request], sampling)[0] for token in response.token_ids}
    assert len(tokens) > 30
    assert not tokens & set(policy.vision_token_ids)

    banned = engine._body

    def without(request, sampling):
        body = banned(request, sampling)
        del body["sampling_params"]["logit_bias"]
        return body

    monkeypatch.setattr(engine, "_body", without)
    with pytest.raises(RolloutError, match=r"a: .* drew the vision tokens \[\d+\] although they are banned"):
        engine.sample([request], sampling)
    engine.close()
