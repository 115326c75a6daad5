"""A run that was stopped, killed or interrupted goes on to the same numbers, bit for bit on a CPU."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sharevl_lite import metrics_log, store
from sharevl_lite.checkpoints import list_checkpoints

# Wall-clock figures differ between two runs of the same numbers.
MEASURED = ("seconds", "memory", "tokens_per_second", "runtime")

pytestmark = pytest.mark.slow


def figures(run: Path) -> list[dict]:
    records = metrics_log.read(run / "metrics.jsonl")
    return [{k: v for k, v in record.items() if not any(word in k for word in MEASURED)} for record in records]


def assert_same_run(one: Path, other: Path) -> None:
    assert figures(one) == figures(other)
    first, second = (load_file(str(run / "adapter" / "adapter_model.safetensors")) for run in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for split in ("train", "eval"):
        tables = [store.read(run, split).drop_columns(["run_id"]) for run in (one, other)]
        assert tables[0].equals(tables[1])


def test_killed_anywhere_and_resumed(command, start, whole, tmp_path):
    """SIGKILL, again and again at growing delays, until the run gets through."""
    run, kills = tmp_path / "killed", 0
    words = command("--resume", "auto", name="killed")
    for attempt in range(40):
        process = start(words)
        before = len(list_checkpoints(run / "checkpoints"))
        stop = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < stop:
            # Let every attempt reach one checkpoint more, then kill it at an odd moment after.
            if len(list_checkpoints(run / "checkpoints")) > before or _newest(run) > attempt:
                time.sleep(0.05 + 0.11 * attempt)
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
                break
            time.sleep(0.01)
        output = "".join(process.communicate())
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, output
        for checkpoint in list_checkpoints(run / "checkpoints"):
            load_file(str(checkpoint / "adapter_model.safetensors"))
            json.loads((checkpoint / "trainer_state.json").read_text())
        assert store.read(run, "train").num_rows
    assert (run / "summary.json").is_file()
    assert kills >= 2, "the run was never killed, so nothing was shown"
    assert_same_run(whole, run)


def _newest(run: Path) -> int:
    found = list_checkpoints(run / "checkpoints")
    return int(found[-1].name.split("-")[-1]) if found else 0


CHOICES = {
    "rollout.dynamic_sampling": "true",
    "share.difficulty.adaptive": "true",
    "share.difficulty.solved": 0.6,
    "share.difficulty.unsolved": 0.4,
    "data.train_limit": 6,
}


def test_a_killed_run_chooses_again_as_it_would_have(command, start, finish_here, tmp_path):
    """What is replaced and who is asked how do not depend on the kill: SIGKILL in the middle of step 3."""
    changes = dict(CHOICES)
    changes |= {"share.num_responses": 2, "reward.format_weight": 0.0}  # so that some problems are silent
    finish_here(command(name="whole", **changes))
    words = command("--resume", "auto", name="killed", **changes)
    process = start(words)
    while _newest(tmp_path / "killed") < 4:
        assert process.poll() is None, process.read("err")
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run was over before it was killed"
    finish_here(words)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    last = [record for record in figures(tmp_path / "whole") if "loss" in record][-2:]
    chosen = ("extra_problems", "harder", "plainer")
    assert any(record.get(name, 0) > 0 for record in last for name in chosen), "nothing was chosen after the kill"


def test_resume_from_an_older_checkpoint(command, finish_here, whole, tmp_path):
    """Files of later steps give way; a finished run's summary must go first, or it counts as finished."""
    settings = (whole / "recipe.yaml").read_text().replace(str(whole.parent), str(tmp_path))
    whole = shutil.copytree(whole, tmp_path / "whole")
    (whole / "recipe.yaml").write_text(settings)  # as if it had been trained there
    (whole / "summary.json").unlink()
    kept = figures(whole)
    adapter = load_file(str(whole / "adapter" / "adapter_model.safetensors"))
    checkpoint = list_checkpoints(whole / "checkpoints")[0]
    assert "resuming after step 2" in finish_here(command("--resume", str(checkpoint), name="whole")).out
    assert figures(whole) == kept
    again = load_file(str(whole / "adapter" / "adapter_model.safetensors"))
    assert all(torch.equal(adapter[name], again[name]) for name in adapter)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_leaves_or_finishes_the_step_and_saves(command, start, finish_here, whole, tmp_path, number):
    run = tmp_path / "stopped"
    words = command(name="stopped", **{"train.save_rollouts": "null"})
    process = start(words)
    while not (run / "rollouts" / "train" / "step_000001.parquet").exists():
        assert process.poll() is None, process.read("err")
        time.sleep(0.01)
    process.send_signal(number)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 130
    assert "interrupted: saving what is finished" in errors
    assert "--resume auto" in output
    saved = list_checkpoints(run / "checkpoints")
    assert len(saved) == 1
    kept = {name: (run / name).read_bytes() for name in ("tokenizer.json", "prompt.json")}
    for name in kept:
        (run / name).unlink()  # as a program left it that did not keep it
    finish_here(command("--resume", "auto", name="stopped", **{"train.save_rollouts": "null"}))
    assert {name: (run / name).read_bytes() for name in kept} == kept
    assert_same_run(whole, run)
