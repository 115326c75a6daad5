"""Every recipe that is shipped loads, resolves and dry-runs."""

import re
from pathlib import Path

import pytest

from sharevl_lite import load_recipe
from sharevl_lite.memory_advice import FEW_SEQUENCES
from sharevl_lite.memory_plan import GIB, engine_needs, plan_memory, sequences_at_once
from sharevl_lite.model_shape import find_config, measure_shape
from sharevl_lite.preview import preview, step_size
from sharevl_lite.recipes import dump_recipe

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_loads_and_dry_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(path)
    text = preview(recipe)
    share, train = recipe.share, recipe.train
    scorers = share.num_variants if share.trajectories == "shared" else 1
    pairs = train.problems_per_rollout * share.num_variants * share.num_responses * scorers
    assert f"pairs             {pairs:,} (" in text
    updates = train.updates_per_rollout
    assert f"responses, {updates} update{'' if updates == 1 else 's'} of {train.problems_per_update} problems" in text
    assert "packed" in text
    assert "memory" in text
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_recipe(recipe))
    assert load_recipe(resolved) == recipe


REAL = [path for path in CONFIGS if "cpu" not in path.stem]


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_recipes_say_which_memory_they_were_planned_for_and_fit_it(path):
    comment = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    planned = re.search(r"[Pp]lanned for (?:one GPU of )?(\d+) GB", comment)
    assert planned, comment
    assert "estimated" in comment
    total = int(planned[1]) * GIB * 15 // 16  # a card of 16 GB shows about 15 GiB, one of 24 GB 22.5
    recipe = load_recipe(path)
    shape = measure_shape(find_config(recipe.model.path)[0])
    half = recipe.model.dtype != "float16"
    assert plan_memory(recipe, shape, total=total, half=half).fits(total)
    if recipe.rollout.engine == "vllm":
        assert recipe.rollout.vllm_gpu_memory_utilization * total >= engine_needs(recipe, shape, half=half)
        assert sequences_at_once(recipe, shape, total=total, half=half) >= FEW_SEQUENCES


def test_the_geometry_baseline_differs_in_sharing_alone():
    ours, baseline = (
        load_recipe(CONFIGS[0].parent / f"geometry3k_{n}.yaml") for n in ("qwen2_5_vl_3b", "grpo_baseline")
    )
    assert ours.model_dump(exclude={"name", "share"}) == baseline.model_dump(exclude={"name", "share"})
    assert (baseline.share.levels, baseline.share.trajectories) == ("local", "own")


def test_there_are_recipes():
    assert {"digits_cpu", "digits_grpo_cpu"} <= {path.stem for path in CONFIGS}


def test_the_baseline_differs_in_sharing_alone():
    demo, baseline = (load_recipe(CONFIGS[0].parent / f"{name}.yaml") for name in ("digits_cpu", "digits_grpo_cpu"))
    alike = demo.model_dump(exclude={"name", "share"}), baseline.model_dump(exclude={"name", "share"})
    assert alike[0] == alike[1]
    own = {"levels", "trajectories"}
    assert demo.share.model_dump(exclude=own) == baseline.share.model_dump(exclude=own)
    assert (baseline.share.levels, baseline.share.trajectories) == ("local", "own")


def test_step_sizes_by_hand():
    recipe = load_recipe(
        CONFIGS[0],
        {
            "share.num_variants": 2,
            "share.num_responses": 6,
            "share.levels": "hierarchical",
            "share.trajectories": "shared",
            "rollout.max_completion_length": 301,
            "train.problems_per_rollout": 1,
            "train.problems_per_update": 1,
            "train.token_budget": 10_000,
        },
    )
    size = step_size(recipe, prompt_length=1100)
    assert size.responses == 12
    assert size.pairs == 24
    assert size.tokens_separate == 24 * 1401
    assert size.tokens_packed == 2 * 1100 + 24 * 300
    # 1100 + 6·300 = 2900 fit: two prefix copies for each variant's 12 responses.
    halved = step_size(
        recipe.model_copy(update={"train": recipe.train.model_copy(update={"token_budget": 2900})}), 1100
    )
    assert halved.tokens_packed == 4 * 1100 + 24 * 300
