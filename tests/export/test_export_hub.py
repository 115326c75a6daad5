"""The real Hub client sends an export to a server on this machine, and fetches it again."""

import json
import re
import shutil
import socket
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from hub_upload_server import TOKEN, serve_uploads
from huggingface_hub import ModelCard, snapshot_download
from safetensors.torch import load_file, save
from transformers import AutoModelForImageTextToText

from sharevl_lite import hub as module
from sharevl_lite.cli import main
from sharevl_lite.policy.hf import resolve_model_path

REPO = "someone/digits"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "RETRY_SECONDS", (0.0,))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # the client's own pauses
    with serve_uploads() as (endpoint, hub):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        urls = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", urls)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def downloaded(folder):
    snapshot_download(REPO, local_dir=folder)
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def written(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("lfs", [False, True], ids=["in the commit", "by LFS"])
def test_what_comes_back_is_what_was_exported(run, export, hub, tmp_path, monkeypatch, lfs, capsys):
    if lfs:
        hub.lfs = True
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    out = tmp_path / "out"
    said = export(run, out, "--format", "lora", "--push-to-hub", REPO, "--private")
    assert f"uploaded  {huggingface_hub.constants.ENDPOINT}/{REPO}" in said
    assert f"--lora-modules digits={REPO}" in said
    assert hub.private[REPO]
    assert bool(hub.objects) == lfs
    assert hub.files(REPO) == written(out) == downloaded(tmp_path / "again")
    assert "path = 'someone/digits'" in ModelCard.load(tmp_path / "again" / "README.md").text.replace('"', "'")
    heard = capsys.readouterr()
    assert TOKEN not in said + heard.out + heard.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


@pytest.mark.parametrize("where", ["breaking", "failing"], ids=["while asking", "while committing"])
def test_a_fault_of_the_server_is_overcome(run, export, hub, tmp_path, where):
    hub.status = 500
    setattr(hub, where, 1)
    export(run, tmp_path / "out", "--format", "lora", "--push-to-hub", REPO)
    assert getattr(hub, where) == 0
    assert hub.files(REPO) == written(tmp_path / "out")


def test_a_hub_that_cannot_be_reached_is_no_matter_of_names_and_rights(run, tmp_path, capsys, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nowhere)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    words = ["--format", "lora", "--push-to-hub", REPO]
    assert main(["export", str(run), "--to", str(tmp_path / "out"), *words]) == 2
    said = capsys.readouterr().err
    assert f"--push-to-hub: {nowhere} cannot be reached" in said
    assert "check the connection and HF_ENDPOINT" in said
    assert TOKEN not in said


def test_a_fault_that_stays_leaves_the_export_and_says_how_to_go_on(run, hub, tmp_path, capsys):
    hub.breaking = 1000
    out = tmp_path / "out"
    assert main(["export", str(run), "--to", str(out), "--format", "lora", "--push-to-hub", REPO]) == 2
    said = capsys.readouterr().err
    assert f"it is whole on the disk, and goes on where it was with: hf upload {REPO} {out}" in said
    assert TOKEN not in said
    assert (out / "adapter_model.safetensors").is_file()


def test_shards_of_an_older_export_go(run, export, hub, tmp_path):
    """An index that stayed behind would name them, and vLLM would load the old weights."""
    export(run, tmp_path / "many", "--max-shard-size", "3MB", "--push-to-hub", REPO)
    assert "model.safetensors.index.json" in hub.files(REPO)
    export(run, tmp_path / "one", "--push-to-hub", REPO)
    assert hub.files(REPO) == written(tmp_path / "one")


def test_a_whole_model_takes_the_place_of_the_runs_adapter(run, export, hub, tmp_path):
    """transformers looks for the adapter of an `adapter_config.json` that stayed behind. Weights of the user stay."""
    export(run, tmp_path / "lora", "--format", "lora", "--push-to-hub", REPO)
    theirs = {"loras/style.safetensors": b"1", "loras/model.safetensors": b"2", "model_ema.safetensors": b"3"}
    hub.commits[REPO].append({"message": "", "files": theirs, "deleted": []})
    said = export(run, tmp_path / "merged", "--push-to-hub", REPO)
    assert "replaced  adapter_config.json, adapter_model.safetensors there, of an earlier export" in said
    assert "kept      model_ema.safetensors there: weights that are not of this export" in said
    assert hub.files(REPO) == written(tmp_path / "merged") | theirs
    snapshot_download(REPO, local_dir=tmp_path / "again")
    model, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not report["missing_keys"]
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    stored = load_file(tmp_path / "merged" / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(model.state_dict()[name], stored)


def test_an_adapter_takes_the_place_of_a_whole_model(run, export, hub, tmp_path):
    """vLLM would go on serving the weights beside it."""
    export(run, tmp_path / "merged", "--max-shard-size", "3MB", "--push-to-hub", REPO)
    hub.commits[REPO].append({"message": "", "files": {"digits.gguf": b"g"}, "deleted": []})
    said = export(run, tmp_path / "lora", "--format", "lora", "--push-to-hub", REPO)
    assert re.search(r"replaced  model-00001-of-0000\d.safetensors, .*model.safetensors.index.json there", said)
    assert "kept      digits.gguf there" in said
    held = hub.files(REPO)
    assert {name for name in held if "safetensors" in name} == {"adapter_model.safetensors"}
    assert held.items() >= written(tmp_path / "lora").items()


def test_the_command_that_takes_up_an_upload_names_what_must_go(run, export, hub, tmp_path, capsys):
    export(run, tmp_path / "lora", "--format", "lora", "--push-to-hub", REPO)
    hub.failing = 2
    assert main(["export", str(run), "--to", str(tmp_path / "out"), "--prompts", "1", "--push-to-hub", REPO]) == 2
    said = capsys.readouterr().err
    assert said.rstrip().endswith(
        f"hf upload {REPO} {tmp_path / 'out'} --delete=adapter_config.json --delete=adapter_model.safetensors"
    )


@pytest.mark.parametrize(
    ("words", "token", "told"),
    [
        ([REPO], None, "--push-to-hub: there is no Hub token; run `hf auth login` or set HF_TOKEN"),
        ([REPO], "hf_of_somebody_else", f"--push-to-hub: cannot use the repository {REPO} ("),
        (["nobody/digits"], TOKEN, "--push-to-hub: cannot use the repository nobody/digits ("),
        (["some one/digits"], TOKEN, "--push-to-hub: cannot use the repository some one/digits ("),
    ],
    ids=["no token", "a wrong token", "no rights", "no name"],
)
def test_what_will_not_do_is_told_before_the_merge(run, export, hub, tmp_path, monkeypatch, words, token, told):
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("sharevl_lite.export.writers.write_merged", None)  # would raise
    assert told in export(run, tmp_path / "out", "--push-to-hub", *words, code=2)


def test_a_public_repository_is_not_taken_for_a_private_one(run, export, hub, tmp_path):
    hub.commits[REPO] = []
    said = export(run, tmp_path / "out", "--push-to-hub", REPO, "--private", code=2)
    assert f"the repository {REPO} is there already, and public" in said


def test_a_base_of_the_hub_is_named_in_card_and_adapter(run, export, hub, tmp_path, monkeypatch):
    files = {p.name: p.read_bytes() for p in Path(resolve_model_path("builtin:digits-vl")).iterdir()}
    files["README.md"] = b"---\nlicense: mit\n---\n"
    hub.commits["maker/base"] = [{"message": "", "files": files, "deleted": []}]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    export(run, tmp_path / "merged", "--base", "maker/base")
    front = ModelCard.load(tmp_path / "merged" / "README.md").data.to_dict()
    assert (front["base_model"], front["base_model_relation"], front["license"]) == ("maker/base", "finetune", "mit")
    export(run, tmp_path / "lora", "--base", "maker/base", "--format", "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "maker/base"
    card = ModelCard.load(tmp_path / "lora" / "README.md")
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert "from_pretrained('maker/base'" in card.text.replace('"', "'")


def test_a_base_of_the_hub_that_changed_since_the_training_is_refused(run, export, hub, tmp_path, monkeypatch):
    """Its newest commit is taken, whatever the training had; the cache may still hold that."""
    source = Path(resolve_model_path("builtin:digits-vl"))
    files = {p.name: p.read_bytes() for p in source.iterdir()}
    hub.commits["maker/base"] = [{"message": "", "files": files, "deleted": []}]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("path: builtin:digits-vl", "path: maker/base"))
    export(run, tmp_path / "first", "--format", "lora")
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1.0
    hub.commits["maker/base"].append({"message": "", "files": {"model.safetensors": save(weights)}, "deleted": []})
    said = export(run, tmp_path / "out", code=2)
    commit = f"{2:040x}"
    assert f"maker/base (commit {commit}): its weights are not those the run was trained on" in said
    (older,) = re.findall(r"That model lies in the cache here: --base (\S+)", said)
    assert "the base model's weights are those" in export(run, tmp_path / "out", "--format", "lora", "--base", older)
    shutil.rmtree(older)
    assert "Fetch that model (hf download maker/base --revision COMMIT" in export(run, tmp_path / "again", code=2)
