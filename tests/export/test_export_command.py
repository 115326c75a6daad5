"""The command from a run to a folder that other programs load; and what happens when it is stopped in the middle."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from sharevl_lite.cli import main
from sharevl_lite.evaluation.document import Evaluation
from sharevl_lite.evaluation.statistics import Figure
from sharevl_lite.export import publish
from sharevl_lite.export.errors import ExportError
from sharevl_lite.export.figures import figures_of
from sharevl_lite.export.source import find_source
from sharevl_lite.policy.hf import adapter_digest, resolve_model_path
from sharevl_lite.recipes import load_recipe
from sharevl_lite.run import train

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
    command = os.path.relpath(Path(sys.executable).with_name("sharevl-lite"))
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


def test_the_card_keeps_texts_and_drops_folders(run, export, tmp_path):
    """A prompt may begin with a slash; a relative path may name the folders above."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["data"] |= {"prompt_template": "/no_think\n{problem} Use 1/2.", "system_prompt": "~ 1/2"}
    recipe["model"]["lora"]["start_from"] = "a/../../home/alice/first"
    recipe["reward"]["functions"] = [{"path": "../../home/alice/rewards.py:short", "weight": 0.0}]
    recipe["rollout"]["server_adapter_dir"] = "/mnt/alice/served"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    protocol = {"data": "../../home/alice/rows.parquet", "prompt_template": "/no_think\n{problem} Use 1/2."}
    evaluated(run, "mine", adapter_sha256=adapter_digest(run / "adapter"), model="models/base", **protocol)
    export(run, tmp_path / "out", "--format", "lora")
    text = ModelCard.load(tmp_path / "out" / "README.md").text
    (kept,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    kept = yaml.safe_load(kept)
    assert kept["data"] == recipe["data"]
    assert kept["model"]["lora"]["start_from"] == "first"
    assert kept["reward"]["functions"][0]["path"] == "rewards.py:short"
    assert kept["rollout"]["server_adapter_dir"] == "served"
    assert "model: models/base; data: rows.parquet; prompt_template: /no_think\n{problem} Use 1/2." in text
    assert "alice" not in text


def evaluated(run, name, **protocol):
    (run / "eval").mkdir(exist_ok=True)
    metrics = {"mean@8": Figure(0.625, 0.5, 0.75, 24), "pass@8": Figure(0.9, None, None, 24)}
    Evaluation(protocol, metrics, {}, {}, {}, {}, ()).write(run / "eval" / f"{name}.json")


def test_the_card(run, export, tmp_path):
    protocol = {"data": "/home/me/rows.parquet", "samples": 8, "seed": 5}
    evaluated(run, "digits", **protocol, adapter_sha256=adapter_digest(run / "adapter"))
    export(run, tmp_path / "out", "--format", "lora")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    front = card.data.to_dict()
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "peft"
    assert front["pipeline_tag"] == "image-text-to-text"
    assert "base_model" not in front  # no name of the Hub
    text = card.text
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert "| accuracy | " in text
    assert f"{last['eval_accuracy']:.3f} |" in text
    assert "4 responses to either; temperature 1.0, top-p 1.0, at most 32 tokens, seed 0" in text
    assert "| mean@8 | 0.625 | 0.500 to 0.750 |" in text
    assert "| pass@8 | 0.900 | - |" in text
    assert "data: rows.parquet; samples: 8; seed: 5" in text
    assert "arXiv preprint arXiv:2505.16673" in text
    (recipe,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    embedded, real = yaml.safe_load(recipe), yaml.safe_load((run / "recipe.yaml").read_text())
    assert embedded["output_dir"] == os.path.basename(real["output_dir"])
    assert {**embedded, "output_dir": real["output_dir"]} == real
    assert str(tmp_path) not in text
    assert "/home/me" not in text


@pytest.mark.parametrize(("rank", "asked"), [(3, "8"), (12, "16"), (600, None)])
def test_vllm_is_told_a_rank_that_it_takes(tiny_run, export, tmp_path, rank, asked):
    run, _ = tiny_run(r=rank)
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("rank: 32", f"rank: {rank}"))
    said = export(run, tmp_path / "out", "--format", "lora")
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (said, card):
        if asked is None:
            assert "vLLM takes adapters of rank 512 at most, and this one has 600" in text
            assert "vllm serve" not in text
        else:
            assert f"--enable-lora --max-lora-rank {asked} --lora-modules" in text


def test_four_bits_pixel_bounds_and_a_system_prompt_are_told(tiny_run, export, tmp_path):
    run, _ = tiny_run()
    recipe = (run / "recipe.yaml").read_text()
    for before, after in (
        ("load_in_4bit: false", "load_in_4bit: true"),
        ("min_pixels: null", "min_pixels: 784"),
        ("max_pixels: null", "max_pixels: 6272"),
        ("system_prompt: null", "system_prompt: Be brief."),
    ):
        assert before in recipe
        recipe = recipe.replace(before, after)
    (run / "recipe.yaml").write_text(recipe)
    said = export(run, tmp_path / "out")
    assert "it was trained against 4-bit weights and is merged into, and compared with, the 16-bit ones" in said
    bounds = """--mm-processor-kwargs '{"size": {"shortest_edge": 784, "longest_edge": 6272}}'"""
    text = ModelCard.load(tmp_path / "out" / "README.md").text
    assert bounds in said
    assert bounds in text
    assert "trained against the base model in 4 bits (NF4)" in text
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(snippet, "README.md", "exec")
    (asked,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    assert "\\boxed{}" in asked  # not doubled, as in a template
    assert "{problem}" in asked
    assert 'processor.image_processor.size["longest_edge"] = 6272' in snippet
    assert 'messages.insert(0, {"role": "system", "content": [{"type": "text", "text": "Be brief."}]})' in snippet


@pytest.mark.parametrize(
    ("files", "front", "sentence"),
    [
        ({}, {}, "Unknown: the base model came without a card or licence file"),
        ({"LICENSE": "free"}, {}, "That of the base model. Its LICENSE lie"),
        (
            {"README.md": "---\nlicense: other\nlicense_name: qwen-research\nlicense_link: LICENSE\n---\n# base\n"},
            {"license": "other", "license_name": "qwen-research", "license_link": "LICENSE"},
            "That of the base model: qwen-research.",
        ),
    ],
)
def test_the_licence_is_the_base_models(run, export, tmp_path, files, front, sentence):
    base = shutil.copytree(resolve_model_path("builtin:digits-vl"), tmp_path / "base")
    for name, content in files.items():
        (base / name).write_text(content)
    export(run, tmp_path / "out", "--base", str(base), "--format", "lora")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert {name: value for name, value in card.data.to_dict().items() if name.startswith("license")} == front
    assert sentence in card.text
    assert (tmp_path / "out" / "LICENSE").exists() == ("LICENSE" in files)


def test_evaluations_that_are_not_of_this_adapter_are_left_out_of_the_card_and_told(run, export, tmp_path):
    """Nor does a file that is none stop an export: of a comparison, of an older program, cut off by a kill."""
    evaluated(run, "mine", adapter_sha256=adapter_digest(run / "adapter"))
    evaluated(run, "earlier", adapter_sha256="0" * 64)
    evaluated(run, "base", adapter_sha256=None)
    evaluated(run, "old")
    for name, text in {"cmp": '{"shared": 3}', "newer": '{"schema_version": 99, "problems": []}', "cut": "{"}.items():
        (run / "eval" / f"{name}.json").write_text(text)
    said = export(run, tmp_path / "out", "--format", "lora")
    assert "cmp.json: not an evaluation" in said
    assert "newer.json: schema version 99" in said
    assert "cut.json: not JSON" in said
    assert (
        f"not in the card: base.json, earlier.json, old.json in {run / 'eval'}, evaluations of another adapter" in said
    )
    assert said.index("cmp.json") < said.index("verified: ")
    text = (tmp_path / "out" / "README.md").read_text()
    assert re.findall(r"\| evaluation `(\w+)`", text) == ["mine"]


def test_what_the_card_says_of_the_training_is_that_of_the_checkpoint(run, export, tmp_path):
    shutil.copytree(run / "adapter", run / "checkpoints" / "checkpoint-1")
    export(run, tmp_path / "first", "--format", "lora", "--checkpoint", "1")
    asked = "1 rollout of 6 problems, 1 update each (the run's recipe asks for 2)."
    assert f"Trained on {asked}" in (tmp_path / "first" / "README.md").read_text()
    export(run, tmp_path / "last", "--format", "lora")
    assert "Trained on 2 rollouts of 6 problems, 1 update each." in (tmp_path / "last" / "README.md").read_text()


def test_the_card_says_how_many_problems_were_asked(run):
    """Not how many might have been: the recipe's number is a bound. Older programs did not keep it."""
    words = (run / "recipe.yaml").read_text()
    assert "  problems: 4\n" in words
    (run / "recipe.yaml").write_text(words.replace("  problems: 4\n", "  problems: 256\n"))
    told = "\n".join(figures_of(find_source(run, "last")).paragraphs)
    assert "Protocol: the first 4 problems of `builtin:digits`" in told
    assert "32 responses in each column." in told
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in metrics:
        record.pop("eval_responses", None)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in metrics))
    told = "\n".join(figures_of(find_source(run, "last")).paragraphs)
    assert "Protocol: the first 4 problems of" in told
    assert "in each column" not in told
    (run / "data.json").write_text('{"problems": 2048, "fingerprint": "f"}')
    told = "\n".join(figures_of(find_source(run, "last")).paragraphs)
    assert "Protocol: the first problems (256 at most) of" in told


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
    assert "it was not checked that the base model is the one the run was trained on: an older version kept no" in said


def test_a_run_without_rollouts_is_compared_on_its_data(run, export, tmp_path):
    shutil.rmtree(run / "rollouts")
    assert "of 3 prompts with 3 images" in export(run, tmp_path / "out", "--format", "lora", "--prompts", "3")


def test_a_full_disk_is_told_before_anything_is_written(run, export, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 5 * 2**20, 5 * 2**20))
    said = export(run, tmp_path / "out", code=2)
    # 7.2 MiB of weights and a margin of 64
    assert f"--to {tmp_path / 'out'}: the export needs 0.07 GiB, the disk of {tmp_path} has 0.00 GiB free" in said


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
