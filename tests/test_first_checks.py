"""Mistakes that names alone show are told before torch is imported, which takes many seconds."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sharevl_lite.config_model import LoraSection, ModelSection
from sharevl_lite.policy.adapter_start import check_start

DEMO = str(Path(__file__).parents[1] / "configs" / "digits_cpu.yaml")
ASKED = """
import contextlib, io, json, sys
from pathlib import Path
from sharevl_lite.atomic import locked
from sharevl_lite.cli import main

answers = []
with locked(Path("runs/busy")):
    for words in json.loads(sys.argv[1]):
        told = io.StringIO()
        with contextlib.redirect_stderr(told):
            code = main(words)
        heavy = [name for name in ("torch", "transformers", "datasets") if name in sys.modules]
        answers.append([code, told.getvalue(), heavy])
print(json.dumps(answers))
"""
TRAIN = ["train", DEMO, "--output-dir", "runs", "--name"]
MISTAKES = {
    "a run is there": ([*TRAIN, "old"], "runs/old already holds a run; continue it with --resume auto"),
    "a run is under way": ([*TRAIN, "busy"], "runs/busy: another process trains in it; wait for it"),
    "no checkpoint": ([*TRAIN, "new", "--resume", "no/x"], "--resume no/x: no such folder"),
    "no training data": ([*TRAIN, "new", "--data.train", "nope.jsonl"], "nope.jsonl: no such file or folder"),
    "no held-out data": ([*TRAIN, "new", "--data.eval", "nope.jsonl"], "nope.jsonl: no such file or folder"),
    "no built-in data": ([*TRAIN, "new", "--data.train", "builtin:a"], "builtin:a: no such built-in dataset"),
    "no such split": ([*TRAIN, "new", "--data.train", "data"], "no file name starts with the split 'train'"),
    "no reward": ([*TRAIN, "new", "--reward.functions", "[{path: no.py:f, weight: 1}]"], "configs/no.py; paths start"),
    "no model": ([*TRAIN, "new", "--model.path", "./mymodel"], "cannot load './mymodel' (no such folder)"),
    "no tracker": ([*TRAIN, "new", "--train.report-to", "[wandb]"], "pip install wandb"),
    "no start": ([*TRAIN, "new", "--model.lora.start-from", "runs/a"], "model.lora.start_from: runs/a: no such folder"),
    "no adapter": (
        [*TRAIN, "new", "--model.lora.start-from", "data"],
        "data holds no adapter (no adapter_model.safeten",
    ),
    "no end yet": (
        [*TRAIN, "new", "--model.lora.start-from", "runs/on"],
        "runs/on/checkpoints/checkpoint-4",
    ),
    "no scale": (
        [*TRAIN, "new", "--model.lora.start-from", "bare"],
        "bare holds no adapter (adapter_config.json: 'lora_alpha",
    ),
    "another rank": (
        [*TRAIN, "new", "--model.lora.start-from", "rank"],
        "rank has rank 8, alpha 16.0; the recipe has ran",
    ),
    "another base": (
        [*TRAIN, "new", "--model.lora.start-from", "base"],
        "reads a width of 64, the model's 128). It was ma",
    ),
    "another depth": (
        [*TRAIN, "new", "--model.lora.start-from", "deep"],
        "it is for 9 layers of a text model, and the mod",
    ),
    "other layers": (
        [*TRAIN, "new", "--model.lora.start-from", "good", "--model.lora.target-modules", "[v_proj]"],
        "it adapts q_proj; model.lora.target_modules v_proj",
    ),
    "half an adapter": ([*TRAIN, "new", "--model.lora.start-from", "half"], "adapter_model.safetensors is damaged ("),
    "a start, dry": (
        ["train", DEMO, "--dry-run", "--model.lora.start-from", "rank"],
        "has rank 8, alpha 16.0; the rec",
    ),
    "a dry run": (["train", DEMO, "--dry-run", "--data.train", "nope.jsonl"], "nope.jsonl: no such file or folder"),
    "no run to ask": (["eval", "runs/nothere", "--data", "x.jsonl"], "runs/nothere: no such run, checkpoint or model"),
    "nothing to ask": (["eval", "builtin:digits-vl"], "nothing to evaluate on: give --data"),
    "no data to ask": (["eval", "builtin:digits-vl", "--data", "x.jsonl"], "x.jsonl: no such file or folder"),
    "a full folder": (["export", "runs/old", "--to", "data"], "--to data: the folder is not empty"),
    "no run to export": (["export", "runs/nothere", "--to", "model"], "runs/nothere: no such folder"),
    "a size": (["export", "runs/old", "--to", "model", "--max-shard-size", "5"], "--max-shard-size 5: write it as 5GB"),
}


def adapter(folder, *, rank=16, width=128, depth=4):
    """An adapter on q_proj as PEFT saves it: for the demo's model as it is by default."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"r": rank, "lora_alpha": 2.0 * rank, "base_model_name_or_path": "Some/Model"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.model.language_model.layers.{}.self_attn.q_proj.lora_A.weight"
    tensors = {name.format(layer): np.zeros((rank, width), np.float32) for layer in range(depth)}
    save_file(tensors, str(folder / "adapter_model.safetensors"))


def write_adapters(folder):
    adapter(folder / "good")
    adapter(folder / "rank", rank=8)
    adapter(folder / "base", width=64)
    adapter(folder / "deep", depth=9)
    adapter(folder / "bare")
    (folder / "bare" / "adapter_config.json").write_text('{"r": 16}')
    adapter(folder / "half")
    whole = (folder / "half" / "adapter_model.safetensors").read_bytes()
    (folder / "half" / "adapter_model.safetensors").write_bytes(whole[:-9])
    adapter(folder / "runs" / "on" / "checkpoints" / "checkpoint-4")
    (folder / "runs" / "on" / "recipe.yaml").write_text("name: on\n")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """All of them asked in one process: (exit code, errors, heavy modules by then)."""
    folder = tmp_path_factory.mktemp("asked")
    for name in ("data", "runs/busy", "runs/old/adapter"):
        (folder / name).mkdir(parents=True)
    (folder / "data" / "test.jsonl").write_text("{}\n")
    (folder / "runs" / "old" / "recipe.yaml").write_text("name: old\n")
    (folder / "runs" / "old" / "metrics.jsonl").write_text('{"step": 1, "loss": 0.0}\n')
    write_adapters(folder)
    asked = json.dumps([words for words, _ in MISTAKES.values()])
    command = [sys.executable, "-c", ASKED, asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert not (folder / "runs" / "new").exists()
    return dict(zip(MISTAKES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_cheap_mistake_waits_for_no_heavy_import(answers, mistake):
    code, errors, heavy = answers[mistake]
    assert (code, heavy) == (2, [])
    assert errors.startswith("sharevl-lite: ")
    assert MISTAKES[mistake][1] in errors


def test_an_adapter_that_fits_is_let_through(tmp_path):
    """Of a run as of a folder, for a model that is known, and for one whose config.json is not on this machine."""
    adapter(tmp_path / "good")
    adapter(tmp_path / "run" / "adapter")
    adapter(tmp_path / "first", depth=1)
    for name, model, target in (
        ("good", "builtin:digits-vl", "all-linear"),
        ("run", "builtin:digits-vl", ["self_attn.q_proj"]),
        ("good", "No/Such-Model", "all-linear"),
        ("first", "builtin:digits-vl", ["layers.0.self_attn.q_proj"]),
        ("first", "builtin:digits-vl", r".*layers\.0\.self_attn\.q_proj"),
    ):
        lora = LoraSection(rank=16, alpha=32, target_modules=target, start_from=str(tmp_path / name))
        check_start(ModelSection(path=model, lora=lora))


def test_a_run_that_goes_on_does_not_need_what_it_began_with(tmp_path):
    from sharevl_lite.first_checks import check_start as check_train
    from sharevl_lite.policy.errors import PolicyError
    from sharevl_lite.recipes import load_recipe

    recipe = load_recipe(DEMO, {"name": "run", "output_dir": str(tmp_path), "model.lora.start_from": "gone"})
    with pytest.raises(PolicyError, match="gone: no such folder"):
        check_train(recipe, "auto")
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "summary.json").write_text(json.dumps({"rollouts": recipe.train.rollouts}))
    check_train(recipe, "auto")  # finished: its figures are shown
    (tmp_path / "run" / "summary.json").unlink()
    adapter(tmp_path / "run" / "checkpoints" / "checkpoint-2")
    check_train(recipe, "auto")
