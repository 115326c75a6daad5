"""A model exported in 4 bits, in the real vLLM: it answers as transformers does with the same folder.

vLLM and its bitsandbytes plug-in have a process of their own, on a CPU.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from sharevl_lite.export import command
from sharevl_lite.policy.hf import load_policy, save_adapter
from sharevl_lite.recipes import dump_recipe, load_recipe

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(
        None in (find_spec("vllm"), find_spec("vllm_bnb_plugin")),
        reason="vLLM or vllm-bnb-plugin is not installed; make test-vllm",
    ),
]
RECIPE = Path(__file__).parents[2] / "configs" / "digits_cpu.yaml"

GAPS = """
import json
import sys
import torch
from sharevl_lite.data import load_problems
from sharevl_lite.policy.hf import load_policy
from sharevl_lite.policy.prompts import PromptEncoder
from sharevl_lite.recipes import load_recipe
from sharevl_lite.rollout.engine import Sampling, SamplingRequest
from sharevl_lite.rollout.limits import engine_dtype
from sharevl_lite.rollout.vllm import VLLMRolloutEngine
from sharevl_lite.share import SegmentGroup, pack_row

recipe_file, packed = sys.argv[1:]
recipe = load_recipe(recipe_file, ["--rollout.engine", "vllm", "--model.path", packed])
policy = load_policy(recipe.model, seed=0)
plain = load_policy(load_recipe(recipe_file).model, seed=0)
encoder = PromptEncoder(policy.processor, policy.base.model.get_rope_index, recipe.data.prompt_template)
problems = load_problems(recipe.data.train, recipe.data, split="train", limit=6).problems
requests = [SamplingRequest(str(n), encoder.encode(p.text, p.images), 6) for n, p in enumerate(problems)]
images = {key: image for request in requests for key, image in request.prompt.images.items()}
engine = VLLMRolloutEngine(policy, recipe)

def gap(scorer, drawn):
    groups = [
        SegmentGroup(request.prompt.prefix, tuple(torch.tensor(r.token_ids) for r in block), tuple(range(len(block))))
        for request, block in zip(requests, drawn)
    ]
    with torch.no_grad():
        scores = scorer.eval()(pack_row(groups), images).logprobs_S
    said = torch.tensor([logprob for block in drawn for response in block for logprob in response.logprobs])
    return (scores - said).abs().mean().item()

def sample():
    engine.sync()
    return engine.sample(requests, Sampling(temperature=1.0, top_p=1.0, max_completion_length=24, seed=3))

drawn = sample()
found = {"stored": str(policy.base_dtype), "engine": engine_dtype(policy)}
found |= {"export": gap(policy, drawn), "base": gap(plain, drawn)}
draw = torch.Generator().manual_seed(2)
for name, parameter in policy.named_parameters():
    if "lora_B" in name:
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=draw)
drawn = sample()
found["adapted"] = gap(policy, drawn)
with policy.reference():
    found["without its adapter"] = gap(policy, drawn)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The shipped model with an adapter that changes log-probs by much, in 4 bits."""
    run = tmp_path_factory.mktemp("runs") / "mine"
    recipe = load_recipe(RECIPE, {"name": "mine", "output_dir": str(run.parent)})
    policy = load_policy(recipe.model, seed=0)
    draw = torch.Generator().manual_seed(1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=draw)
    save_adapter(policy, run / "adapter")
    (run / "recipe.yaml").write_text(dump_recipe(recipe))
    command.export(command.Settings(run=run, to=run.parent / "packed", kind="merged-4bit"), say=lambda _: None)
    return run.parent / "packed"


def test_vllm_reads_it_and_an_adapter_on_top(packed):
    """vLLM computes in bfloat16 and transformers in float32, so they agree to bfloat16's rounding."""
    words = [sys.executable, "-c", GAPS, str(RECIPE), str(packed)]
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["stored"], found["engine"]) == ("torch.float32", "bfloat16")
    assert found["export"] < 0.02
    assert found["base"] > 10 * found["export"]
    assert found["adapted"] < 0.02
    assert found["without its adapter"] > 10 * found["adapted"]
