"""Two processes on a CPU (gloo) train as one process does, and stop together where one of them fails."""

import json
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file

from sharevl_lite import metrics_log, store, train
from sharevl_lite.checkpoints import list_checkpoints
from sharevl_lite.cli import main
from sharevl_lite.errors import ToldError, UserError
from sharevl_lite.group import patience
from sharevl_lite.together import in_all
from sharevl_lite.training_arguments import training_arguments

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.mark.slow
def test_two_processes_equal_one(command, finish, finish_here, tmp_path):
    # Float64, so that the only difference (how sums over problems are grouped) stays far from any threshold.
    changes = {"model.dtype": "float64", "train.rollouts": 3}
    finish_here(command(name="one", **changes))
    finish([*LAUNCH, *command(name="two", **changes)[1:]])
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
def test_two_processes_replace_and_choose_as_one_does(command, finish_in_two, finish_here, tmp_path):
    """Replacements and success rates belong to places and problems, not to processes."""
    changes = {"model.dtype": "float64", "data.eval": "null", "data.train_limit": 9, "train.rollouts": 4}
    changes |= {"rollout.dynamic_sampling": "true", "share.difficulty.adaptive": "true"}
    changes |= {"share.difficulty.solved": 0.6, "share.difficulty.unsolved": 0.4}
    changes |= {"share.num_responses": 2, "reward.format_weight": 0.0}  # so that some problems are silent
    finish_here(command(name="one", **changes))
    said = finish_in_two(command(name="two", **changes))
    assert "two: starting in 2 processes; 4 steps of" in said.stdout
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


REWARDS = '''
import os
import signal
from pathlib import Path

import torch

def fragile(completions, trainer_state, **kwargs):
    """Its judge is away until somebody mends it: in the second step, from the second process alone."""
    if os.environ["RANK"] == "1" and trainer_state.global_step == 2 and not Path(__file__).with_name("mended").exists():
        raise ConnectionError("no judge")
    return [float(len(text) % 3) for text in completions]

def interrupts(completions, trainer_state, **kwargs):
    """A signal to the second process alone, while the second step is rewarded."""
    if os.environ["RANK"] == "1" and trainer_state.global_step == 2:
        group = torch.distributed.distributed_c10d._get_default_group()
        patience = group._get_backend(torch.device("cpu")).options._timeout
        Path(__file__).with_name("patience").write_text(str(patience.total_seconds()))
        os.kill(os.getpid(), signal.SIGTERM)
        Path(__file__).with_name("stayed").touch()
    return [float(len(text) % 3) for text in completions]

def dies(completions, trainer_state, **kwargs):
    """The second process is killed in the second step, as by one that is out of memory."""
    if os.environ["RANK"] == "1" and trainer_state.global_step == 2 and not Path(__file__).with_name("mended").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return [float(len(text) % 3) for text in completions]

if Path(__file__).with_name("no_server").exists():
    from sharevl_lite.rollout.errors import RolloutError
    from sharevl_lite.rollout.hf import HFRolloutEngine

    def sync(self):
        raise RolloutError("no server")

    HFRolloutEngine.sync = sync
'''


@pytest.fixture
def rewarded(command, tmp_path):
    """`rewarded(function, name, *words, **changes)`: a run in two processes with a function of `rewards.py`."""
    (tmp_path / "rewards.py").write_text(REWARDS)

    def make(function, name, *words, **changes):
        knobs = {"train.rollouts": 2, "train.save_rollouts": "null", "train.lr_scheduler_type": "constant"}
        knobs |= {"reward.functions": f"[{{path: '{tmp_path}/rewards.py:{function}', weight: 0.5}}]", **changes}
        return command(*words, name=name, **knobs)

    return make


@pytest.mark.slow
def test_one_process_whose_reward_fails_stops_both_after_saving(rewarded, finish, finish_in_two, tmp_path):
    """And the run goes on, even to a new length."""
    failed = finish([*LAUNCH, *rewarded("fragile", "run", **{"data.eval": "null"})[1:]], code=1)  # the launcher's own
    assert failed.stderr.count("process 1: reward function 'fragile' raised ConnectionError: no judge") == 1
    assert failed.stdout.count("Saved after step 1. Continue with --resume auto.") == 1
    assert "sharevl-lite:" not in failed.stderr
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["checkpoint-2"]
    (tmp_path / "mended").touch()
    longer = {"data.eval": "null", "train.rollouts": 3}
    resumed = finish_in_two(rewarded("fragile", "run", "--resume", "auto", **longer))
    assert "resuming after step 1 in 2 processes; 3 steps" in resumed.stdout
    assert store.read(tmp_path / "run", "train").column("step").unique().to_pylist() == [1, 2, 3]


@pytest.mark.parametrize("process", [0, 1])
def test_what_fails_in_both_is_told_once(process, caplog):
    def fail():
        raise UserError(f"no judge for {process}")

    with pytest.raises(ToldError, match="process 0: no judge for 0"):
        in_all(fail, lambda text: ["no judge for 0", "no judge for 1"], process)
    assert [record.getMessage() for record in caplog.records] == ["process 0: no judge for 0"] * (process == 0)
    # One whose own work succeeded stops as well; and a process alone says it in its own words.
    with pytest.raises(ToldError, match="process 1: away"):
        in_all(lambda: 7, lambda text: [text, "away"], 0)
    with pytest.raises(UserError, match=f"^no judge for {process}$"):
        in_all(fail, lambda text: [text], 0)
    assert in_all(lambda: 7, lambda text: [text, None], process) == 7


@pytest.mark.slow
def test_a_server_that_is_away_from_an_evaluation_is_told_once(rewarded, finish_in_two, tmp_path):
    """An engine that takes the weights of servers raises in all processes alike."""
    (tmp_path / "no_server").touch()
    failed = finish_in_two(rewarded("fragile", "run"), code=2)
    assert failed.stderr.count("no server") == failed.stderr.count("process 0: no server") == 1
    assert "sharevl-lite:" not in failed.stderr


def test_processes_wait_for_each_other_as_long_as_for_a_server(small_recipe):
    server = {"rollout.engine": "server", "rollout.server_urls": ["http://localhost:8000/v1"]}
    server |= {"rollout.server_adapter_dir": "adapters", "rollout.server_timeout_seconds": 7200.0}
    assert patience(small_recipe()).total_seconds() == 6 * 3600
    recipe = small_recipe(**server, **{"rollout.server_retries": 9})
    assert training_arguments(recipe).ddp_timeout >= 10 * 7200


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_with_the_step_before(rewarded, finish_in_two, tmp_path):
    stopped = finish_in_two(rewarded("interrupts", "run", **{"data.eval": "null"}), code=130)
    assert stopped.stdout.count("Saved after step 1. Continue with --resume auto.") == 1
    assert not stopped.stderr
    assert not (tmp_path / "stayed").exists()
    assert float((tmp_path / "patience").read_text()) == 6 * 3600, "the group's, on a CPU too"
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["checkpoint-2"]


@pytest.mark.slow
def test_processes_with_folders_of_their_own_are_refused(command, finish_in_two, tmp_path):
    resume = ("--resume", "auto")
    refused = finish_in_two(command(*resume), code=2, second=command(*resume, output_dir=tmp_path / "node1"))
    assert refused.stderr.count("node1/small is not the folder that the main process writes to: every process") == 1
    assert not (tmp_path / "small").exists()
    assert not refused.stdout


@pytest.mark.parametrize(
    ("mistake", "told"),
    [("--data.train=nope.jsonl", "nope.jsonl: no such file"), ("--dryrun", "unknown option --dryrun")],
)
def test_a_mistake_that_all_meet_is_told_once(command, finish, mistake, told):
    failed = finish([*LAUNCH, *command(mistake)[1:]], code=1)  # the launcher's own
    assert failed.stderr.count(told) == 1


def test_a_mistake_that_one_process_alone_meets_is_told_by_it(command, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("sharevl_lite.together.LEFT_TO_MAIN_SECONDS", 0.0)
    assert main(command("--data.train=nope.jsonl")[3:]) == 2
    assert "nope.jsonl: no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_whose_peer_was_killed_saves_alone_and_says_so(rewarded, finish_in_two, tmp_path):
    words = {"data.eval": "null"}
    left = finish_in_two(rewarded("dies", "run", **words), code=(2, -signal.SIGKILL))
    assert left.stderr.count("another process died or hangs, its own output says why (") == 1
    assert "Saved after step 1. Continue with --resume auto." in left.stderr
    assert "Traceback" not in left.stderr
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["checkpoint-2"]
    (tmp_path / "mended").touch()
    resumed = finish_in_two(rewarded("dies", "run", "--resume", "auto", **words))
    assert "resuming after step 1 in 2 processes; 2 steps" in resumed.stdout


def test_a_process_whose_peer_dies_while_it_loads_says_so(small_recipe, monkeypatch):
    def load(*_):
        raise RuntimeError(said)

    monkeypatch.setattr("sharevl_lite.run._train_in_folder", load)
    said = "[/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:1. This is typically"
    told = (
        r"another process died or hangs, its own output says why \(Connection closed by peer \[127.0.0.1\]:1\)\. Repeat"
    )
    with pytest.raises(UserError, match=told):
        train(small_recipe())
    said = "CUDA error: an illegal memory access"
    with pytest.raises(RuntimeError, match="CUDA error"):
        train(small_recipe())
