"""The first update of a rollout takes its old log-probs from its own forward pass, and nothing but time changes."""

import dataclasses

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from sharevl_lite import metrics_log, store, train
from sharevl_lite.learn import Learner
from sharevl_lite.metrics import Attempt
from sharevl_lite.policy.packed import PackedPolicy
from sharevl_lite.rollout.hf import HFRolloutEngine
from sharevl_lite.share import Advantages

pytestmark = pytest.mark.slow
BRIEF = {"data.eval": None, "train.save_rollouts": None, "train.rollouts": 2}
TIMES = ("seconds/", "tokens_per_second", "peak_memory_mib", "train_")


def run(recipe):
    return train(recipe, console=Console(quiet=True)).run_dir


def figures(run_dir):
    records = metrics_log.read(run_dir / "metrics.jsonl")
    return [{name: value for name, value in record.items() if not name.startswith(TIMES)} for record in records]


@pytest.fixture
def passes(monkeypatch):
    """What the policy scored, pass by pass: its pairs, and whether gradients were asked for."""
    seen = []
    honest = PackedPolicy.forward

    def forward(self, row, images, **kwargs):
        seen.append((row.pairs, torch.is_grad_enabled()))
        return honest(self, row, images, **kwargs)

    monkeypatch.setattr(PackedPolicy, "forward", forward)
    return seen


@pytest.mark.parametrize(
    "changes",
    [{}, {"objective.beta": 0.01, "train.epochs_per_rollout": 2, "train.rollouts": 1}],
    ids=["plain", "KL term and two epochs"],
)
def test_a_run_is_the_run_that_scores_everything_first(small_recipe, monkeypatch, passes, changes):
    folder = run(small_recipe("fused", **BRIEF | changes))
    fused = list(passes)
    monkeypatch.setattr(Learner, "scores_while_training", False)
    passes.clear()
    other = run(small_recipe("apart", **BRIEF | changes))
    assert figures(folder) == figures(other)
    expected = load_file(other / "adapter" / "adapter_model.safetensors")
    for name, tensor in load_file(folder / "adapter" / "adapter_model.safetensors").items():
        assert torch.equal(tensor, expected[name])
    columns = ["scorers", "scorer_logprobs"]
    assert store.read(folder).select(columns).equals(store.read(other).select(columns))
    assert len(fused) < len(passes)
    assert sum(graded for _, graded in fused) == sum(graded for _, graded in passes)


@pytest.mark.parametrize(
    "changes",
    [{"objective.correction": "truncate"}, {"objective.sampler_cap": 2.0}, {"model.lora.dropout": 0.1}],
    ids=["correction", "sampler's cap", "dropout"],
)
def test_what_needs_old_log_probs_first_has_them_first(small_recipe, passes, changes):
    run(small_recipe(**(BRIEF | {"train.rollouts": 1}), **changes))
    trained = [set(pairs) for pairs, graded in passes if graded]
    scored = set().union(*(pairs for pairs, graded in passes if not graded))
    assert trained
    assert all(pairs <= scored for pairs in trained)


def test_a_sampler_with_another_model_is_noticed_before_the_optimizer_moves(small_recipe, monkeypatch):
    moved = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: moved.append(self))
    run(small_recipe("honest", **BRIEF))
    assert moved
    moved.clear()
    honest = HFRolloutEngine._response

    def respond(self, row):
        response = honest(self, row)
        return dataclasses.replace(response, logprobs=tuple(p + 2.0 for p in response.logprobs))

    monkeypatch.setattr(HFRolloutEngine, "_response", respond)
    with pytest.raises(ValueError, match="disagree by 2"):
        run(small_recipe(**BRIEF))
    assert not moved


def test_facts_of_rows_are_read_when_all_rows_were_asked_for(small_recipe, monkeypatch, passes):
    """Reading them waits for the device, which had nothing to do while the next row was prepared."""
    honest, when = Attempt.add, []

    def add(self, row_loss):
        assert row_loss.loss.grad_fn is None, "what a backward pass needs would be held until the end"
        assert row_loss.facts.loss.grad_fn is None
        when.append(sum(graded for _, graded in passes))
        honest(self, row_loss)

    monkeypatch.setattr(Attempt, "add", add)
    run(small_recipe("reading", **BRIEF | {"train.rollouts": 1, "train.problems_per_update": 4}))
    rows = sum(graded for _, graded in passes)
    assert rows > 1
    assert when == [rows] * rows


def test_what_trains_nothing_is_scored_only_where_the_recipe_says_so(small_recipe, passes):
    changes = BRIEF | {"reward.accuracy_weight": 1.0, "reward.format_weight": 0.0, "share.num_responses": 2}
    thorough = run(small_recipe("thorough", **changes))
    thoroughly = list(passes)
    passes.clear()
    brief = run(small_recipe("brief", **changes | {"train.score_skipped": False}))
    assert sum(record.get("pairs_skipped", 0) for record in figures(brief)) > 0
    assert [pairs for pairs, graded in passes if graded] == [pairs for pairs, graded in thoroughly if graded]
    assert len(passes) < len(thoroughly)
    trained = {pair for pairs, graded in passes if graded for pair in pairs}
    assert trained.issuperset(pair for pairs, graded in passes for pair in pairs)
    expected = load_file(thorough / "adapter" / "adapter_model.safetensors")
    for name, tensor in load_file(brief / "adapter" / "adapter_model.safetensors").items():
        assert torch.equal(tensor, expected[name])
    rows, known = (store.read(folder).select(["scorers"]).to_pylist() for folder in (brief, thorough))
    skipped = 0
    for row, other in zip(rows, known, strict=True):
        for scorer, full in zip(row["scorers"], other["scorers"], strict=True):
            assert scorer["advantage"] == full["advantage"]
            if scorer["mean_logprob"] is None:
                skipped += 1
                assert scorer["advantage"] == 0.0
            else:
                assert scorer == full
    assert 0 < skipped < sum(len(row["scorers"]) for row in rows)


def test_log_probs_that_others_are_compared_with_are_scored_always(small_recipe, monkeypatch, passes):
    """A response whose levels cancel under its own variant trains under the other one."""

    def cancel(self, levels):
        pairs_PKMN = honest(self, levels)
        pairs_PKMN.diagonal(dim1=1, dim2=2)[0, 0] = 0.0  # of the first problem
        return pairs_PKMN

    honest = Advantages.as_pairs
    monkeypatch.setattr(Advantages, "as_pairs", cancel)
    changes = {"train.score_skipped": False, "train.rollouts": 1, "objective.correction": "truncate"}
    run(small_recipe(**BRIEF | changes))
    trained = {pair for pairs, graded in passes if graded for pair in pairs}
    scored = {pair for pairs, graded in passes if not graded for pair in pairs}
    assert any(pair.k != pair.j and pair._replace(k=pair.j) not in trained for pair in trained)
    assert all(pair._replace(k=pair.j) in scored for pair in trained)


def test_a_row_that_stands_in_where_nothing_trains_can_be_compared(small_recipe, monkeypatch):
    """Nothing of the first variant takes part, and no reward differs: the row at weight 0 is of another variant."""
    takes_part, as_pairs = Learner.takes_part, Advantages.as_pairs
    monkeypatch.setattr(Learner, "takes_part", lambda self, p, j, i: j > 0 and takes_part(self, p, j, i))
    monkeypatch.setattr(Advantages, "as_pairs", lambda self, levels: torch.zeros_like(as_pairs(self, levels)))
    changes = {"train.score_skipped": False, "train.rollouts": 1, "objective.correction": "truncate"}
    assert figures(run(small_recipe(**BRIEF | changes)))[0]["pairs"] > 0
