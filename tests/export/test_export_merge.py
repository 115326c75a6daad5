"""The merged weights: names, types and shards of the base, and the adapter's scale."""

import json
import math
import shutil

import pytest
import torch
from export_files import tensors_of
from safetensors import safe_open

from sharevl_lite.export.adapter import read_adapter
from sharevl_lite.export.base import StoredTensor, find_base
from sharevl_lite.export.merge import plan_shards, write_merged
from sharevl_lite.policy.hf import resolve_model_path


@pytest.mark.parametrize(
    ("family", "dtype", "tied"),
    [
        ("qwen2_vl", torch.bfloat16, False),
        ("qwen2_5_vl", torch.float32, False),
        ("qwen2_5_vl", torch.bfloat16, True),
        ("qwen3_vl", torch.float16, False),
    ],
)
def test_all_families_every_type_and_tied_embeddings(tiny_run, export, tmp_path, family, dtype, tied):
    run, base = tiny_run(family, dtype, tied=tied)
    export(run, tmp_path / "out")
    before, after = tensors_of(base), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    assert ("lm_head.weight" in after) != tied
    assert any(name.startswith("model.visual." if family == "qwen3_vl" else "visual.") for name in after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        name for name in before if name.endswith(("q_proj.weight", "down_proj.weight")) and "visual" not in name
    }
    assert {tensor.dtype for tensor in after.values()} == {dtype}


@pytest.mark.parametrize(
    ("lora", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 6 / math.sqrt(3)),
        ({"alpha_pattern": {"q_proj": 12}}, 4.0),
        ({"rank_pattern": {"q_proj": 2}}, 3.0),
    ],
)
def test_the_scale_of_the_adapter(tiny_run, tmp_path, lora, scale):
    run, base = tiny_run(**lora)
    model = find_base(str(base))
    (tmp_path / "out").mkdir()
    write_merged(model, read_adapter(run / "adapter", model), tmp_path / "out", 10**9)
    name = "model.layers.1.self_attn.q_proj.weight"
    module = "base_model.model.model.language_model.layers.1.self_attn.q_proj"
    with safe_open(str(run / "adapter" / "adapter_model.safetensors"), "pt") as file:
        product = file.get_tensor(f"{module}.lora_B.weight") @ file.get_tensor(f"{module}.lora_A.weight")
    torch.testing.assert_close(tensors_of(tmp_path / "out")[name], tensors_of(base)[name] + scale * product)


def test_adapted_vision_layers_are_merged_too(tiny_run, export, tmp_path):
    run, base = tiny_run(target_modules=r".*visual\.blocks.*\.qkv")
    export(run, tmp_path / "out")
    before, after = tensors_of(base), tensors_of(tmp_path / "out")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        f"visual.blocks.{block}.attn.qkv.weight" for block in range(3)
    }


def test_shards_have_the_size_asked_for_and_an_index(run, export, tmp_path):
    export(run, tmp_path / "out", "--max-shard-size", "1.5MB")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)
    ]
    assert len(files) > 4
    assert all(file.stat().st_size < 1.6e6 for file in files)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    held = tensors_of(tmp_path / "out")
    assert index["weight_map"].keys() == held.keys() == find_base("builtin:digits-vl").tensors.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in held.values())


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path):
    sizes = {"a": 3, "b": 12, "c": 4, "d": 6, "e": 1}
    tensors = {name: StoredTensor(tmp_path, "F32", (), size) for name, size in sizes.items()}
    assert plan_shards(tensors, 10) == [["a"], ["b"], ["c", "d"], ["e"]]


@pytest.mark.parametrize(
    ("setting", "told"), [({"use_dora": True}, "use_dora"), ({"modules_to_save": ["lm_head"]}, "modules_to_save")]
)
def test_what_is_more_than_a_low_rank_change_is_refused(tiny_run, export, tmp_path, setting, told):
    run, _ = tiny_run(**setting)
    said = export(run, tmp_path / "out", code=2)
    assert f"{told} of PEFT cannot be merged; export with --format lora" in said


def test_a_quantised_base_is_refused_and_another_can_be_named(run, export, tmp_path):
    quantised = shutil.copytree(resolve_model_path("builtin:digits-vl"), tmp_path / "quantised")
    config = {**json.loads((quantised / "config.json").read_text()), "quantization_config": {"quant_method": "bnb"}}
    (quantised / "config.json").write_text(json.dumps(config))
    recipe = (run / "recipe.yaml").read_text().replace("builtin:digits-vl", str(quantised))
    (run / "recipe.yaml").write_text(recipe)
    assert "quantised themselves (bnb)" in export(run, tmp_path / "out", code=2)
    export(run, tmp_path / "out", "--base", "builtin:digits-vl")


def test_another_model_is_not_taken_for_the_base(run, tiny_run, export, tmp_path):
    shutil.move(run, tmp_path / "real")
    _, base = tiny_run()
    assert "is it the base?" in export(tmp_path / "real", tmp_path / "out", "--base", str(base), code=2)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("/nowhere/model", "neither a folder here nor a model that can be fetched"),
        ("builtin:x", "there is no 'builtin:x'"),
    ],
)
def test_a_base_that_is_not_there(run, export, tmp_path, name, told):
    assert told in export(run, tmp_path / "out", "--base", name, code=2)
