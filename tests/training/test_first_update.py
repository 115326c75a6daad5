"""The first update of a rollout takes its old log-probs from its own forward pass, and nothing but time changes."""

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from sharevl_lite import metrics_log, store, train
from sharevl_lite.learn import Learner
from sharevl_lite.metrics import Attempt
from sharevl_lite.policy.packed import PackedPolicy
from sharevl_lite.rollout.hf import HFRolloutEngine

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

    def respond(self, ids_T, logprobs_T):
        return honest(self, ids_T, logprobs_T + 2.0)

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
