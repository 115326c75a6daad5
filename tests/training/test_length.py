"""A run may become longer or shorter where no step that was made depends on its length; callbacks may end it."""

import json
import shutil
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import TrainerCallback

from sharevl_lite import load_recipe, metrics_log, store, train
from sharevl_lite.checkpoints import list_checkpoints, remove_checkpoint, update_of
from sharevl_lite.cli import main
from sharevl_lite.display import OF_UPDATE
from sharevl_lite.run_folder import RunError, is_finished

pytestmark = pytest.mark.slow

MEASURED = ("seconds", "memory", "tokens_per_second")
STEADY = {"train.lr_scheduler_type": "constant_with_warmup", "train.warmup_updates": 5, "train.learning_rate": 1e-3}
BRIEF = {**STEADY, "data.eval": None}


@pytest.fixture
def trained(small_recipe):
    """`trained(rollouts, name, resume=None, callbacks=(), **changes)`: the folder of a run of that length, and what it
    said."""

    def make(rollouts, name="run", /, resume=None, callbacks=(), **changes):
        output = StringIO()
        recipe = small_recipe(name, **{**BRIEF, **changes, "train.rollouts": rollouts})
        run = train(recipe, resume=resume, console=Console(file=output, width=140), callbacks=callbacks).run_dir
        return run, output.getvalue()

    return make


class Looks(TrainerCallback):
    """What is in the run's folder while it trains."""

    def on_step_begin(self, args, state, control, **kwargs):
        self.seen = {path.name for path in Path(args.output_dir).parent.iterdir()}


def figures(run):
    records = metrics_log.read(run / "metrics.jsonl")
    return [{k: v for k, v in record.items() if not any(word in k for word in MEASURED)} for record in records]


def adapter_of(folder):
    return load_file(str(folder / "adapter_model.safetensors"))


def equal(one, other):
    first, second = adapter_of(one), adapter_of(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def saved(run):
    return [update_of(path) for path in list_checkpoints(run / "checkpoints")]


def assert_same_training(run, whole):
    """Bit for bit: adapter, optimizer and every step. `run` may have an evaluation more, of its old end."""
    assert equal(run / "adapter", whole / "adapter")
    optimizers = [torch.load(list_checkpoints(r / "checkpoints")[-1] / "optimizer.pt")["state"] for r in (run, whole)]
    for number, moments in optimizers[0].items():
        assert all(torch.equal(value, optimizers[1][number][name]) for name, value in moments.items())
    longer, from_start = figures(run), figures(whole)
    assert [record for record in longer if "loss" in record] == [record for record in from_start if "loss" in record]
    assert [record for record in from_start if record not in longer] == []
    tables = [store.read(r, "train").drop_columns(["run_id"]) for r in (run, whole)]
    assert tables[0].equals(tables[1])


def test_a_finished_run_made_longer_is_the_longer_run(trained):
    """Its end fell between two saves, within the warm-up; the checkpoint there is what it goes on from."""
    changes = {"data.eval": "builtin:digits", "train.save_rollouts": 3}
    whole, _ = trained(4, "whole", **changes)
    run, told = trained(2, **changes)
    before = json.loads((run / "summary.json").read_text())
    assert saved(run) == [4]
    _, told = trained(2, resume="auto", **changes)
    assert f"{run} is finished; to train on, repeat this with --train.rollouts above 2." in told
    looks = Looks()
    _, told = trained(4, resume="auto", callbacks=[looks], **changes)
    assert {"summary.json", "adapter"}.isdisjoint(looks.seen), "a kill would leave a run that seems to be finished"
    assert "resuming after step 2; 4 steps of" in told
    assert [line.split()[1] for line in told.splitlines() if line.startswith("step ")] == ["3/4", "4/4"]
    assert_same_training(run, whole)
    assert [(r["step"], "loss" in r) for r in figures(run)] == [
        (0, False), (1, True), (2, True), (2, False), (3, True), (4, True), (4, False)
    ]  # fmt: skip
    assert saved(run) == [4, *saved(whole)] == [4, 6, 8]
    assert load_recipe(run / "recipe.yaml").train.rollouts == 4
    after, expected = (json.loads((r / "summary.json").read_text()) for r in (run, whole))
    assert after["accuracy_before"] == before["accuracy_before"]
    known = {name for name in expected if name not in ("name", "train_seconds")}
    assert {name: after[name] for name in known} == {name: expected[name] for name in known}


def test_a_stopped_run_made_longer_and_one_that_ends_where_it_stopped(trained, caplog):
    """As a kill leaves it, in its third step of four."""
    run, _ = trained(4, **{"train.save_total_limit": None})
    whole = shutil.copytree(run, run.parent / "whole")
    (run / "summary.json").unlink()
    shutil.rmtree(run / "adapter")
    for checkpoint in list_checkpoints(run / "checkpoints")[2:]:
        remove_checkpoint(checkpoint)
    stopped = shutil.copytree(run, run.parent / "stopped")
    with caplog.at_level("WARNING"):
        trained(5, resume="auto")
    assert [r.getMessage() for r in caplog.records] == ["train.rollouts was 4; the run goes on to 5"]
    longer, _ = trained(5, "longer")
    assert_same_training(run, longer)
    shutil.rmtree(run)
    stopped.rename(run)
    caplog.clear()
    with caplog.at_level("WARNING"):
        trained(2, resume="auto")  # a moment ago it was to have four
    assert [r.getMessage() for r in caplog.records] == ["train.rollouts was 4; the run ends at 2"]
    assert [record["step"] for record in figures(run)] == [1, 2]
    assert equal(run / "adapter", whole / "checkpoints" / "checkpoint-4")
    assert json.loads((run / "summary.json").read_text())["steps"] == 2
    trained(4, resume="auto")
    assert_same_training(run, whole)


GETS_WORSE = {
    "data.eval": "builtin:digits",
    "train.load_best_model_at_end": True,
    "eval.every_rollouts": 1,
    "train.learning_rate": 0.03,
    "eval.problems": 6,
    "eval.samples": 2,
    "train.save_total_limit": 1,
}


def test_it_goes_on_from_the_last_checkpoint_and_not_from_the_best(trained):
    whole, _ = trained(4, "whole", **GETS_WORSE)
    run, _ = trained(3, **GETS_WORSE)
    assert saved(run) == [2, 6], "this test needs a run that gets worse"
    assert equal(run / "adapter", run / "checkpoints" / "checkpoint-2")
    assert figures(run)[-1][OF_UPDATE] == 2
    assert store.RolloutStore(run).steps("best") == [3]
    trained(4, resume="auto", **GETS_WORSE)
    assert_same_training(run, whole)
    assert figures(run) == figures(whole)
    assert saved(run) == saved(whole) == [2, 8]
    assert equal(run / "adapter", run / "checkpoints" / "checkpoint-2")
    assert store.RolloutStore(run).steps("best") == store.RolloutStore(whole).steps("best") == [4]


def test_a_run_that_ends_where_it_stopped_counts_its_last_step_among_the_best(trained):
    """Ctrl-C left a checkpoint that was not evaluated: the run of that length evaluates its end, and so does this."""
    gets_better = {**GETS_WORSE, "train.learning_rate": 1e-3, "eval.every_rollouts": 2, "train.save_rollouts": 2}
    run, _ = trained(3, **gets_better)
    kept, expected = figures(run), json.loads((run / "summary.json").read_text())
    (run / "summary.json").unlink()
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps(r) for r in log if r["step"] < 3 or "loss" in r]
    (run / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    state = json.loads((run / "checkpoints" / "checkpoint-6" / "trainer_state.json").read_text())
    state |= {"best_metric": -1.0, "best_global_step": 4}
    (run / "checkpoints" / "checkpoint-6" / "trainer_state.json").write_text(json.dumps(state))
    last = adapter_of(run / "checkpoints" / "checkpoint-6")
    trained(3, resume="auto", **gets_better)
    assert [r for r in figures(run) if OF_UPDATE not in r] == [r for r in kept if OF_UPDATE not in r]
    assert json.loads((run / "summary.json").read_text())["adapter_update"] == 6
    assert expected["steps"] == 3
    assert all(torch.equal(value, last[name]) for name, value in adapter_of(run / "adapter").items())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train.lr_scheduler_type": "cosine"}, "lr_scheduler_type: cosine makes the length decide the rate of every"),
        ({"share.transforms.noise_decay": "linear"}, "noise_decay: linear makes the length decide the noise of every"),
    ],
)
def test_where_the_length_decides_every_step_it_stays(trained, small_recipe, changes, reason):
    run, _ = trained(1, **changes)
    kept = sorted(path.name for path in run.iterdir())
    with pytest.raises(
        RunError, match=f"train.rollouts was 1, now 2; .*{reason}.*keep 1, or go on in another run"
    ) as e:
        trained(2, resume="auto", **changes)
    assert str(e.value).endswith(f"with --name NAME --model.lora.start_from {run}")
    assert sorted(path.name for path in run.iterdir()) == kept
    _, told = trained(1, resume="auto", **changes)
    assert f"is finished; to train on, start another run with --name NAME --model.lora.start_from {run}." in told
    # Nothing that was made is left: the run begins anew, with any length.
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunError, match="its checkpoints are gone, and with them the optimizer's state"):
        trained(2, resume="auto", **changes)
    (run / "summary.json").unlink()
    trained(2, resume="auto", **changes)
    assert [record["step"] for record in figures(run)] == [1, 2]
    assert is_finished(small_recipe("run", **{**BRIEF, **changes, "train.rollouts": 2}))


def test_a_finished_run_without_checkpoints_is_not_said_to_go_on(trained, caplog):
    run, _ = trained(1)
    shutil.rmtree(run / "checkpoints")
    _, told = trained(1, resume="auto", **{"train.learning_rate": 1e-5, "reward.workers": 2})
    (said,) = [record.getMessage() for record in caplog.records if record.name == "sharevl_lite.resume"]
    assert said == "reward.workers, train.learning_rate: of no effect, for the run is finished"
    assert f"{run} is finished; to train on, start another run with --name NAME --model.lora.start_from {run}." in told


def test_fewer_than_are_done(trained, command, capsys):
    run, _ = trained(2)
    kept = (run / "metrics.jsonl").read_bytes()
    words = command("--resume", "auto", name="run", **BRIEF | {"train.rollouts": 1, "data.eval": "null"})[3:]
    assert main(words) == 2
    assert capsys.readouterr().err == (
        f"sharevl-lite: {run}: train.rollouts was 2, now 1; 2 are done: give 2 or more, or an older checkpoint with "
        "--resume PATH\n"
    )
    assert (run / "metrics.jsonl").read_bytes() == kept
    assert (run / "summary.json").is_file()
    trained(1, resume=str(run / "checkpoints" / "checkpoint-2"))
    assert saved(run) == [2]
    assert [record["step"] for record in figures(run)] == [1]


def test_when_to_save_may_change(trained):
    """The checkpoint that a run goes on from knows when it was to save; the recipe's word counts."""
    run, _ = trained(1, **{"train.save_rollouts": None})
    trained(3, resume="auto", **{"train.save_rollouts": None})
    assert saved(run) == [2, 6]
    trained(5, resume="auto", **{"train.save_rollouts": 4})
    assert saved(run) == [6, 8, 10]  # the newest three


class Stops(TrainerCallback):
    """Asks for the end at an event, the first time after so many updates."""

    def __init__(self, event, updates):
        self.updates = updates
        setattr(self, event, self.stop)

    def stop(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step >= self.updates


@pytest.mark.parametrize(("event", "updates"), [("on_step_begin", 0), ("on_step_end", 1), ("on_log", 1)])
def test_a_run_that_a_callback_ends_is_whole_and_can_go_on(trained, event, updates):
    """The first update asks; the rollout has two."""
    whole, _ = trained(3, "whole")
    run, told = trained(3, callbacks=[Stops(event, updates)])
    assert "A callback ended the run after step 1 of 3. Continue with " in told
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["adapter_update"]) == (1, 2)
    (checkpoint,) = list_checkpoints(run / "checkpoints")
    assert update_of(checkpoint) == 2
    saved = [(folder / "adapter_model.safetensors").read_bytes() for folder in (checkpoint, run / "adapter")]
    assert saved[0] == saved[1]
    _, told = trained(3, resume="auto")
    assert "resuming after step 1" in told
    assert_same_training(run, whole)


def test_a_callback_that_ends_a_run_by_an_evaluation(trained, small_recipe):
    changes = {"data.eval": "builtin:digits", "eval.every_rollouts": 1}
    run, told = trained(3, callbacks=[Stops("on_evaluate", 3)], **changes)
    assert "A callback ended the run after step 2 of 3" in told
    assert [record["update"] for record in figures(run) if "eval_accuracy" in record] == [0, 2, 4]
    assert [update_of(path) for path in list_checkpoints(run / "checkpoints")][-1] == 4
    summary = json.loads((run / "summary.json").read_text())
    assert isinstance(summary["adapter_update"], int)
    recipe = small_recipe("run", **{"train.rollouts": 3})
    assert not is_finished(recipe)
    shutil.rmtree(run / "checkpoints")
    assert is_finished(recipe), "with --resume auto it would begin anew, and its adapter be gone"
