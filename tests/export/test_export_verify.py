"""Sabotage between writing and verifying: whatever goes wrong on the way to the disk is found and said."""

import json

import pytest
import torch
from export_files import ADAPTER, scale_adapter
from safetensors.torch import load_file, save_file

from sharevl_lite.export import adapter, verify, writers
from sharevl_lite.export.arithmetic import float32_arithmetic

Q = "model.layers.0.self_attn.q_proj.weight"


def rewrite(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(str(file))
    change(tensors)
    save_file(tensors, str(file), metadata={"format": "pt"})


def rename(tensors):
    tensors[Q.replace("model.", "model.language_model.", 1)] = tensors.pop(Q)


def nudge(name):
    def change(tensors):
        tensors[name] = tensors[name] + 1e-3

    return change


def other_mean(folder):
    config = json.loads((folder / "processor_config.json").read_text())
    config["image_processor"]["image_mean"] = [0.1, 0.2, 0.3]
    (folder / "processor_config.json").write_text(json.dumps(config))


DAMAGES = {
    "a dropped tensor": (lambda f: rewrite(f, lambda t: t.pop(Q)), f"1 missing ({Q}), 0 left over"),
    "transformers' own name": (
        lambda f: rewrite(f, rename),
        "1 missing (model.layers.0.self_attn.q_proj.weight), 1 left over",
    ),
    "a tensor too many": (
        lambda f: rewrite(f, lambda t: t.update(extra=torch.ones(1))),
        "0 missing (-), 1 left over (extra)",
    ),
    "half precision": (lambda f: rewrite(f, lambda t: t.update({Q: t[Q].half()})), f"{Q} is F16"),
    "an adapted weight off": (lambda f: rewrite(f, nudge(Q)), f"{Q} is not W + ΔW: off by 0.001"),
    "not a number": (lambda f: rewrite(f, lambda t: t[Q].fill_(torch.nan)), f"{Q} is not W + ΔW"),
    "an untouched weight off": (
        lambda f: rewrite(f, nudge("visual.blocks.0.norm1.weight")),
        "visual.blocks.0.norm1.weight is not that of builtin:digits-vl, though no adapter changes it",
    ),
    "a lost processor": (lambda f: (f / "processor_config.json").unlink(), "the export lacks processor_config.json"),
    "another image mean": (other_mean, "the export's processor_config.json is not that of builtin:digits-vl"),
    "a lost chat template": (lambda f: (f / "chat_template.jinja").unlink(), "the export lacks chat_template.jinja"),
    "a torn file": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:100]),
        "not a readable safetensors file",
    ),
}


@pytest.fixture
def damaged(monkeypatch):
    """`damaged(how)`: the merge is followed by damage to what it wrote."""

    def arrange(how):
        def write(base, changes, folder, size):
            honest(base, changes, folder, size)
            how(folder)

        monkeypatch.setattr(writers, "write_merged", write)

    honest = writers.write_merged
    return arrange


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_found_named_and_removed(run, export, damaged, tmp_path, what):
    how, told = DAMAGES[what]
    damaged(how)
    assert told in export(run, tmp_path / "out", code=2)


def unscaled(monkeypatch):
    monkeypatch.setattr(adapter, "_scale", lambda *_: 1.0)


def unmerged(monkeypatch):
    monkeypatch.setattr("sharevl_lite.export.merge.merged", lambda weight, _: weight)


@pytest.mark.parametrize("fault", [unscaled, unmerged])
@pytest.mark.parametrize("blind", [False, True], ids=["by the weights", "by the logits alone"])
def test_a_wrong_merge_is_found_twice(run, export, tmp_path, monkeypatch, fault, blind):
    fault(monkeypatch)
    if blind:
        monkeypatch.setattr(verify, "check_weights", lambda *_, **__: 1.0)
    said = export(run, tmp_path / "out", code=2)
    assert ("the export's logits are not those of base and adapter" if blind else "is not W + ΔW") in said


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (other_mean, "the export's processor makes other pixel_values of prompt 0"),
        (lambda f: (f / "processor_config.json").unlink(), "does not load"),
    ],
)
def test_a_wrong_processor_is_found_by_what_it_makes(run, export, damaged, tmp_path, monkeypatch, how, told):
    monkeypatch.setattr(verify, "check_files", lambda *_: None)
    damaged(how)
    assert told in export(run, tmp_path / "out", code=2)


def test_a_missing_key_is_found_by_loading(run, export, damaged, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "check_tensors", lambda *_: None)
    monkeypatch.setattr(verify, "check_weights", lambda *_, **__: 1.0)
    damaged(lambda f: rewrite(f, lambda t: t.pop(Q)))
    said = export(run, tmp_path / "out", code=2)
    assert "loads with 1 missing keys (model.language_model.layers.0.self_attn.q_proj.weight)" in said


@pytest.mark.parametrize("kind", ["merged-16bit", "lora"])
def test_an_adapter_that_is_zero_is_no_export(run, export, tmp_path, kind):
    scale_adapter(run, 0.0)
    said = export(run, tmp_path / "out", "--format", kind, code=2)
    assert ("the adapter changes no weight" if kind != "lora" else "the adapter does nothing to the logits") in said


def test_a_lost_half_of_an_adapter_is_found(run, export, tmp_path):
    file = run / "adapter" / ADAPTER
    tensors = load_file(str(file))
    lost = next(name for name in tensors if "lora_B" in name)
    tensors.pop(lost)
    save_file(tensors, str(file), metadata={"format": "pt"})
    assert "1 tensors do not fit the base model, such as" in export(run, tmp_path / "out", "--format", "lora", code=2)
    assert "does not fit its weight" in export(run, tmp_path / "out", code=2)


def test_an_adapter_too_weak_for_sixteen_bits_is_refused_and_kept_as_an_adapter(tiny_run, export, tmp_path):
    """Each ΔW is below half a step of bfloat16 nearly everywhere: rightly rounded, and lost."""
    run, _ = tiny_run(dtype=torch.bfloat16, strength=0.004)
    said = export(run, tmp_path / "out", code=2)
    assert "too weak for their type: export with --format lora" in said
    export(run, tmp_path / "out", "--format", "lora")


def test_the_same_adapter_on_a_float32_base_is_well(tiny_run, export, tmp_path):
    run, _ = tiny_run(strength=0.004)
    assert "verified" in export(run, tmp_path / "out")


def test_arithmetic_is_float32_on_stored_bfloat16(tiny_run):
    """As if the model had been widened altogether, and the weights are what they were afterwards."""
    from tiny_models import tiny_model

    model = tiny_model("qwen2_5_vl", dtype=torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.arange(5, 25)[None]
    with torch.no_grad(), float32_arithmetic(model):
        found = model(input_ids=ids).logits
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        coarse = model(input_ids=ids).logits
        exact = model.float()(input_ids=ids).logits
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)
    assert (coarse.float() - exact).abs().max() > 1e-2
