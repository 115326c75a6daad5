"""Two processes on a CPU (gloo) train as one process does."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from sharevl_lite import metrics_log, store
from sharevl_lite.checkpoints import list_checkpoints


@pytest.mark.slow
def test_two_processes_equal_one(command, finish, tmp_path):
    # Float64, so that the only difference (how sums over problems are grouped) stays far from any threshold.
    changes = {"model.dtype": "float64", "train.rollouts": 3}
    finish(command(name="one", **changes))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29517"]
    finish([*launch, *command(name="two", **changes)[1:]])
    records = [
        [record for record in metrics_log.read(tmp_path / name / "metrics.jsonl") if "loss" in record]
        for name in ("one", "two")
    ]
    for one, two in zip(*records, strict=True):
        for name in ("pairs", "pairs_skipped", "sampled_tokens", "tokens_separate"):
            assert one[name] == two[name], name
        for name in ("reward", "accuracy", "vanished_local", "rescued", "response_length"):
            assert one[name] == pytest.approx(two[name], rel=1e-12), name  # means, summed in another order
        # Adapters and Adam are float32: 1e-4 relative covers three steps of differently grouped sums.
        for name in ("loss", "grad_norm", "gap_mean", "gap_p95", "entropy"):
            assert one[name] == pytest.approx(two[name], rel=1e-4, abs=1e-7), name
    first, second = (
        load_file(str(tmp_path / name / "adapter" / "adapter_model.safetensors")) for name in ("one", "two")
    )
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=2e-5, msg=name)
    key = ["step", "problem_id", "variant_index", "response_index"]
    tables = [store.read(tmp_path / name).sort_by([(k, "ascending") for k in key]) for name in ("one", "two")]
    assert tables[0].column("text").equals(tables[1].column("text"))


@pytest.mark.slow
def test_two_processes_replace_and_choose_as_one_does(command, finish, tmp_path):
    """Replacements and success rates belong to places and problems, not to processes."""
    changes = {"model.dtype": "float64", "data.eval": "null", "data.train_limit": 9, "train.rollouts": 4}
    changes |= {"rollout.dynamic_sampling": "true", "share.difficulty.adaptive": "true"}
    changes |= {"share.difficulty.solved": 0.6, "share.difficulty.unsolved": 0.4}
    changes |= {"share.num_responses": 2, "reward.format_weight": 0.0}  # so that some problems are silent
    finish(command(name="one", **changes))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29518"]
    finish([*launch, *command(name="two", **changes)[1:]])
    one, two = (
        [record for record in metrics_log.read(tmp_path / name / "metrics.jsonl") if "loss" in record]
        for name in ("one", "two")
    )
    for first, second in zip(one, two, strict=True):
        for name in ("replaced", "extra_problems", "silent_left", "pairs", "pairs_skipped", "sampled_tokens"):
            assert first[name] == second[name], name
        for name in ("reward", "accuracy", "harder", "plainer", "vanished_global"):
            assert first[name] == pytest.approx(second[name], rel=1e-12), name
    assert sum(record["extra_problems"] for record in one) > 0
    assert sum(record["harder"] + record["plainer"] for record in one) > 0
    key = ["step", "problem_id", "variant_index", "response_index"]
    tables = [store.read(tmp_path / name).sort_by([(k, "ascending") for k in key]) for name in ("one", "two")]
    for column in ("problem_id", "text", "variant_text", "transform", "adv_global"):
        assert tables[0].column(column).equals(tables[1].column(column)), column
    rates = [
        json.loads((list_checkpoints(tmp_path / name / "checkpoints")[-1] / "difficulty.json").read_text())
        for name in ("one", "two")
    ]
    assert rates[0] == rates[1]
