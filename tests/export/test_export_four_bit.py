"""Merged weights in 4 bits: packed by bitsandbytes on the CPU, read again, and refused where NF4 loses the adapter."""

import shutil

import pytest
import torch
from export_files import scale_adapter, tensors_of
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from test_export_command import run_snippet
from transformers import AutoModelForImageTextToText

from sharevl_lite.cli import main
from sharevl_lite.export import command, four_bit, verify_four_bit
from sharevl_lite.export.adapter import read_adapter
from sharevl_lite.export.arithmetic import float32_arithmetic
from sharevl_lite.export.base import BaseModel, find_base, read_tensor, stored_tensors
from sharevl_lite.export.card import prepare_card
from sharevl_lite.export.errors import ExportError
from sharevl_lite.export.merge import write_merged
from sharevl_lite.export.source import find_source

Q = "model.layers.0.self_attn.q_proj.weight"
FOUR = ("--format", "merged-4bit")


@pytest.fixture(scope="session")
def long_run(small_run, tmp_path_factory):
    """The real run as if it had been thirty times as long: what two steps teach is below NF4's rounding."""
    run = shutil.copytree(small_run, tmp_path_factory.mktemp("long") / "run")
    scale_adapter(run, 30.0)
    return run


@pytest.fixture(scope="session")
def packed(long_run, tmp_path_factory):
    """Its export in 4 bits, what it was packed from, and what was said. Copy the first to change it."""
    folder = tmp_path_factory.mktemp("packed")
    said = []
    command.export(command.Settings(run=long_run, to=folder / "digits", kind="merged-4bit"), say=said.append)
    base = find_base("builtin:digits-vl")
    (folder / "merged").mkdir()
    write_merged(base, read_adapter(long_run / "adapter", base), folder / "merged", 10**9)
    return folder / "digits", folder / "merged", "\n".join(said)


def test_a_merged_model_in_four_bits(packed, monkeypatch, capsys):
    out, _, said = packed
    assert {path.name for path in out.iterdir()} == {
        *{path.name for path in find_base("builtin:digits-vl").files()},
        "model.safetensors",
        "README.md",
    }
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode
    assert "28 weights of the text layers are packed in NF4" in said
    assert "of its effect is lost (allowed: 70%)" in said
    assert "from the merged model's, " in said
    card = (out / "README.md").read_text()
    assert "of its effect is lost (allowed: 70%)" in card
    assert "packed in 4 bits (NF4 with double quantisation)" in card
    for text in (said, card):
        assert "vllm serve " in text
        assert "pip install vllm-bnb-plugin" in text
    assert f"sharevl-lite eval {out} --recipe" in said
    run_snippet(out, monkeypatch)
    assert capsys.readouterr().out.strip()


def test_it_loads_as_it_trains(packed):
    model = AutoModelForImageTextToText.from_pretrained(packed[0], dtype="auto")
    small = {name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert len(small) == 7 * model.config.text_config.num_hidden_layers
    assert all(".language_model.layers." in name for name in small)
    skipped = model.config.quantization_config.llm_int8_skip_modules
    assert {"visual", "lm_head"} <= set(skipped)  # vLLM looks for parts of a name, not for patterns


def test_the_announced_size_is_the_files(packed):
    size = (packed[0] / "model.safetensors").stat().st_size
    assert 0.95 * size < four_bit.size_of(find_base("builtin:digits-vl")) < 1.05 * size


def test_logits_are_those_of_the_unpacked_weights_in_float32(packed):
    model = AutoModelForImageTextToText.from_pretrained(packed[0], dtype="auto").eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad(), float32_arithmetic(model):
        found = model(input_ids=ids).logits
    layers = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    assert not any("forward" in layer.__dict__ for layer in layers)
    with torch.no_grad():
        exact = model.dequantize().float()(input_ids=ids).logits
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("qwen2_vl", torch.float16), ("qwen2_5_vl", torch.bfloat16), ("qwen3_vl", torch.float16)],
)
def test_all_families_in_sixteen_bits(tiny_run, export, tmp_path, family, dtype):
    run, base = tiny_run(family, dtype, tied=True, strength=0.6)
    # Random models answer wildly: what is looked at here are the tensors.
    export(run, tmp_path / "out", *FOUR, "--max-shard-size", "0.1MB", "--tolerance", "0.95")
    before, after = tensors_of(base), tensors_of(tmp_path / "out")
    names = {name.removesuffix(".absmax") for name in after if name.endswith("weight.absmax")}
    assert names == {name for name in before if "_proj.weight" in name and "visual" not in name}
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - names)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1


def change(part, how):
    def damage(tensors, _):
        tensors[f"{Q}{part}"] = how(tensors[f"{Q}{part}"])

    return damage


def flip(values):
    """The level beside the right one, where two are close: half the widest gap would allow it."""
    flat = values.clone().flatten()
    first = int((flat & 0b1111 == 8).nonzero()[0])  # 0.080, and the next is 0.161
    flat[first] ^= 0b0001
    return flat.reshape(values.shape)


def louder(values):
    values = values.clone()
    values[3] ^= 0b0100_0000
    return values


def unpack(tensors, merged):
    for part in verify_four_bit.PARTS:
        tensors.pop(f"{Q}.{part}")
    tensors[Q] = load_file(merged / "model.safetensors")[Q]


def forget_the_adapter(tensors, _):
    from bitsandbytes.functional import quantize_4bit

    base = find_base("builtin:digits-vl")
    weight, state = quantize_4bit(read_tensor(base.tensors[Q], Q), compress_statistics=True, quant_type="nf4")
    tensors |= {Q: weight, **{f"{Q}.{name}": part for name, part in state.as_dict(packed=True).items()}}


DAMAGES = {
    "the level beside": (change("", flip), f"{Q} is not its merged weight in NF4: off by up to"),
    "another maximum": (change(".absmax", louder), f"{Q} is not its merged weight in NF4"),
    "all maxima": (change(".nested_absmax", lambda t: 1.2 * t), f"{Q} is not its merged weight in NF4"),
    "not a number": (change(".nested_absmax", lambda t: t * torch.nan), f"{Q} is not its merged weight in NF4"),
    "other levels": (change(".quant_map", lambda t: t.flip(0)), f"{Q} is packed with another levels"),
    "half of the maxima": (change(".absmax", lambda t: t[: len(t) // 2].clone()), "another number of values"),
    "a state that cannot be read": (change(f".{verify_four_bit.STATE}", lambda t: t[:40]), "cannot be read"),
    "the base's weight": (forget_the_adapter, f"{Q} is not its merged weight in NF4"),
    "a weight left as it was": (unpack, f"packs other weights than the text layers': - are packed, {Q} are not"),
    "a lost part": (lambda t, _: t.pop(f"{Q}.absmax"), f"1 missing ({Q}.absmax), 0 left over (-)"),
    "a tensor too many": (lambda t, _: t.update(extra=torch.ones(1)), "0 missing (-), 1 left over (extra)"),
    "an unpacked weight off": (
        lambda t, _: t.update({"model.norm.weight": t["model.norm.weight"] + 1e-3}),
        "model.norm.weight is not the merged model's, though it is not packed",
    ),
    "a narrower type": (lambda t, _: t.update({"lm_head.weight": t["lm_head.weight"].half()}), "lm_head.weight is F16"),
}


def rewrite(folder, merged, damage):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    damage(tensors, merged)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_found_and_named(packed, tmp_path, what):
    damage, told = DAMAGES[what]
    folder, merged = shutil.copytree(packed[0], tmp_path / "packed"), packed[1]
    tensors = stored_tensors(merged)
    base = find_base("builtin:digits-vl")

    def check():
        return verify_four_bit.check_packed(base, folder, lambda name: read_tensor(tensors[name], name))

    assert 0.1 < check().worst < 0.17  # half the widest gap of NF4 is 0.152; the maxima add a little
    rewrite(folder, merged, damage)
    with pytest.raises(ExportError) as error:
        check()
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: rewrite(f, f / "merged", DAMAGES["the level beside"][0]), f"{Q} is not its merged weight in NF4"),
        (lambda f: (f / "processor_config.json").unlink(), "the export lacks processor_config.json"),
    ],
    ids=["a weight", "the processor"],
)
def test_a_damaged_export_gets_no_name(long_run, export, tmp_path, monkeypatch, damage, told):
    honest = four_bit.pack

    def pack(merged, base, folder, size):
        honest(merged, base, folder, size)
        damage(folder)

    monkeypatch.setattr(four_bit, "pack", pack)
    assert told in export(long_run, tmp_path / "out", *FOUR, code=2)


def test_an_effect_below_nf4s_rounding_is_refused(run, export, tmp_path):
    """Two steps move the logits by less than NF4 does: rightly rounded, and lost."""
    said = export(run, tmp_path / "out", *FOUR, code=2)
    assert "the adapter's effect is lost in 4 bits" in said
    assert "train longer, export with --format merged-16bit or lora, or allow more with --tolerance" in said


def test_the_share_that_may_be_lost_can_be_set(long_run, export, tmp_path):
    assert "is lost where 10% is allowed" in export(long_run, tmp_path / "out", *FOUR, "--tolerance", "0.1", code=2)


def test_a_base_that_is_packed_without_the_adapter_is_found_by_its_logits(long_run, export, tmp_path, monkeypatch):
    base = find_base("builtin:digits-vl")
    monkeypatch.setattr(verify_four_bit, "check_packed", lambda *_: verify_four_bit.Packed(28, 0.0))
    honest = four_bit.pack
    monkeypatch.setattr(four_bit, "pack", lambda _, *rest: honest(base.folder, *rest))
    said = export(long_run, tmp_path / "out", *FOUR, "--tolerance", "0.99", code=2)
    assert "100.0% of the effect is lost where 99% is allowed" in said


def test_what_is_lost_is_a_share_of_the_effect():
    draw = torch.Generator().manual_seed(0)
    base, effect, other = (torch.randn(50, 20, generator=draw) for _ in range(3))
    noise = 3 * torch.randn(50, 20, generator=draw)  # NF4's own, of base and export alike

    def lost(found, allowed=0.7):
        found = verify_four_bit.compare_effects(
            [base], [base + effect], [base + noise], [base + noise + found], allowed
        )
        return found.lost

    assert lost(effect) == pytest.approx(0.0, abs=1e-6)
    assert lost(0.5 * effect) == pytest.approx(0.5, abs=1e-6)
    for nothing in (0 * effect, other, torch.full_like(effect, torch.nan)):
        with pytest.raises(ExportError, match=r"lost in 4 bits|not finite"):
            lost(nothing, allowed=0.99)
    with pytest.raises(ExportError, match="does nothing to the logits"):
        verify_four_bit.compare_effects([base], [base], [base], [base], 0.7)


def test_without_bitsandbytes_nothing_is_written(run, export, tmp_path, monkeypatch):
    monkeypatch.setattr(four_bit, "find_spec", lambda _: None)
    monkeypatch.setattr("sharevl_lite.export.command.published", None)  # would raise
    assert "--format merged-4bit needs bitsandbytes, on a CPU too" in export(run, tmp_path / "out", *FOUR, code=2)


def test_a_base_of_several_types_is_refused(tiny_run, export, tmp_path):
    run, base = tiny_run(dtype=torch.bfloat16)
    rewrite(base, None, lambda tensors, _: tensors.update({"model.norm.weight": tensors["model.norm.weight"].float()}))
    assert "stores weights as BF16, F32" in export(run, tmp_path / "out", *FOUR, code=2)


def test_an_export_in_four_bits_is_no_base(long_run, packed, tmp_path, capsys):
    assert main(["export", str(long_run), "--to", str(tmp_path / "out"), "--base", str(packed[0])]) == 2
    assert "its weights are quantised themselves (bitsandbytes)" in capsys.readouterr().err


def test_the_card_calls_it_a_quantisation_of_its_base(long_run, tmp_path):
    base = BaseModel("maker/base", find_base("builtin:digits-vl").folder, "a" * 40)
    source = find_source(long_run, "last")
    prepare_card(source, base, "merged-4bit", title="four", where="me/four").write(tmp_path, ["checked"])
    front = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert (front["base_model"], front["base_model_relation"]) == ("maker/base", "quantized")
    assert front["library_name"] == "transformers"
