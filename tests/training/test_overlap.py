"""The next rollout is sampled while this one trains: by the weights of that time, and nothing is lost."""

import json
import threading
import time

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from sharevl_lite import metrics_log, store, train
from sharevl_lite.ahead import Ahead
from sharevl_lite.policy.hf import load_adapter, load_policy, save_adapter
from sharevl_lite.rollout.errors import RolloutError
from sharevl_lite.rollout.hf import HFRolloutEngine
from sharevl_lite.trainer import ShareGRPOTrainer

AHEAD = {
    "rollout.engine": "server",
    "rollout.server_urls": ["http://localhost:9/v1"],
    "rollout.overlap": True,
    "objective.sampler_cap": 2.0,
    "train.rollouts": 4,
    "train.learning_rate": 3e-3,
    "train.warmup_updates": 0,
}


class Elsewhere:
    """An engine with a copy of the policy that follows at :meth:`sync`, as a server's does; it notes what it did."""

    def __init__(self, policy, recipe, folder):
        self.policy, self.folder = policy, folder
        self.copy = load_policy(recipe.model, seed=1, temperature=recipe.rollout.temperature)
        self.engine = HFRolloutEngine(self.copy, recipe.rollout.batch_size)
        self.log = []
        self.sampling = threading.Lock()

    def sync(self):
        with self.sampling:
            self.log.append("sync")
            save_adapter(self.policy, self.folder)
            load_adapter(self.copy, self.folder)

    def sample(self, requests, sampling):
        with self.sampling:
            self.log.append(("sample", requests[0].key.split("/")[0:2], threading.current_thread().name))
            return self.engine.sample(requests, sampling)

    def close(self):
        self.log.append("close")


@pytest.fixture
def run(small_recipe, tmp_path, monkeypatch):
    """`run(name, **changes)`: (records of the steps, run folder, engine)."""

    def make(name="ahead", /, resume=None, **changes):
        recipe = small_recipe(name, **{**AHEAD, **changes})
        engines = []

        def engine(recipe, policy, **settings):
            engines.append(Elsewhere(policy, recipe, tmp_path / f"{name}-handed"))
            return engines[0]

        monkeypatch.setattr("sharevl_lite.run.make_engine", engine)
        monkeypatch.setattr("sharevl_lite.rollout.server.check_servers", lambda recipe: None)
        folder = train(recipe, console=Console(quiet=True), resume=resume).run_dir
        return [r for r in metrics_log.read(folder / "metrics.jsonl") if "loss" in r], folder, engines[0]

    return make


@pytest.mark.slow
def test_every_rollout_is_sampled_once_by_the_weights_of_the_step_before(run):
    records, folder, engine = run(**{"data.eval": None})
    updates = 2
    assert [record["lag_updates"] for record in records] == [0, updates, updates, updates]
    sampled = [(entry[1], entry[2]) for entry in engine.log if entry[0] == "sample"]
    assert sampled == [
        (["train", "1"], "MainThread"),
        *((["train", str(number)], "sharevl-ahead") for number in (2, 3, 4)),
    ]
    assert engine.log.count("sync") == 4
    # One model in float32: no gap on policy, and the distance of a step's updates behind it.
    assert records[0]["sampler_gap"] < 3e-5
    assert all(record["sampler_gap"] > 1e-4 for record in records[1:])
    assert all(record["seconds/wait"] >= 0 for record in records[1:])
    assert store.read(folder).column("step").unique().to_pylist() == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_without_learning_the_samples_are_those_of_a_run_that_waits(run, dynamic):
    """With a rate near 0 the lag changes nothing: the same responses, step by step, replaced problems included."""
    still = {"data.eval": None, "train.learning_rate": 1e-12, "rollout.dynamic_sampling": dynamic}
    ahead, ahead_dir, _ = run("ahead", **still)
    waits, waits_dir, _ = run("waits", **still, **{"rollout.overlap": False})
    columns = ["step", "problem_id", "variant_index", "response_index", "text"]
    tables = [
        store.read(folder).select(columns).sort_by([(c, "ascending") for c in columns[:-1]])
        for folder in (ahead_dir, waits_dir)
    ]
    assert tables[0].equals(tables[1])
    assert [r["reward"] for r in ahead] == [r["reward"] for r in waits]
    assert [r.get("extra_problems") for r in ahead] == [r.get("extra_problems") for r in waits]
    assert ("extra_problems" in waits[0]) == dynamic
    assert "lag_updates" not in waits[0]


@pytest.mark.slow
def test_an_evaluation_waits_for_the_samples_and_asks_the_newest_weights(run):
    records, _, engine = run(**{"eval.every_rollouts": 2})
    assert len(records) == 4
    kinds = [entry if isinstance(entry, str) else entry[1][0] for entry in engine.log]
    for place, kind in enumerate(kinds):
        if kind == "eval" and kinds[place - 1] != "eval":
            assert kinds[place - 1] == "sync", kinds
    assert {"eval", "train"} <= set(kinds)


@pytest.mark.slow
def test_what_fails_in_the_background_stops_the_run(run, monkeypatch):
    honest = Elsewhere.sample

    def breaks(self, requests, sampling):
        if requests[0].key.startswith("train/3/"):
            raise ConnectionError("the server is gone")
        return honest(self, requests, sampling)

    monkeypatch.setattr(Elsewhere, "sample", breaks)
    with pytest.raises(ConnectionError, match="the server is gone"):
        run(**{"data.eval": None})


@pytest.mark.slow
def test_a_step_that_fails_when_the_next_is_ahead_already_is_saved_with_what_it_was_sampled_by(
    run, tmp_path, monkeypatch
):
    def disagrees(self):
        if self._rollout.number == 3:
            raise RolloutError("they do not run the same model")

    monkeypatch.setattr(ShareGRPOTrainer, "_check_sampler", disagrees)
    with pytest.raises(RolloutError):
        run(**{"data.eval": None, "train.save_rollouts": None})
    (checkpoint,) = (tmp_path / "ahead" / "checkpoints").glob("checkpoint-*")
    saved = json.loads((checkpoint / "ahead" / "ahead.json").read_text())
    assert saved == {"rollout": 3, "updates": 2}
    ahead, now = (load_file(str(folder / "adapter_model.safetensors")) for folder in (checkpoint / "ahead", checkpoint))
    assert any(not torch.equal(ahead[name], now[name]) for name in now)


MEASURED = ("seconds", "memory", "tokens_per_second")


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_the_run_of_one_piece(run):
    """Bit for bit: the rollout that was ahead is asked by the weights and the success rates that it had been asked by.

    Every step asks the same problems, so that what the step before changed would be seen.
    """
    choices = {"share.difficulty.adaptive": True, "share.difficulty.solved": 0.6, "share.difficulty.unsolved": 0.4}
    changes = {**choices, "share.difficulty.memory": 0.0, "data.eval": None, "data.train_limit": 2}
    changes |= {"train.problems_per_rollout": 2, "train.problems_per_update": 2, "train.rollouts": 6}
    changes |= {"share.num_responses": 2, "train.save_total_limit": None}
    records, folder, _ = run(**changes)
    assert {record["lag_updates"] for record in records} == {0, 1}
    assert any(record["harder"] + record["plainer"] for record in records[3:]), "nothing was chosen after the stop"
    adapter, rows = load_file(str(folder / "adapter" / "adapter_model.safetensors")), store.read(folder)
    for stopped in (2, 3):
        (folder / "summary.json").unlink()
        again, _, engine = run(resume=folder / "checkpoints" / f"checkpoint-{stopped}", **changes)
        assert engine.log[:4] == ["sync", ("sample", ["train", str(stopped + 1)], "MainThread"), "sync", engine.log[3]]
        for one, other in zip(records, again, strict=True):
            assert one.keys() == other.keys()
            assert all(one[name] == other[name] for name in one if not any(word in name for word in MEASURED))
        assert store.read(folder).equals(rows)
        resumed = load_file(str(folder / "adapter" / "adapter_model.safetensors"))
        assert all(torch.equal(adapter[name], resumed[name]) for name in adapter)


def test_one_call_at_a_time():
    ahead = Ahead()
    assert ahead.take() is None
    started = time.monotonic()
    ahead.start(lambda: time.sleep(0.2) or "made")
    with pytest.raises(RuntimeError, match="has not been taken"):
        ahead.start(lambda: "more")
    ahead.wait()
    assert time.monotonic() - started >= 0.2
    assert ahead.take() == "made"
    assert ahead.take() is None
    ahead.start(lambda: 1 / 0)
    ahead.wait()  # what went wrong is told by take
    with pytest.raises(ZeroDivisionError):
        ahead.take()
    ahead.start(lambda: torch.ones(1))
    assert ahead.take().item() == 1.0
