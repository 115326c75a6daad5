"""A run folder made by hand: the shipped model with an adapter that changes its answers."""

from pathlib import Path

import pytest
import torch

from sharevl_lite.atomic import write_atomically
from sharevl_lite.policy.hf import load_policy, save_adapter
from sharevl_lite.recipes import dump_recipe, load_recipe

DEMO = Path(__file__).parents[2] / "configs" / "digits_cpu.yaml"
SMALL = {"eval.problems": 6, "eval.samples": 2, "reward.workers": 1, "rollout.max_completion_length": 24}


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory):
    """The demo's recipe, smaller."""
    folder = tmp_path_factory.mktemp("recipe")
    write_atomically(folder / "small.yaml", dump_recipe(load_recipe(DEMO, SMALL)).encode())
    return folder / "small.yaml"


@pytest.fixture(scope="session")
def run_dir(recipe_file, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    recipe = load_recipe(recipe_file, {"name": "byhand", "output_dir": str(run.parent)})
    write_atomically(run / "recipe.yaml", dump_recipe(recipe).encode())
    policy = load_policy(recipe.model, seed=0)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=draw))
    save_adapter(policy, run / "adapter")
    return run
