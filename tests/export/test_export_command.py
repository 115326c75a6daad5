"""The command from a run to a folder that other programs load; and what happens when it is stopped in the middle."""

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from sharevl_lite.cli import main
from sharevl_lite.export import publish
from sharevl_lite.export.errors import ExportError
from sharevl_lite.policy.hf import resolve_model_path
from sharevl_lite.recipes import load_recipe
from sharevl_lite.run import train
from sharevl_lite.wording import typed_command

BASE_FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def run_snippet(folder, monkeypatch):
    """Runs the card's program unchanged, where the folder and a picture lie."""
    (snippet,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    pixels = np.random.default_rng(0).integers(256, size=(56, 112, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder.parent / "picture.png")
    monkeypatch.chdir(folder.parent)
    exec(compile(snippet, "README.md", "exec"), {})


def test_a_merged_model(run, export, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", os.devnull)  # the command is not on it
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is taken
    said = export(run, out)
    assert {path.name for path in out.iterdir()} == {*BASE_FILES, "model.safetensors", "README.md"}
    base = resolve_model_path("builtin:digits-vl")
    for name in BASE_FILES:
        assert (out / name).read_bytes() == Path(base, name).read_bytes()
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode
    assert f"vllm serve {out}" in said
    command = typed_command()
    assert f"{command} eval {out} --recipe {run / 'recipe.yaml'}" in said
    run_snippet(out, monkeypatch)
    assert capsys.readouterr().out.strip()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main(["export", str(run), "--to", str(out)]) == 2
    assert f"--to {out}: the folder is not empty" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_finished_run_names_the_command(small_run):
    console = Console(record=True, width=200)
    train(load_recipe(small_run / "recipe.yaml"), resume="auto", console=console)
    assert f"export {small_run} --to DIR" in console.export_text()


def test_an_adapter(run, export, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    said = export(run, out, "--format", "lora")
    expected = {*BASE_FILES, "adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert {path.name for path in out.iterdir()} == expected - {"config.json", "generation_config.json"}
    assert (out / "adapter_model.safetensors").read_bytes() == (
        run / "adapter" / "adapter_model.safetensors"
    ).read_bytes()
    assert f"--enable-lora --max-lora-rank 16 --lora-modules out={out}" in said
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "builtin:digits-vl"
    run_snippet(out, monkeypatch)
    assert capsys.readouterr().out.strip()


def test_an_adapter_on_a_local_base_names_no_folder_of_this_machine(run, export, tmp_path, monkeypatch, capsys):
    base = shutil.copytree(resolve_model_path("builtin:digits-vl"), tmp_path / "models" / "mine")
    out = tmp_path / "out"
    export(run, out, "--format", "lora", "--base", str(base))
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "mine"
    card = out / "README.md"
    assert "vllm serve PATH/TO/mine --enable-lora" in card.read_text()
    assert "Put the folder of the base model for `PATH/TO/mine`." in card.read_text()
    for file in (card, out / "adapter_config.json"):
        assert str(tmp_path) not in file.read_text()
    card.write_text(card.read_text().replace("base = 'PATH/TO/mine'", f"base = {str(base)!r}"))
    run_snippet(out, monkeypatch)
    assert capsys.readouterr().out.strip()


def other_weights(base):
    """Changes one number of a model; its shapes and the adapter's effect stay."""
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1.0
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})


def test_a_base_that_changed_since_the_training_is_refused(run, export, tmp_path):
    """The merge would be verified against the new one. Named with --base it is told, here and in the card."""
    base = shutil.copytree(resolve_model_path("builtin:digits-vl"), tmp_path / "base")
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("path: builtin:digits-vl", f"path: {base}"))
    same = "the base model's weights are those the run was trained on"
    assert f"verified: {same}" in export(run, tmp_path / "same", "--format", "lora")
    assert f"- {same}" in (tmp_path / "same" / "README.md").read_text()
    other_weights(base)
    said = export(run, tmp_path / "out", "--format", "lora", code=2)
    assert f"{base}: its weights are not those the run was trained on, by the digests in its data.json" in said
    assert "Name the folder of that model with --base" in said
    said = export(run, tmp_path / "named", "--format", "lora", "--base", str(base))
    told = "the weights of base are not those the run was trained on"
    assert said.index(told) < said.index("verified: ")
    assert f"- {told}" in (tmp_path / "named" / "README.md").read_text()


def test_a_built_in_base_of_another_version_is_refused(run, export, tmp_path):
    record = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps(record | {"model": {"model.safetensors": "0" * 64}}))
    said = export(run, tmp_path / "out", "--format", "lora", code=2)
    assert "Export with the version of sharevl-lite that trained it" in said
    del record["model"]
    (run / "data.json").write_text(json.dumps(record))
    said = export(run, tmp_path / "out", "--format", "lora")
    assert "it was not checked that the base model is the one the run was trained on: the run kept no digests" in said


def test_a_run_without_rollouts_is_compared_on_its_data(run, export, tmp_path):
    shutil.rmtree(run / "rollouts")
    assert "of 3 prompts with 3 images" in export(run, tmp_path / "out", "--format", "lora", "--prompts", "3")


def test_a_full_disk_is_told_before_anything_is_written(run, export, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 5 * 2**20, 5 * 2**20))
    said = export(run, tmp_path / "out", code=2)
    # 7.2 MiB of weights and a margin of 64
    assert f"--to {tmp_path / 'out'}: the export needs 0.07 GiB, the disk of {tmp_path} has 0.00 GiB free" in said


@pytest.mark.parametrize(("kind", "most"), [("merged-16bit", 3_000_000), ("lora", 50_000)])
def test_a_disk_that_refuses_on_the_way_leaves_nothing_and_is_told(run, export, tmp_path, kind, most):
    """By a limit on the size of files, which safetensors meets in one way and Python in the other."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        said = export(run, tmp_path / "out", "--format", kind, code=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"--to {tmp_path / 'out'}: File too large; what was written is removed. Free some space" in said


def test_what_to_type_next_can_be_pasted(run, export, tmp_path):
    said = export(run, tmp_path / "my model", "--format", "merged-16bit")
    (line,) = [line for line in said.splitlines() if " eval " in line]
    words = shlex.split(line)
    assert words[words.index("eval") + 1] == str(tmp_path / "my model")
    assert words[words.index("--recipe") + 1] == str(run / "recipe.yaml")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_an_adapter_that_has_diverged_is_told(run, export, tmp_path, number):
    file = run / "adapter" / "adapter_model.safetensors"
    tensors = load_file(str(file))
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] = number
    save_file(tensors, str(file), metadata={"format": "pt"})
    for kind in ("merged-16bit", "lora"):
        said = export(run, tmp_path / kind, "--format", kind, code=2)
        assert f"1 of its {len(tensors)} tensors hold NaN or infinities, such as {name}: the run has diverged" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--private"], "--private is for --push-to-hub"),
        (["--prompts", "0"], "--prompts 0: at least one"),
        (["--tolerance", "1"], "--tolerance 1.0: a share of the adapter's effect"),
        (["--max-shard-size", "5 apples"], "--max-shard-size 5 apples: write it as 5GB or 500MB"),
        (["--push-to-hub", "name"], "--push-to-hub name: give ORG/NAME"),
        (["--model.path", "x"], "export: unknown option --model.path"),
        (["--saver", "unsloth", "--format", "lora"], "--saver unsloth is for merged weights"),
        (["--saver", "unsloth"], "Unsloth is not installed"),
    ],
)
def test_what_cannot_be_meant(run, export, tmp_path, words, told):
    assert told in export(run, tmp_path / "out", *words, code=2)


SLOW = """
import sys, time
from sharevl_lite import cli
from sharevl_lite.export import verify

def slow(*_, **__):
    print("written", flush=True)
    time.sleep(60)

verify.expect = slow
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_nothing_under_the_name(run, export, tmp_path):
    out = tmp_path / "out"
    words = [sys.executable, "-c", SLOW, "export", str(run), "--to", str(out)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert any(line.strip() == "written" for line in process.stdout)
        (left,) = tmp_path.glob(".tmp-*-out")
        assert load_file(str(left / "model.safetensors"))
        with publish.published(out) as other:  # a second export at the same time takes nothing away
            assert left.is_dir()
            (other / "file").write_text("")
        shutil.rmtree(out)
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    assert left.is_dir()
    export(run, out)
    assert (out / "model.safetensors").is_file()
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("way", ["itself", "a link", "the current folder"])
def test_an_empty_folder_is_written_into_and_not_replaced(run, export, tmp_path, monkeypatch, way):
    """It may be a mount point, or what a shell stands in: both outlive no removal."""
    place, asked = tmp_path / "place", tmp_path / "place"
    place.mkdir()
    left = place / ".tmp-0123456789ab-place"  # of a killed export
    left.mkdir()
    (place / "lost+found").mkdir()  # of a mounted disk
    if way == "a link":
        asked = tmp_path / "link"
        asked.symlink_to(place)
    elif way == "the current folder":
        monkeypatch.chdir(place)
        asked = Path(".")
    before = place.stat().st_ino
    said = export(run, asked, "--format", "lora")
    assert place.stat().st_ino == before
    assert {path.name for path in place.iterdir()} == {
        "lost+found",
        *BASE_FILES - {"config.json", "generation_config.json"},
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    assert asked.is_symlink() == (way == "a link")
    shown = place if way == "the current folder" else asked
    assert f"--lora-modules {shown.name}={shown}" in said
    assert "path = 'place'" in (place / "README.md").read_text().replace('"', "'")


def test_the_disk_of_a_folder_that_is_there_is_its_own(run, export, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 0))
    assert f"the disk of {out} has 0.00 GiB free" in export(run, out, code=2)


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_was_filled_meanwhile_is_left_alone(tmp_path, there):
    out = tmp_path / "out"
    if there:
        out.mkdir()
    writing = publish.published(out)
    folder = writing.__enter__()
    (folder / "ours").write_text("")
    out.mkdir(exist_ok=True)
    (out / "theirs").write_text("")
    with pytest.raises(ExportError, match="the folder is not empty"):
        writing.__exit__(None, None, None)
    assert [path.name for path in out.iterdir()] == ["theirs"]
    assert not list(tmp_path.glob(".tmp-*"))


def test_an_interrupt_removes_what_was_written(run, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sharevl_lite.export.verify.expect", interrupted)
    assert main(["export", str(run), "--to", str(tmp_path / "out")]) == 130
    assert not list(tmp_path.glob("*out*"))
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_damaged_adapter_is_named(run, export, tmp_path, file):
    damaged = run / "adapter" / file
    damaged.write_bytes(damaged.read_bytes()[:300])
    assert "the adapter is damaged" in export(run, tmp_path / "out", code=2)


def test_a_place_that_cannot_be_written(run, export, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "cannot be written" in export(run, tmp_path / "file" / "out", code=2)


def test_an_adapters_base_is_named_where_it_is(run, export, tmp_path):
    said = export(run, tmp_path / "out", "--format", "lora")
    folder = said.partition("vllm serve ")[2].split()[0]
    assert (Path(folder) / "config.json").is_file()
    assert folder not in (tmp_path / "out" / "README.md").read_text()


def test_a_type_of_gguf_for_another_format(run, export, tmp_path):
    assert "--gguf-type f32 is for --format gguf" in export(run, tmp_path / "out", "--gguf-type", "f32", code=2)
