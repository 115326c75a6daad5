"""The memory plan: what is counted equals what is loaded, and what it advises makes a recipe fit."""

import pytest
import torch

from sharevl_lite import load_recipe
from sharevl_lite.memory_plan import (
    FOUR_BITS,
    GIB,
    USABLE,
    adapter_parameters,
    engine_needs,
    fewest_recomputed,
    plan_memory,
    reliefs,
)
from sharevl_lite.model_shape import PUBLISHED, find_config, measure_shape
from sharevl_lite.policy.errors import PolicyError
from sharevl_lite.policy.hf import load_policy
from sharevl_lite.recipes import dump_recipe

T4 = "configs/geometry3k_qwen2_5_vl_3b_t4.yaml"
BIG = {
    "model.path": "Qwen/Qwen2.5-VL-7B-Instruct",
    "model.dtype": "bfloat16",
    "rollout.engine": "vllm",
    "rollout.max_completion_length": 1024,
    "train.token_budget": 16384,
    "data.max_prompt_length": 1024,
}


@pytest.fixture
def recipe():
    """`recipe(**changes)`: the demo with changes."""
    return lambda **changes: load_recipe("configs/digits_cpu.yaml", changes)


def shape_of(path):
    return measure_shape(find_config(path)[0])


@pytest.mark.parametrize(
    ("path", "published"),
    [
        # Parameters in the checkpoints' own indices.
        ("Qwen/Qwen2-VL-2B-Instruct", 2_208_985_600),
        ("Qwen/Qwen2.5-VL-3B-Instruct", 3_754_622_976),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8_292_166_656),
        ("Qwen/Qwen3-VL-4B-Instruct", 4_437_815_808),
    ],
)
def test_published_sizes_count_to_the_published_parameters(path, published):
    assert path in PUBLISHED
    assert shape_of(path).parameters == published


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_the_head_of_a_gpu_without_bfloat16_is_planned_for_its_logits(recipe, dtype):
    """The kernels with their bounded workspace start with Ampere."""
    chosen = recipe(**{**BIG, "model.dtype": dtype, "train.token_budget": 4096, "data.max_prompt_length": 512})
    shape = shape_of(BIG["model.path"])
    assert plan_memory(chosen, shape, total=16 * GIB, half=True).training["head"] < 0.6 * GIB
    assert plan_memory(chosen, shape, total=16 * GIB, half=False).training["head"] > 4 * GIB


def test_a_base_is_planned_in_the_precision_that_it_gets_without_bfloat16(recipe):
    """Float32, or float16 beside weights in 4 bits (policy.hf.dtype_of)."""
    shape, changes = shape_of(BIG["model.path"]), {**BIG, "model.dtype": "auto"}
    weights = plan_memory(recipe(**changes), shape, total=80 * GIB, half=False).training["weights"]
    assert weights == 4 * shape.parameters
    packed = {**changes, "model.load_in_4bit": True}
    weights = plan_memory(recipe(**packed), shape, total=80 * GIB, half=False).training["weights"]
    assert weights == pytest.approx(2 * shape.others + FOUR_BITS * shape.text_linear, abs=1)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_weights_and_adapter_are_what_is_loaded(recipe, targets):
    chosen = recipe(**{"model.lora.target_modules": targets})
    policy = load_policy(chosen.model, seed=0)
    trained = [p for p in policy.parameters() if p.requires_grad]
    frozen = [p for p in policy.parameters() if not p.requires_grad]
    shape = shape_of(chosen.model.path)
    plan = plan_memory(chosen, shape, total=None, half=False)
    assert plan.training["weights"] == sum(p.numel() * p.element_size() for p in frozen)
    assert adapter_parameters(chosen, shape) == sum(p.numel() for p in trained)
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = sum(
        v.numel() * v.element_size() for state in optimizer.state.values() for k, v in state.items() if k != "step"
    )
    held = sum(p.numel() * p.element_size() + p.grad.numel() * p.grad.element_size() for p in trained)
    assert plan.training["adapter, gradients, Adam"] == held + moments


def test_four_bits_are_for_the_text_layers(recipe):
    shape = shape_of(BIG["model.path"])
    whole = plan_memory(recipe(**BIG), shape, total=80 * GIB, half=True).training["weights"]
    packed = plan_memory(recipe(**BIG, **{"model.load_in_4bit": True}), shape, total=80 * GIB, half=True).training[
        "weights"
    ]
    assert whole == 2 * shape.parameters
    assert packed == pytest.approx(2 * shape.others + FOUR_BITS * shape.text_linear, abs=1)


def test_vllm_takes_its_share_and_gives_it_back(recipe):
    plan = plan_memory(recipe(**BIG), shape_of(BIG["model.path"]), total=80 * GIB, half=True)
    assert plan.sampling["vLLM"] == int(0.35 * 80 * GIB)
    assert plan.training["vLLM, asleep"] == GIB
    assert "activations" not in plan.sampling


@pytest.mark.parametrize(("total", "enough"), [(80, True), (40, True), (24, True), (8, False)])
def test_what_is_advised_fits_when_it_is_followed(recipe, total, enough):
    chosen, shape = recipe(**BIG), shape_of(BIG["model.path"])
    if total == 80:
        chosen = recipe(**BIG | {"train.token_budget": 65536})
    assert not plan_memory(chosen, shape, total=total * GIB, half=True).fits(total * GIB)
    steps = reliefs(chosen, shape, total=total * GIB, half=True)
    assert steps
    assert [step.peak for step in steps] == sorted((step.peak for step in steps), reverse=True)
    followed = load_recipe_with(chosen, {step.knob: step.value for step in steps})
    plan = plan_memory(followed, shape, total=total * GIB, half=True)
    assert plan.peak == steps[-1].peak
    assert plan.fits(total * GIB) is enough
    assert (plan.peak <= USABLE * total * GIB) is enough
    # The gentlest first, and none that is not needed: without the last one it does not fit.
    assert steps[0].knob == "model.gradient_checkpointing"
    without = load_recipe_with(chosen, {step.knob: step.value for step in steps[:-1]})
    assert not plan_memory(without, shape, total=total * GIB, half=True).fits(total * GIB)


def load_recipe_with(recipe, changes):
    from pathlib import Path
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(dump_recipe(recipe))
        return load_recipe(file, changes)


def test_fewer_layers_are_recomputed_where_there_is_room(recipe):
    shape = shape_of(BIG["model.path"])
    chosen = recipe(**BIG, **{"model.gradient_checkpointing": True})
    few = fewest_recomputed(chosen, shape, total=80 * GIB, half=True)
    followed = load_recipe_with(chosen, {few.knob: few.value})
    plan = plan_memory(followed, shape, total=80 * GIB, half=True)
    assert plan.peak == few.peak
    assert plan.fits(80 * GIB)
    step = shape.layers // 8
    fewer = load_recipe_with(chosen, {few.knob: few.value - step})
    assert not plan_memory(fewer, shape, total=80 * GIB, half=True).fits(80 * GIB)
    assert fewest_recomputed(followed, shape, total=80 * GIB, half=True) is None
    # Where it does not fit, all are recomputed before anything else is lowered.
    assert [(relief.knob, relief.value) for relief in reliefs(fewer, shape, total=80 * GIB, half=True)] == [
        ("model.checkpointing_layers", None)
    ]


def test_a_number_above_that_of_the_layers_is_all_of_them(recipe):
    shape = shape_of("Qwen/Qwen2.5-VL-3B-Instruct")  # 36: a multiple of the steps
    long = {**BIG, "model.path": "Qwen/Qwen2.5-VL-3B-Instruct", "model.gradient_checkpointing": True}
    long["train.token_budget"] = 131072
    chosen, more = recipe(**long), recipe(**long, **{"model.checkpointing_layers": shape.layers + 9})
    assert plan_memory(more, shape, total=80 * GIB, half=True) == plan_memory(chosen, shape, total=80 * GIB, half=True)
    tight = next(total for total in range(GIB, 200 * GIB, GIB // 8) if fits(chosen, shape, total))
    assert fewest_recomputed(chosen, shape, total=tight, half=True) is None
    assert fewest_recomputed(more, shape, total=tight, half=True) is None


def fits(recipe, shape, total):
    return plan_memory(recipe, shape, total=total, half=True).fits(total)


def test_a_fused_mlp_keeps_half_of_its_width(recipe):
    """Not in 4 bits, with dropout or where a projection has no adapter; then its backward pass holds nothing more."""
    shape = shape_of(BIG["model.path"])

    def activations(**changes):
        return plan_memory(recipe(**BIG, **changes), shape, total=80 * GIB, half=True).training["activations"]

    saved = 16384 * 2 * shape.intermediate * (2 * shape.layers - 4)
    for stock in (
        {"model.load_in_4bit": True},
        {"model.lora.dropout": 0.1},
        {"model.lora.target_modules": ["q_proj", "down_proj"]},
    ):
        assert activations(**stock) - activations() == saved


def test_a_recipe_that_fits_needs_no_advice(recipe):
    chosen = recipe(**BIG, **{"model.gradient_checkpointing": True})
    assert reliefs(chosen, shape_of(BIG["model.path"]), total=80 * GIB, half=True) == []


def test_vllms_share_is_never_lowered_below_what_it_needs(recipe):
    chosen, shape = recipe(**BIG), shape_of(BIG["model.path"])
    shares = [
        step.value
        for step in reliefs(chosen, shape, total=24 * GIB, half=True)
        if step.knob == "rollout.vllm_gpu_memory_utilization"
    ]
    assert all(share * 24 * GIB >= engine_needs(chosen, shape, half=True) for share in shares)


def test_models_that_are_nowhere():
    assert find_config("somebody/something") is None
    with pytest.raises(PolicyError, match="built in"):
        find_config("builtin:nothing")


def test_the_plan_is_what_an_h100_was_seen_to_take(monkeypatch):
    """`scripts/measure_memory.py`, 2026-11-27, GiB allocated: Unsloth 2026.10.9, torch 2.11 (docs/LOG.md)."""
    monkeypatch.syspath_prepend("scripts")
    from measure_memory import measured_part

    def planned(name, phase, **changes):
        recipe = load_recipe(f"configs/{name}.yaml", changes)
        plan = plan_memory(recipe, shape_of(recipe.model.path), total=80 * GIB, half=True)
        return measured_part(getattr(plan, phase)) / GIB

    assert planned("r1_sharevl_qwen2_5_vl_7b", "training") == pytest.approx(21.65, rel=0.05)
    assert planned("geometry3k_qwen2_5_vl_3b_t4", "training") == pytest.approx(4.39, rel=0.05)
    longest = {"data.max_prompt_length": 1520, "rollout.max_completion_length": 16}
    adam = 8 * adapter_parameters(load_recipe(T4), shape_of("Qwen/Qwen2.5-VL-3B-Instruct")) / GIB  # was not held then
    assert planned("geometry3k_qwen2_5_vl_3b_t4", "sampling", **longest) == pytest.approx(6.04 + adam, rel=0.05)


def test_keys_of_one_long_group_are_planned_where_they_are_more_than_a_row_may_gather():
    """Rows of 2,048 tokens, 12 responses: prompts of 500 are within the bound of 4 keys a token, of 2,000 are 12.7."""

    def activations(prompt):
        changes = {"train.token_budget": 2048, "data.max_prompt_length": prompt}
        recipe = load_recipe("configs/geometry3k_qwen2_5_vl_3b.yaml", changes)
        return plan_memory(recipe, shape, total=24 * GIB, half=True).training["activations"]

    shape = shape_of("Qwen/Qwen2.5-VL-3B-Instruct")
    assert activations(500) == activations(100)
    assert activations(2000) - activations(500) == 2048 * 2 * 2 * shape.kv_width * (13 - 4)


def test_pictures_that_are_kept_while_transformers_sample_are_planned(recipe):
    """Those of a rollout and of what dynamic sampling replaced in it, or of an evaluation, whose problems are asked in
    two ways."""
    changes = {"rollout.engine": "hf", "train.problems_per_rollout": 4, "data.max_prompt_length": 100}
    changes |= {"share.num_variants": 2, "train.problems_per_update": 4, "data.eval": None}
    shape = shape_of("builtin:digits-vl")
    prompt = 100 * shape.hidden * shape.vision_levels * 4

    def kept(**more):
        plan = plan_memory(recipe(**changes, **more), shape, total=None, half=False)
        return plan.training["features of pictures"], plan.sampling["features of pictures"]

    assert kept() == (8 * prompt, 8 * prompt)
    assert kept(**{"rollout.dynamic_sampling": True, "rollout.max_extra_rounds": 2}) == (24 * prompt, 24 * prompt)
    changes["data.eval"] = "builtin:digits"
    assert kept(**{"eval.problems": 64}) == (8 * prompt, 128 * prompt)
