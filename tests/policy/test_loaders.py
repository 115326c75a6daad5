"""What the loaders refuse, and how they say it."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from test_packed_scores import ALL, make_case, packed_scores
from tiny_models import FAMILIES, tiny_model

from sharevl_lite.cli import main
from sharevl_lite.config_model import ModelSection
from sharevl_lite.errors import INSTALL_GPU, INSTALL_UNSLOTH
from sharevl_lite.policy.errors import PolicyError
from sharevl_lite.policy.folder import is_missing
from sharevl_lite.policy.fused import stock_layers
from sharevl_lite.policy.hf import dtype_of, load_policy, resolve_model_path
from sharevl_lite.policy.unsloth import check_vision_tower
from sharevl_lite.recipes import RecipeError, load_recipe
from sharevl_lite.rewrite.errors import VariantsError
from sharevl_lite.rewrite.hf import TransformersModel


@pytest.fixture
def recipe(tmp_path):
    """`recipe(text)`: a file of the digits model and data with this text added."""

    def write(text):
        file = tmp_path / "recipe.yaml"
        file.write_text("data: {train: 'builtin:digits'}\n" + text)
        return str(file)

    return write


def message(capsys):
    return " ".join(capsys.readouterr().err.split())


def test_an_error_without_text_is_told_by_its_type(monkeypatch):
    def refuse(*_, **__):
        raise OSError

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    with pytest.raises(PolicyError, match=r"cannot load 'm' \(no such path here, .*: OSError\)"):
        load_policy(ModelSection(path="m"), seed=0)
    with pytest.raises(VariantsError, match=r"hf:m: cannot be loaded \(OSError\)"):
        TransformersModel("m", batch_size=1)._loaded  # noqa: B018


def test_unsloth_that_is_missing_is_named_before_anything_is_loaded(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sharevl_lite.policy.unsloth.find_spec", lambda name: None)
    file = recipe("model: {path: nowhere/at-all, loader: unsloth}\n")
    for engine, install in (("hf", INSTALL_UNSLOTH), ("vllm", INSTALL_GPU)):
        assert main(["train", file, "--output-dir", str(tmp_path), "--rollout.engine", engine]) == 2
        assert f"model.loader: Unsloth is not installed; {install}, or choose model.loader: hf" in message(capsys)
    assert "in an environment of its own, pip install 'sharevl-lite[unsloth]' (in a checkout" in INSTALL_UNSLOTH


def test_unsloth_that_does_not_start_says_why(recipe, tmp_path, capsys, monkeypatch):
    package = tmp_path / "path" / "unsloth"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise NotImplementedError('You need a GPU.')\n")
    monkeypatch.syspath_prepend(str(package.parent))
    file = recipe("model: {path: 'builtin:digits-vl', loader: unsloth}\n")
    assert main(["train", file, "--output-dir", str(tmp_path)]) == 2
    assert "model.loader: Unsloth does not start here (You need a GPU.)" in message(capsys)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rollout: {engine: unsloth}", "rollout.engine: unsloth samples with the weights of model.loader: unsloth"),
        ("model: {load_in_4bit: true, dtype: float32}", "model.load_in_4bit computes in half precision"),
        ("model: {checkpointing_layers: 2}", "checkpointing_layers needs gradient_checkpointing: true"),
        ("share: {num_variants: 1, num_responses: 1}", "num_responses: 1 compares one reward with itself, so nothing"),
        ("share: {num_responses: 1, levels: local}", "one reward of each of the 2 variants alone with itself"),
        (
            "rollout: {overlap: true}",
            "rollout.overlap needs rollout.engine: server; hf samples where the policy trains",
        ),
    ],
)
def test_choices_that_do_not_go_together(recipe, text, told):
    with pytest.raises(RecipeError, match=told):
        load_recipe(recipe(text))


def test_one_response_to_each_of_several_variants_can_be_compared(recipe):
    for text in ("share: {num_responses: 1}", "share: {num_responses: 1, levels: global}", "share: {num_variants: 1}"):
        load_recipe(recipe(f"model: {{path: 'builtin:digits-vl'}}\n{text}"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_four_bits_need_a_gpu():
    with pytest.raises(PolicyError, match=r"model\.load_in_4bit needs a GPU"):
        load_policy(ModelSection(path="builtin:digits-vl", load_in_4bit=True), seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_vision_tower_that_was_cut_is_noticed(family):
    model = tiny_model(family)
    check_vision_tower(model)
    projection = model.model.visual.blocks[1].attn.qkv
    width = projection.weight.shape[1]
    projection.weight = torch.nn.Parameter(projection.weight[:width].clone())
    with pytest.raises(
        PolicyError, match=rf"is cut \(block 1: qkv of {width} rows for a width of {width}, not {3 * width}\)"
    ):
        check_vision_tower(model)


@pytest.mark.parametrize(
    ("section", "device", "bf16", "expected"),
    [
        ({}, "cpu", False, torch.float32),
        ({}, "cuda", True, torch.bfloat16),
        ({}, "cuda", False, torch.float32),
        ({"load_in_4bit": True}, "cuda", True, torch.bfloat16),
        ({"load_in_4bit": True}, "cuda", False, torch.float16),
        ({"dtype": "float16"}, "cuda", True, torch.float16),
    ],
)
def test_the_precision_that_a_device_gets(monkeypatch, section, device, bf16, expected):
    card = SimpleNamespace(major=8 if bf16 else 7, minor=0 if bf16 else 5)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)  # a T4 emulates it
    assert dtype_of(ModelSection(**section), torch.device(device)) == expected


def test_leaving_the_casts_to_autocast_changes_no_bit():
    """PEFT's own way widens every input to the adapter's float32 first."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from test_packed_scores import ALL, gradients, make_case, packed_scores

    policy = load_policy(ModelSection(path="builtin:digits-vl", dtype="bfloat16"), seed=0).train()
    layers = [module for module in policy.modules() if isinstance(module, BaseTunerLayer)]
    assert layers
    assert not any(layer.cast_input_dtype_enabled for layer in layers)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.05)
    case = make_case(policy)
    with stock_layers(policy.model):  # fused ones do not ask PEFT
        found = packed_scores(policy, case, ALL)
        slopes = gradients(policy, found)
        for layer in layers:
            layer.cast_input_dtype_enabled = True
        expected = packed_scores(policy, case, ALL)
        assert torch.equal(torch.cat(found), torch.cat(expected))
        for name, slope in gradients(policy, expected).items():
            assert torch.equal(slopes[name], slope), name


@pytest.mark.parametrize(("layers", "again"), [(None, 4), (1, 1), (3, 3), (9, 4)])
def test_as_many_layers_are_recomputed_as_were_asked_for(layers, again):
    section = ModelSection(path="builtin:digits-vl", gradient_checkpointing=True, checkpointing_layers=layers)
    policy = load_policy(section, seed=0).train()
    blocks = policy.base.model.language_model.layers
    runs = [0] * len(blocks)
    for place, block in enumerate(blocks):

        def count(*_, place=place):
            runs[place] += 1

        block.mlp.register_forward_pre_hook(count)
    case = make_case(policy)
    sum(scores.sum() for scores in packed_scores(policy, case, ALL)).backward()
    assert runs == [2] * again + [1] * (len(blocks) - again)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """What lies beside a recipe, none of it a model; here is where the commands run."""
    monkeypatch.chdir(tmp_path)
    for name, files in {
        "mine": ["train.jsonl"],
        "runs/first": ["recipe.yaml", "tokenizer.json"],
        "runs/first/adapter": ["adapter_config.json"],
        "lora": ["adapter_config.json"],
        "odd": ["config.json"],
    }.items():
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).write_text("{}")
    (tmp_path / "mine.gguf").write_text("")


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("mine", r"'mine' \(it is a folder without config\.json\)"),
        ("mine.gguf", r"'mine\.gguf' \(it is a file\)"),
        ("runs/first", r"\(it is a run, not a model\); export it \(sharevl-lite export runs/first --to DIR\)"),
        ("runs/first/adapter", r"\(it is an adapter, not a model\); export it \(sharevl-lite export runs/first --to"),
        ("lora", r"\(it is an adapter, not a model\); merge it .* model\.lora\.start_from: lora"),
        ("odd", r"cannot load 'odd' \(Unrecognized model"),
        ("./nothere", r"'\./nothere' \(no such folder\)"),
        ("~/nothere", r"no such folder; ~ is not expanded here"),
        ("runs/nothere", r"'runs/nothere' \(no such folder\)"),
    ],
)
def test_a_folder_that_is_no_model_is_told_for_what_it_is(folders, path, told):
    with pytest.raises(PolicyError, match=told):
        load_policy(ModelSection(path=path), seed=0)


def test_ids_of_the_hub_are_no_missing_folders(folders, tmp_path):
    """Whatever lies in a folder that is called like an organisation, as long as that is no run."""
    ids = ("Qwen/B", "org/name", "gpt2", "mine/model")
    assert not any(map(is_missing, ids))
    (tmp_path / "Qwen" / "A").mkdir(parents=True)
    (tmp_path / "Qwen" / "A" / "config.json").write_text("{}")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "recipe.yaml").write_text("name: my own recipe, of no run yet")
    assert not any(map(is_missing, (*ids, "Qwen/A", "mine")))


def test_names_among_runs_are_paths(folders, tmp_path, monkeypatch):
    paths = ("./a", "../a", "~/a", "/a", "a/b/c", "a b", "runs/nothere", "runs/first/nothere", "first")
    assert [path for path in paths if not is_missing(path)] == []
    (tmp_path / "out").mkdir()
    (tmp_path / "runs" / "first").rename(tmp_path / "out" / "first")
    assert is_missing("out/nothere"), "beside a run"
    assert is_missing("runs/nothere"), "where runs are written"
    assert not is_missing("first"), "there is no such run any more"
    monkeypatch.chdir(tmp_path / "out")
    assert is_missing("nothere")
    assert is_missing("first/nothere"), "in a run"
    assert not is_missing("org/name")


@pytest.mark.parametrize("damage", ["weights", "processor"])
def test_a_model_that_is_incomplete_is_no_trace(tmp_path, damage):
    model = tmp_path / "model"
    shutil.copytree(resolve_model_path("builtin:digits-vl"), model)
    if damage == "weights":
        (weights,) = model.glob("*.safetensors")
        weights.write_bytes(weights.read_bytes()[:100])
        told = "cannot load .*(header|deserializ)"
    else:
        for file in (*model.glob("processor_config.json"), *model.glob("preprocessor_config.json")):
            file.unlink()
        told = r"(holds no processor of images|cannot load .*)"
    with pytest.raises(PolicyError, match=told):
        load_policy(ModelSection(path=str(model)), seed=0)


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (r".*patch_embed\.proj", r"adapts model.visual.patch_embed.proj, a Conv3d: adapters are for linear layers"),
        (r".*embed_tokens", r"adapts model.language_model.embed_tokens, a Embedding|adapts the output layer"),
    ],
)
def test_an_expression_that_adapts_more_than_linear_layers_is_refused(wanted, told):
    section = ModelSection(path="builtin:digits-vl", lora={"rank": 2, "target_modules": rf"{wanted}|.*\.q_proj"})
    with pytest.raises(PolicyError, match=told):
        load_policy(section, seed=0)
