"""Unsloth's loader against ours: the same weights, rows, log-probs and gradients.

Runs with `make test-unsloth`, in a process of its own, because Unsloth patches transformers for good; with a GPU on it,
else on the CPU (see unsloth_on_cpu.py).
"""

import json
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

OWN_PROCESS = os.environ.get("SHAREVL_TEST_UNSLOTH") == "1" and find_spec("unsloth") is not None
pytestmark = [
    pytest.mark.unsloth,
    pytest.mark.skipif(not OWN_PROCESS, reason="Unsloth is not installed, or not alone; make test-unsloth"),
]
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="Unsloth's checkpointing copies with CUDA streams")
LLAMA_CPP = Path(tempfile.gettempdir()) / f"llama.cpp-of-tests-{os.getpid()}"
if OWN_PROCESS:
    import unsloth_on_cpu  # noqa: F401

    os.environ["LLAMA_CPP_DIR"] = str(LLAMA_CPP)  # Unsloth reads it once

    from sharevl_lite.policy.unsloth import import_unsloth

    import_unsloth()

from safetensors.torch import load_file, save_file  # noqa: E402
from small_models import write_small_model  # noqa: E402
from test_packed_scores import ALL, SPLITTING, gradients, make_case, packed_scores  # noqa: E402
from transformers import AutoModelForImageTextToText  # noqa: E402

from sharevl_lite.cli import main  # noqa: E402
from sharevl_lite.recipes import load_recipe  # noqa: E402

DEMO = Path(__file__).parents[2] / "configs" / "digits_cpu.yaml"


def policies(tmp_path, **changes):
    """The shipped model by both loaders, with one adapter that is not zero."""
    from sharevl_lite.policy.hf import load_adapter, load_policy, save_adapter
    from sharevl_lite.policy.unsloth import load_policy as load_with_unsloth

    theirs = load_with_unsloth(load_recipe(DEMO, {**changes, "model.loader": "unsloth"}))
    ours = load_policy(load_recipe(DEMO, changes).model, seed=0)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=draw))
    save_adapter(ours, tmp_path)
    load_adapter(theirs, tmp_path)
    return ours.train(), theirs.train()


def trained(policy):
    return {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=NEEDS_GPU)], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("budget", [ALL, SPLITTING], ids=["one row", "split group"])
def test_both_loaders_score_and_learn_alike(tmp_path, checkpointing, budget):
    ours, theirs = policies(tmp_path, **{"model.gradient_checkpointing": checkpointing})
    assert trained(ours).keys() == trained(theirs).keys()
    assert {parameter.dtype for parameter in trained(theirs).values()} == {torch.float32}
    case = make_case(ours)
    expected, found = packed_scores(ours, case, budget), packed_scores(theirs, case, budget)
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=0.0, atol=1e-4)
    expected_gradients, found_gradients = gradients(ours, expected), gradients(theirs, found)
    for name, gradient in expected_gradients.items():
        error = (found_gradients[name] - gradient).norm() / gradient.norm()
        assert error < 1e-3, (name, float(error))


def test_the_model_that_the_recipe_names_is_loaded_and_no_copy_of_unsloth_s(tmp_path, monkeypatch):
    """Where only that one is in the Hub's cache, of a family that Unsloth offers under names of its own."""
    from sharevl_lite.policy.unsloth import load_policy

    name = "Qwen/Qwen2.5-VL-3B-Instruct"
    repository = tmp_path / f"models--{name.replace('/', '--')}"
    write_small_model(name, repository / "snapshots" / "abc", monkeypatch)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    policy = load_policy(load_recipe(DEMO, {"model.path": name, "model.loader": "unsloth"}))
    assert policy.base.config._name_or_path == name
    held = load_file(repository / "snapshots" / "abc" / "model.safetensors")
    torch.testing.assert_close(
        policy.base.lm_head.weight.float(), held[next(key for key in held if "embed_tokens" in key)]
    )


@NEEDS_GPU
def test_as_many_layers_are_recomputed_as_were_asked_for(tmp_path):
    _, theirs = policies(tmp_path, **{"model.gradient_checkpointing": True, "model.checkpointing_layers": 3})
    flags = [layer.gradient_checkpointing for layer in theirs.base.model.language_model.layers]
    assert flags == [True] * 3 + [False] * (len(flags) - 3)


def test_it_samples_like_ours_and_leaves_what_is_recomputed(tmp_path, monkeypatch):
    """Unsloth's own `generate` switches that off for the whole model."""
    from sharevl_lite.policy import unsloth as loading
    from sharevl_lite.rollout.engine import Sampling, SamplingRequest
    from sharevl_lite.rollout.hf import HFRolloutEngine

    if not torch.cuda.is_available():  # its own kind of recomputing copies with CUDA streams
        monkeypatch.setattr(loading, "_checkpointing", lambda section: section.gradient_checkpointing)
    ours, theirs = policies(tmp_path, **{"model.gradient_checkpointing": True, "model.checkpointing_layers": 3})
    layers = theirs.base.model.language_model.layers
    before = [layer.gradient_checkpointing for layer in layers]
    requests = [SamplingRequest(str(number), prompt, 2) for number, prompt in enumerate(make_case(theirs).prompts)]
    (expected, found) = (HFRolloutEngine(one, 4).sample(requests, Sampling(1.0, 1.0, 8, 0)) for one in (ours, theirs))
    for group, other in zip(expected, found, strict=True):
        assert [response.token_ids for response in group] == [response.token_ids for response in other]
        for mine, yours in zip(group, other, strict=True):
            assert mine.logprobs == pytest.approx(yours.logprobs, abs=1e-4)
    assert [layer.gradient_checkpointing for layer in layers] == before == [True] * 3 + [False] * (len(layers) - 3)


@NEEDS_GPU
@pytest.mark.parametrize("packed", [False, True], ids=["16 bits", "4 bits"])
def test_both_loaders_agree_in_half_precision(tmp_path, packed):
    """Two programs round differently: bounds are of bfloat16, an error of a layer is far beyond them."""
    changes = {"model.dtype": "bfloat16", "model.gradient_checkpointing": True, "model.load_in_4bit": packed}
    ours, theirs = policies(tmp_path, **changes)
    case = make_case(ours)
    expected, found = packed_scores(ours, case, ALL), packed_scores(theirs, case, ALL)
    assert (torch.cat(found) - torch.cat(expected)).abs().mean() < 0.02
    expected_gradients, found_gradients = gradients(ours, expected), gradients(theirs, found)
    difference = sum((found_gradients[name] - g).square().sum() for name, g in expected_gradients.items()).sqrt()
    assert difference < 0.1 * sum(g.square().sum() for g in expected_gradients.values()).sqrt()


@NEEDS_GPU
def test_a_run_in_four_bits_and_float16(tmp_path):
    """What the recipe for a T4 asks for."""
    changes = ["--data.eval=null", "--share.num_responses=3", "--train.rollouts=2", f"--output-dir={tmp_path}"]
    changes += ["--train.problems_per_rollout=4", "--train.problems_per_update=4", "--rollout.max_completion_length=24"]
    changes += ["--model.loader=unsloth", "--model.dtype=float16", "--model.load_in_4bit=true", "--name=run"]
    assert main(["train", str(DEMO), *changes, "--model.gradient_checkpointing=true"]) == 0
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "loss" in record:
            assert record["sampler_gap"] < 0.05
            assert record["loss_scale"] >= 1.0
            assert 0.0 < record["grad_norm"] < float("inf")


def test_every_layer_attends_as_the_row_says(tmp_path, monkeypatch):
    import sharevl_lite.policy.attention as module

    rows = []
    honest = module.prefix_attention

    def counted(*args, **kwargs):
        rows.append(args[3])
        return honest(*args, **kwargs)

    monkeypatch.setattr(module, "prefix_attention", counted)
    _, theirs = policies(tmp_path)
    packed_scores(theirs, make_case(theirs), ALL)
    assert len(rows) == theirs.config.text_config.num_hidden_layers


def test_a_run_is_the_run_of_the_other_loader(tmp_path):
    changes = ["--data.eval=null", "--share.num_responses=3", "--train.rollouts=2", f"--output-dir={tmp_path}"]
    changes += ["--train.problems_per_rollout=4", "--train.problems_per_update=4", "--rollout.max_completion_length=24"]
    records = {}
    for loader in ("hf", "unsloth"):
        assert main(["train", str(DEMO), *changes, f"--name={loader}", f"--model.loader={loader}"]) == 0
        lines = (tmp_path / loader / "metrics.jsonl").read_text().splitlines()
        records[loader] = [json.loads(line) for line in lines]
    for ours, theirs in zip(records["hf"], records["unsloth"], strict=True):
        assert theirs["sampler_gap"] < 1e-4
        assert theirs["pairs"] == ours["pairs"]
    # The adapters start at other random numbers, but at an update of zero: the first step is the same.
    for name in ("reward", "sampled_tokens", "entropy", "gap_mean"):
        assert records["unsloth"][0][name] == pytest.approx(records["hf"][0][name], rel=1e-4), name


@pytest.fixture(scope="module")
def its_run(tmp_path_factory):
    """A run that Unsloth trained."""
    folder = tmp_path_factory.mktemp("runs")
    changes = ["--data.eval=null", "--share.num_responses=3", "--train.rollouts=2", f"--output-dir={folder}"]
    changes += ["--train.problems_per_rollout=4", "--train.problems_per_update=2", "--rollout.max_completion_length=24"]
    assert main(["train", str(DEMO), *changes, "--name=run", "--model.loader=unsloth"]) == 0
    return folder / "run"


def test_its_run_is_exported_by_either_saver(its_run, tmp_path):
    for saver in ("own", "unsloth"):
        words = ["--to", str(tmp_path / saver), "--saver", saver, "--prompts", "1"]
        assert main(["export", str(its_run), *words]) == 0
    ours, theirs = (load_file(str(tmp_path / saver / "model.safetensors")) for saver in ("own", "unsloth"))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-6, atol=1e-6)


def test_four_bits_are_for_the_text_layers():
    """bitsandbytes packs on a CPU too, where it cannot train."""
    from sharevl_lite.policy.hf import four_bits, resolve_model_path

    model = AutoModelForImageTextToText.from_pretrained(
        resolve_model_path("builtin:digits-vl"), dtype=torch.bfloat16, quantization_config=four_bits(torch.bfloat16)
    )
    packed = {name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    layers = model.config.text_config.num_hidden_layers
    assert len(packed) == 7 * layers
    assert all(".language_model.layers." in name for name in packed)


@pytest.fixture
def four_bits_on_a_cpu(monkeypatch):
    """Without a GPU Unsloth looks for bitsandbytes' CUDA functions; loading and merging do without them."""
    monkeypatch.setattr("unsloth.models.loader.ALLOW_BITSANDBYTES", True)


def test_its_forced_merge_into_4_bits_is_verified(its_run, tmp_path, four_bits_on_a_cpu, capsys):
    from sharevl_lite.export import verify_four_bit
    from sharevl_lite.export.adapter import read_adapter
    from sharevl_lite.export.base import find_base, read_tensor
    from sharevl_lite.export.errors import ExportError

    words = ["--saver", "unsloth", "--format", "merged-4bit", "--prompts", "2"]
    assert main(["export", str(its_run), "--to", str(tmp_path / "lost"), *words]) == 2
    assert "the adapter's effect is lost in 4 bits" in capsys.readouterr().err
    assert not (tmp_path / "lost").exists()
    run = shutil.copytree(its_run, tmp_path / "run")
    file = run / "adapter" / "adapter_model.safetensors"
    tensors = {name: 100.0 * t if "lora_B" in name else t for name, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    out = tmp_path / "out"
    assert main(["export", str(run), "--to", str(out), *words]) == 0
    assert "packed by Unsloth, which adds ΔW to 28 weights that were packed before" in capsys.readouterr().out
    base = find_base("builtin:digits-vl")
    config = json.loads((out / "config.json").read_text())
    assert config.pop("quantization_config")["bnb_4bit_quant_type"] == "nf4"
    assert config == json.loads((base.folder / "config.json").read_text())
    changes = read_adapter(run / "adapter", base)
    with pytest.raises(ExportError, match="is not its merged weight in NF4"):  # W + ΔW is not what Unsloth packs
        verify_four_bit.check_packed(
            base,
            out,
            lambda name: read_tensor(base.tensors[name], name) + (changes[name].delta() if name in changes else 0),
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it loads in 4 bits")
def test_where_it_loads_no_4_bits_it_is_said(its_run, tmp_path, capsys):
    words = ["--to", str(tmp_path / "out"), "--saver", "unsloth", "--format", "merged-4bit"]
    assert main(["export", str(its_run), *words]) == 2
    assert "--saver unsloth: Unsloth loads no model in 4 bits here" in capsys.readouterr().err


@pytest.fixture
def llama_cpp():
    """A folder of llama.cpp with a converter, and a quantiser that is looked for and not needed."""
    pytest.importorskip("gguf")  # which the converter writes with
    LLAMA_CPP.mkdir()
    shutil.copy(Path(__file__).parents[1] / "export" / "llama_cpp_standin.py", LLAMA_CPP / "convert_hf_to_gguf.py")
    (LLAMA_CPP / "llama-quantize").write_text("#!/bin/sh\necho usage\n")
    (LLAMA_CPP / "llama-quantize").chmod(0o755)
    yield LLAMA_CPP
    shutil.rmtree(LLAMA_CPP)


def test_its_gguf_files_are_made_and_compared_without_a_network(its_run, tmp_path, llama_cpp, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("requests.sessions.Session.request", lambda *words, **_: asked.append(words))
    monkeypatch.chdir(tmp_path)
    words = ["--saver", "unsloth", "--format", "gguf", "--prompts", "1"]
    assert main(["export", str(its_run), "--to", "digits", *words]) == 0
    assert {file.name for file in (tmp_path / "digits").iterdir()} == {"digits.gguf", "mmproj-digits.gguf", "README.md"}
    assert [file.name for file in tmp_path.iterdir()] == ["digits"]
    said = capsys.readouterr().out
    assert "28 adapted weights are W + ΔW to 2 units in the last place" in said
    assert "the adapted weights of the language model are the merged ones" in said
    assert asked == []


def test_without_llama_cpp_it_fetches_none(its_run, tmp_path, llama_cpp, capsys):
    (llama_cpp / "llama-quantize").unlink()
    words = ["--to", str(tmp_path / "out"), "--saver", "unsloth", "--format", "gguf"]
    assert main(["export", str(its_run), *words]) == 2
    said = capsys.readouterr().err
    assert "Unsloth finds no llama.cpp that is ready" in said
    assert (
        "set LLAMA_CPP_DIR to a folder of llama.cpp that holds convert_hf_to_gguf.py and a built llama-quantize" in said
    )
    assert not list(tmp_path.iterdir())
