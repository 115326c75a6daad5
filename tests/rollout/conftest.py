"""Settings of vLLM's CPU build, where it is installed (read before vLLM is imported), and engines of a moody server."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from moody_server import App, serve
from PIL import Image

from sharevl_lite.policy.hf import load_policy, resolve_model_path
from sharevl_lite.policy.prompts import PromptEncoder
from sharevl_lite.recipes import load_recipe
from sharevl_lite.rollout.engine import Sampling, SamplingRequest, end_ids
from sharevl_lite.rollout.server import ServerRolloutEngine

DEMO = Path(__file__).parents[2] / "configs" / "digits_cpu.yaml"
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_completion_length=32, seed=3)
"""What the answers of `honest` are sampled by."""
MODEL = resolve_model_path("builtin:digits-vl")

if find_spec("vllm") is not None:
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }.items():
        os.environ.setdefault(name, value)


@pytest.fixture(scope="module")
def policy():
    return load_policy(load_recipe(DEMO).model, seed=0)


@pytest.fixture(scope="module")
def requests(policy):
    """Three prompts, of two images, one and none; four responses each."""
    encoder = PromptEncoder(policy.processor, policy.base.model.get_rope_index)
    pictures = [Image.new("RGB", (56, 56), colour) for colour in ("red", "blue")]
    prompts = [
        encoder.encode("<image> and <image>?", pictures),
        encoder.encode("<image>?", pictures[:1]),
        encoder.encode("2 + 3?", []),
    ]
    return [SamplingRequest(f"test/{number}", prompt, 4) for number, prompt in enumerate(prompts)]


@pytest.fixture
def make_app(policy, requests):
    image = policy.config.image_token_id

    def make():
        app = App(MODEL, end_ids(policy)[0])
        for request in requests:
            ids = request.prompt.prefix.ids_P.tolist()
            short = [token for place, token in enumerate(ids) if token != image or ids[place - 1] != image]
            assert short.count(image) == len(request.prompt.pictures)
            app.prompts[tuple(short)] = ids
        return app

    return make


@pytest.fixture
def app(make_app):
    return make_app()


@pytest.fixture
def url(app):
    with serve(app) as address:
        yield address


@pytest.fixture
def recipe(tmp_path):
    """`recipe(urls, **knobs of rollout)`"""

    def make(*urls, **knobs):
        changes = {f"rollout.{name}": value for name, value in knobs.items()}
        servers = {"rollout.engine": "server", "rollout.server_urls": list(urls)}
        return load_recipe(DEMO, {**servers, "output_dir": str(tmp_path), **changes})

    return make


@pytest.fixture
def honest(requests, make_app, policy, recipe):
    """What an undisturbed server answers."""
    with serve(make_app()) as address:
        engine = ServerRolloutEngine(policy, recipe(address))
        responses = engine.sample(requests, SAMPLING)
        engine.close()
    return responses


@pytest.fixture
def start(policy, recipe):
    """`start(urls, **knobs)`: an engine, closed at the end."""
    running = []

    def make(*urls, **knobs):
        running.append(ServerRolloutEngine(policy, recipe(*urls, **knobs)))
        return running[-1]

    yield make
    for engine in running:
        engine.close()
