"""Mistakes that names alone show are told before torch is imported, which takes many seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    "a dry run": (["train", DEMO, "--dry-run", "--data.train", "nope.jsonl"], "nope.jsonl: no such file or folder"),
    "no run to ask": (["eval", "runs/nothere", "--data", "x.jsonl"], "runs/nothere: no such run, checkpoint or model"),
    "nothing to ask": (["eval", "builtin:digits-vl"], "nothing to evaluate on: give --data"),
    "no data to ask": (["eval", "builtin:digits-vl", "--data", "x.jsonl"], "x.jsonl: no such file or folder"),
    "a full folder": (["export", "runs/old", "--to", "data"], "--to data: the folder is not empty"),
    "no run to export": (["export", "runs/nothere", "--to", "model"], "runs/nothere: no such folder"),
    "a size": (["export", "runs/old", "--to", "model", "--max-shard-size", "5"], "--max-shard-size 5: write it as 5GB"),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """All of them asked in one process: (exit code, errors, heavy modules by then)."""
    folder = tmp_path_factory.mktemp("asked")
    for name in ("data", "runs/busy", "runs/old/adapter"):
        (folder / name).mkdir(parents=True)
    (folder / "data" / "test.jsonl").write_text("{}\n")
    (folder / "runs" / "old" / "recipe.yaml").write_text("name: old\n")
    (folder / "runs" / "old" / "metrics.jsonl").write_text('{"step": 1, "loss": 0.0}\n')
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
