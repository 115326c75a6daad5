"""An interrupt leaves a step that has not been trained on, and an evaluation that a resumed run makes again."""

from io import StringIO

import pytest
from rich.console import Console

from sharevl_lite import metrics_log, store, train
from sharevl_lite.checkpoints import list_checkpoints

INTERRUPTS = '''
import os, signal, time
from pathlib import Path

def interrupt(completions, trainer_state, **kwargs):
    """Ctrl-C when so many updates were made, once."""
    mark = Path(__file__ + ".left")
    if trainer_state.global_step == AT and not mark.exists():
        mark.write_text("left")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)  # until another thread has been given the signal and this one is told
        mark.write_text("stayed")
    return [0.0 for _ in completions]
'''
FEW = {"train.rollouts": 2, "train.save_rollouts": None, "eval.problems": 2, "train.warmup_updates": 0}


@pytest.fixture
def interrupted(small_recipe, tmp_path):
    """`interrupted(updates, **changes)`: the recipe of a run that was interrupted after so many; and what it said."""

    def run(at, **changes):
        (tmp_path / "stop.py").write_text(INTERRUPTS.replace("AT", str(at)))
        functions = [{"path": f"{tmp_path}/stop.py:interrupt", "weight": 0.0}]
        recipe = small_recipe("run", **FEW, **changes, **{"reward.functions": functions})
        output = StringIO()
        assert train(recipe, console=Console(file=output, width=140)).summary is None
        assert (tmp_path / "stop.py.left").read_text() == "left"
        return recipe, output.getvalue()

    return run


def test_a_step_that_is_sampled_or_scored_is_left_and_the_one_before_saved(interrupted):
    recipe, said = interrupted(2, **{"data.eval": None})
    assert "Saved after step 1. Continue with" in said
    assert [path.name for path in list_checkpoints(recipe.run_dir / "checkpoints")] == ["checkpoint-2"]
    assert train(recipe, resume="auto", console=Console(quiet=True)).summary["steps"] == 2
    assert store.read(recipe.run_dir, "train").column("step").unique().to_pylist() == [1, 2]


def test_the_first_evaluation_is_left_and_the_command_repeated(interrupted):
    recipe, said = interrupted(0)
    assert "Nothing was trained yet; repeat the command." in said
    assert not list_checkpoints(recipe.run_dir / "checkpoints")
    assert train(recipe, console=Console(quiet=True)).summary["steps"] == 2


def test_the_last_evaluation_is_left_and_made_by_a_resumed_run(interrupted):
    recipe, said = interrupted(4)
    assert "All 2 steps are trained and saved; the last evaluation is not done. Continue with" in said
    assert train(recipe, resume="auto", console=Console(quiet=True)).summary["steps"] == 2
    records = metrics_log.read(recipe.run_dir / "metrics.jsonl")
    assert [record["update"] for record in records if "eval_accuracy" in record] == [0, 4]
