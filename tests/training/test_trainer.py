"""One process: what a run leaves behind, what it logs, and what it refuses."""

import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import TrainerCallback

from sharevl_lite import metrics_log, store, train
from sharevl_lite.checkpoints import list_checkpoints
from sharevl_lite.rewards import RewardScorer
from sharevl_lite.run import RunError

LOGGED = {
    "reward",
    "accuracy",
    "format",
    "response_length",
    "truncated",
    "reward_std",
    "vanished_local",
    "vanished_global",
    "rescued",
    "ratio",
    "clip_low",
    "clip_high",
    "clip_dual",
    "entropy",
    "gap_mean",
    "gap_p95",
    "pairs",
    "pairs_skipped",
    "tokens_packed",
    "tokens_separate",
    "seconds/expand",
    "seconds/rollout",
    "seconds/reward",
    "seconds/score",
    "seconds/update",
    "seconds/store",
    "tokens_per_second",
    "peak_memory_mib",
    "loss",
    "grad_norm",
    "learning_rate",
}


class UpdateCounter(TrainerCallback):
    updates = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.updates += 1


@pytest.fixture
def quiet():
    return Console(quiet=True)


@pytest.fixture
def one_run(small_recipe, quiet):
    recipe = small_recipe(**{"train.epochs_per_rollout": 2, "objective.beta": 0.01})
    counter = UpdateCounter()
    result = train(recipe, console=quiet, callbacks=[counter])
    assert counter.updates == 4 * recipe.train.updates_per_rollout, "a user's callback is called at every update"
    return recipe, result


@pytest.mark.slow
def test_what_a_run_leaves_behind(one_run):
    recipe, result = one_run
    run = result.run_dir
    summary = json.loads((run / "summary.json").read_text())
    assert summary == result.summary
    wanted = ("accuracy_before", "accuracy_after", "train_seconds", "vanished_local", "vanished_global", "rescued")
    assert all(isinstance(summary[name], float) for name in wanted)
    assert summary["steps"] == recipe.train.rollouts == 4

    steps = [record for record in metrics_log.read(run / "metrics.jsonl") if "loss" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    assert steps[-1]["update"] == 4 * recipe.train.updates_per_rollout
    for record in steps:
        assert record.keys() >= LOGGED | {"kl"}, LOGGED - record.keys()
        assert record["pairs"] == 4 * 2 * 2 * 3
        assert record["pairs_skipped"] == 0, "the KL term needs every pair"
        assert record["tokens_packed"] < record["tokens_separate"]

    table = store.read(run)
    assert table.num_rows == 4 * 4 * 2 * 3
    rows = table.to_pylist()
    for row in rows:
        own, other = row["scorers"][row["variant_index"]], row["scorers"][1 - row["variant_index"]]
        assert own["gap"] == 0.0
        assert other["advantage"] == pytest.approx(row["adv_global"], abs=1e-12)
        assert own["advantage"] == pytest.approx(row["adv_global"] + row["adv_local"], abs=1e-12)
        mean = sum(row["sampling_logprobs"]) / len(row["sampling_logprobs"])
        # Another padding and another attention kernel in float32; the sampler also bans vision tokens.
        assert own["mean_logprob"] == pytest.approx(mean, abs=1e-4)
        under = row["scorer_logprobs"]
        assert [len(values) for values in under] == [len(row["token_ids"])] * 2
        for scorer, values in zip(row["scorers"], under, strict=True):
            assert scorer["mean_logprob"] == pytest.approx(sum(values) / len(values), abs=1e-6)
    assert store.read(run, "eval").num_rows == 2 * 4 * 2
    assert len(list_checkpoints(run / "checkpoints")) == recipe.train.save_total_limit == 3
    saved = load_file(str(run / "adapter" / "adapter_model.safetensors"))
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert any(float(tensor.abs().max()) > 0 for name, tensor in saved.items() if "lora_B" in name)


@pytest.mark.slow
def test_the_first_update_is_on_policy(small_recipe, quiet):
    """With one update a rollout the policy that trains is the one that was scored: every ratio is exactly 1."""
    recipe = small_recipe(**{"train.problems_per_update": 4, "train.rollouts": 2, "eval.problems": 1})
    run = train(recipe, console=quiet).run_dir
    steps = [record for record in metrics_log.read(run / "metrics.jsonl") if "loss" in record]
    assert all(record["ratio"] == 1.0 for record in steps if "ratio" in record)
    assert any("ratio" in record for record in steps)


@pytest.mark.slow
def test_skipping_pairs_without_advantage_changes_nothing(small_recipe, quiet):
    """A KL weight too small to matter keeps every pair in the update; without it silent pairs are skipped.

    With the local level alone every cross-variant pair is silent.
    """
    changes = {"train.rollouts": 1, "eval.problems": 1, "train.problems_per_update": 4, "model.dtype": "float64"}
    changes["share.levels"] = "local"
    runs = [
        train(small_recipe(name, **changes, **{"objective.beta": beta}), console=quiet).run_dir
        for name, beta in (("skipping", 0.0), ("keeping", 1e-300))
    ]
    records = [metrics_log.read(run / "metrics.jsonl")[1] for run in runs]
    assert records[0]["pairs_skipped"] >= records[0]["pairs"] / 2
    assert records[1]["pairs_skipped"] == 0
    # Rows are packed differently, and adapters are float32: the sums differ by their rounding.
    assert records[0]["grad_norm"] == pytest.approx(records[1]["grad_norm"], rel=1e-5)
    assert records[0]["loss"] == pytest.approx(records[1]["loss"], abs=1e-9)


@pytest.mark.slow
def test_a_run_is_never_overwritten(one_run, small_recipe, quiet):
    recipe, result = one_run
    with pytest.raises(RunError, match="--resume auto"):
        train(recipe, console=quiet)
    with pytest.raises(RunError, match=r"objective\.epsilon was 0\.2, now 0\.1"):
        train(
            small_recipe(**{"train.epochs_per_rollout": 2, "objective.beta": 0.01, "objective.epsilon": 0.1}),
            resume="auto",
            console=quiet,
        )
    assert train(recipe, resume="auto", console=quiet).summary == result.summary


def test_too_few_problems_is_an_error(small_recipe, quiet):
    recipe = small_recipe(**{"data.train_limit": 3})
    with pytest.raises(ValueError, match="the data has 3 problems"):
        train(recipe, console=quiet)
    assert not recipe.run_dir.exists()


@pytest.mark.slow
def test_resume_with_other_settings(small_recipe, quiet):
    """What only groups sums differently may change, as after running out of memory; what is asked may not."""
    changes = {"train.rollouts": 2, "eval.problems": 1, "train.save_rollouts": None}
    run = train(small_recipe(**changes), console=quiet).run_dir
    assert len(list_checkpoints(run / "checkpoints")) == 1, "saved at the end"
    (run / "summary.json").unlink()
    again = small_recipe(**changes, **{"train.token_budget": 128, "rollout.batch_size": 7})
    assert train(again, resume="auto", console=quiet).summary["steps"] == 2
    (run / "summary.json").unlink()
    (run / "data.json").write_text('{"problems": 64, "fingerprint": "of other data"}')
    with pytest.raises(RunError, match="builtin:digits is not what"):
        train(again, resume="auto", console=quiet)


def test_one_process_drives_one_device(small_recipe, quiet, monkeypatch):
    """A machine with several GPUs must not make the Trainer wrap the policy in DataParallel."""
    from sharevl_lite import trainer as trainer_module
    from sharevl_lite.run import _assemble

    def with_two_gpus(recipe, make=trainer_module.training_arguments):
        arguments = make(recipe)
        arguments._n_gpu = 2
        return arguments

    monkeypatch.setattr(trainer_module, "training_arguments", with_two_gpus)
    recipe = small_recipe()
    with RewardScorer(recipe.reward) as scorer:
        trainer, *_ = _assemble(recipe, scorer, quiet, resuming=False, fresh=True)
    assert trainer.args.n_gpu == 1
