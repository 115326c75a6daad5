"""Dynamic sampling and difficulty-aware variants in real runs: what is asked, trained, counted and stored."""

import json
from collections import defaultdict

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from sharevl_lite import metrics_log, store, train
from sharevl_lite.checkpoints import list_checkpoints
from sharevl_lite.schedule import ScheduleError

pytestmark = pytest.mark.slow

BRIEF = {"data.eval": None, "train.rollouts": 2, "train.save_rollouts": None}
DYNAMIC = {"rollout.dynamic_sampling": True}
MEASURED = ("seconds", "memory", "tokens_per_second", "runtime")
COUNTS = ("replaced", "extra_problems", "silent_left")

REWARDS = """
def alike(completions, **kwargs):
    return [1.0 for _ in completions]

def unlike(completions, **kwargs):
    return [float(place) for place, _ in enumerate(completions)]
"""


@pytest.fixture
def trained(small_recipe, tmp_path):
    """`trained(name, function, **changes)`: (records of the steps, run folder); `function` is the only reward."""
    (tmp_path / "rewards.py").write_text(REWARDS)

    def make(name, function=None, /, **changes):
        if function is not None:
            changes["reward.accuracy_weight"] = changes["reward.format_weight"] = 0.0
            changes["reward.functions"] = [{"path": f"{tmp_path / 'rewards.py'}:{function}"}]
        run = train(small_recipe(name, **{**BRIEF, **changes}), console=Console(quiet=True)).run_dir
        return [record for record in metrics_log.read(run / "metrics.jsonl") if "loss" in record], run

    return make


def figures(records, without=()):
    names = [name for name in records[0] if not any(word in name for word in MEASURED) and name not in without]
    return [{name: record.get(name) for name in names} for record in records]


def adapter(run):
    return load_file(str(run / "adapter" / "adapter_model.safetensors"))


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_with_no_silent_problem_dynamic_sampling_changes_nothing(trained):
    off, off_run = trained("off", "unlike")
    on, on_run = trained("on", "unlike", **DYNAMIC)
    assert not set(COUNTS) & off[0].keys()
    assert [[record[name] for name in COUNTS] for record in on] == [[0, 0, 0]] * 2
    assert figures(on, without=COUNTS) == figures(off)
    assert equal(adapter(on_run), adapter(off_run))
    assert store.read(on_run).drop_columns(["run_id"]).equals(store.read(off_run).drop_columns(["run_id"]))


def test_where_all_are_silent_the_budget_ends_and_the_step_goes_on(trained):
    """4 problems a step and 6 more in the data: every place is given one, and two of them a second."""
    records, run = trained("alike", "alike", **DYNAMIC, **{"data.train_limit": 10})
    for record in records:
        assert [record[name] for name in COUNTS] == [4, 6, 4]
        assert record["pairs"] == record["pairs_skipped"] == 4 * 2 * 2 * 3
        assert (record["reward"], record["vanished_global"]) == (1.0, 1.0)
        assert (record["loss"], record["grad_norm"]) == (0.0, 0.0)
        rows = store.read(run, steps=[record["step"]]).to_pylist()
        assert len(rows) == 10 * 2 * 3
        assert len({row["problem_id"] for row in rows}) == 10, "none is asked twice in a step"
        assert record["sampled_tokens"] == sum(len(row["token_ids"]) for row in rows)
        trained_on = {row["problem_id"] for row in rows if row["adv_global"] is not None}
        assert len(trained_on) == 4
        for row in rows:
            assert (row["problem_id"] in trained_on) == (row["adv_local"] is not None) == bool(row["scorers"])
            assert row["rewards"]["total"] == 1.0
    assert all(float(tensor.abs().max()) == 0.0 for name, tensor in adapter(run).items() if "lora_B" in name)


def test_the_budget_of_rounds_is_kept(trained):
    records, _ = trained("short", "alike", **DYNAMIC, **{"rollout.max_extra_rounds": 1, "train.rollouts": 1})
    assert [records[0][name] for name in COUNTS] == [4, 4, 4]


def test_silent_problems_give_way_to_others(trained):
    """By right and wrong answers, four a problem: updates hold signals, metrics hold all that was sampled."""
    changes = {"train.rollouts": 3, "rollout.max_extra_rounds": 3}
    changes |= {"share.num_responses": 2, "reward.format_weight": 0.0, "rollout.temperature": 0.7}
    off, _ = trained("off", **changes)
    on, run = trained("on", **DYNAMIC, **changes)
    assert any(record["vanished_global"] > 0 for record in off), "this test needs a silent problem"
    assert sum(record["replaced"] for record in on) > 0
    assert on[0]["replaced"] == 4 * off[0]["vanished_global"], "until the first update both runs are one"
    for record in on:
        rows = store.read(run, steps=[record["step"]]).to_pylist()
        rewards = defaultdict(list)
        for row in rows:
            rewards[row["problem_id"], row["adv_global"] is None].append(row["rewards"]["total"])
        kept = {name: values for (name, gone), values in rewards.items() if not gone}
        gone = {name: values for (name, gone), values in rewards.items() if gone}
        assert len(kept) == 4
        assert len(gone) == record["extra_problems"] >= record["replaced"]
        assert all(len(set(values)) == 1 for values in gone.values())
        assert sum(len(set(values)) == 1 for values in kept.values()) == record["silent_left"]
        totals = [row["rewards"]["total"] for row in rows]
        assert record["reward"] == pytest.approx(sum(totals) / len(totals))
        accuracies = [row["rewards"]["accuracy"] for row in rows]
        assert record["accuracy"] == pytest.approx(sum(accuracies) / len(accuracies))
        assert record["pairs"] == 4 * 2 * 2 * 2


def test_without_a_further_problem_dynamic_sampling_is_refused(trained):
    with pytest.raises(ScheduleError, match="every step asks all 4 problems"):
        trained("none", **DYNAMIC, **{"data.train_limit": 4})


ADAPTIVE = {"share.difficulty.adaptive": True}


def test_first_visits_are_as_without_difficulties(trained):
    off, off_run = trained("off")
    on, on_run = trained("on", **ADAPTIVE)
    assert [(record["harder"], record["plainer"]) for record in on] == [(0.0, 0.0)] * 2
    assert figures(on, without=("harder", "plainer")) == figures(off)
    assert equal(adapter(on_run), adapter(off_run))


@pytest.mark.parametrize("extra", [{}, {**DYNAMIC, "data.train_limit": 6}], ids=["alone", "with dynamic sampling"])
def test_difficulties_follow_the_success_rates_of_the_store(trained, extra):
    """The rates, worked out again from the stored rows: who is asked how, the metrics, the checkpoint."""
    bounds = {"share.difficulty.solved": 0.6, "share.difficulty.unsolved": 0.4, "share.difficulty.memory": 0.25}
    records, run = trained("on", **{"data.train_limit": 4, "train.rollouts": 4, **ADAPTIVE, **bounds, **extra})
    original = {row["problem_id"]: row["variant_text"] for row in store.read(run, steps=[1]).to_pylist()}
    rates, shares = {}, []
    for record in records:
        rows = store.read(run, steps=[record["step"]]).to_pylist()
        by_problem = defaultdict(list)
        for row in rows:
            by_problem[row["problem_id"]].append(row)
        levels = []
        for name, block in by_problem.items():
            rate = rates.get(name, 0.5)
            levels.append("harder" if rate >= 0.6 else "plainer" if rate <= 0.4 else "usual")
            if levels[-1] == "plainer":
                assert {row["transform"] for row in block} == {None}
                assert len({row["variant_text"] for row in block}) == 1
            if levels[-1] == "harder":
                assert not {"noise_10", "noise_25"} & {row["transform"] for row in block}
            accuracy = sum(row["rewards"]["accuracy"] for row in block) / len(block)
            rates[name] = accuracy if name not in rates else 0.25 * rates[name] + 0.75 * accuracy
        for level in ("harder", "plainer"):
            assert record[level] == pytest.approx(levels.count(level) / len(levels))
        shares.append(set(levels))
    assert original
    assert {"harder", "plainer"} <= set.union(*shares), "this test needs both"
    saved = list_checkpoints(run / "checkpoints")[-1] / "difficulty.json"
    assert json.loads(saved.read_text())["rates"] == rates
