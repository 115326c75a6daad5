"""`sharevl-lite eval` by the real vLLM, in the process and on a server: greedy answers are those of transformers."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from test_vllm_engine import RECIPE as DEMO
from test_vllm_engine import move
from vllm_server import VLLMServer, free_port

from sharevl_lite.evaluate import Settings, evaluate_target
from sharevl_lite.evaluation import document
from sharevl_lite.policy.hf import load_policy, save_adapter
from sharevl_lite.recipes import dump_recipe, load_recipe

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed; make test-vllm"),
]
GREEDY = ["--eval.temperature", "0", "--eval.problems", "24", "--reward.workers", "1"]
FEW = 200


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run whose adapter moves the model by much: without it the answers would be others."""
    run = tmp_path_factory.mktemp("runs") / "mine"
    recipe = load_recipe(DEMO, {"name": "mine", "output_dir": str(run.parent)})
    policy = load_policy(recipe.model, seed=0)
    move(policy, seed=1)
    save_adapter(policy, run / "adapter")
    (run / "recipe.yaml").write_text(dump_recipe(recipe))
    return run


@pytest.fixture(scope="module")
def by_transformers(run_dir):
    return evaluate_target(str(run_dir), Settings(samples=1, resamples=FEW, overrides=GREEDY)).evaluation


def answers(evaluation):
    return [
        (outcome.id, way.kind, [(answer.extracted, answer.correct, answer.tokens) for answer in way.answers])
        for outcome in evaluation.problems
        for way in outcome.asked
    ]


def test_in_the_process(run_dir, by_transformers):
    """In a process of its own, through the command."""
    words = ["--engine", "vllm", "--samples", "1", "--resamples", str(FEW), "--name", "vllm", *GREEDY]
    command = [sys.executable, "-m", "sharevl_lite", "eval", str(run_dir), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    found = document.read(run_dir / "eval" / "vllm.json")
    assert found.protocol["engine"] == "vllm"
    assert answers(found) == answers(by_transformers)
    bare = evaluate_target(
        "builtin:digits-vl",
        Settings(data="builtin:digits", recipe_file=str(DEMO), samples=1, resamples=FEW, overrides=GREEDY),
    ).evaluation
    assert answers(bare) != answers(by_transformers), "the adapter matters"


def test_on_a_server(run_dir, by_transformers, tmp_path):
    url = f"http://127.0.0.1:{free_port()}/v1"
    recipe = load_recipe(run_dir / "recipe.yaml", {"rollout.engine": "server", "rollout.server_urls": [url]})
    server = VLLMServer(recipe, tmp_path / "server.log")
    server.launch()
    (run_dir / "served").mkdir()
    (run_dir / "served" / "of-a-training").write_text("in use")
    try:
        server.wait()
        done = evaluate_target(
            str(run_dir), Settings(server_urls=[url], engine="server", samples=1, resamples=FEW, overrides=GREEDY)
        )
    finally:
        server.kill()
    assert done.evaluation.protocol["engine"] == "server"
    assert answers(done.evaluation) == answers(by_transformers)
    assert (run_dir / "served" / "of-a-training").read_text() == "in use"
    assert not [path.name for path in (run_dir / "eval").iterdir() if path.name.startswith(".")]
