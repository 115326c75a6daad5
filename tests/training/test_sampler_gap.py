"""Sampler and trainer must run the same model: their gap is logged, stops a run, and can be weighted away."""

import dataclasses
import math

import pytest
import torch
from rich.console import Console

from sharevl_lite import metrics_log, train
from sharevl_lite.cli import main
from sharevl_lite.errors import INSTALL_GPU
from sharevl_lite.loss_scale import LossScale
from sharevl_lite.policy.errors import PolicyError
from sharevl_lite.policy.packed import PackedPolicy
from sharevl_lite.rollout.errors import RolloutError
from sharevl_lite.rollout.hf import HFRolloutEngine

pytestmark = pytest.mark.slow
BRIEF = {"data.eval": None, "train.rollouts": 1, "train.problems_per_update": 4, "train.save_rollouts": None}


@pytest.fixture
def shifted(monkeypatch):
    """`shifted(nats)`: an engine whose log-probs are that much too high, on every second token."""
    honest = HFRolloutEngine._response

    def make(nats):
        def respond(self, row):
            response = honest(self, row)
            moved = tuple(p + nats * (place % 2) for place, p in enumerate(response.logprobs))
            return dataclasses.replace(response, logprobs=moved)

        monkeypatch.setattr(HFRolloutEngine, "_response", respond)

    return make


def step(run):
    return next(record for record in metrics_log.read(run / "metrics.jsonl") if "reward" in record)


def run(recipe):
    return train(recipe, console=Console(quiet=True)).run_dir


def test_an_honest_sampler_agrees_with_the_trainer(small_recipe):
    record = step(run(small_recipe(**BRIEF)))
    assert record["sampler_gap"] < 3e-5  # one model in float32, padded rows against packed ones
    assert record["sampler_gap"] <= record["sampler_gap_max"] < 5e-3  # of a token that is hardly ever drawn


def test_a_sampler_that_runs_another_model_stops_the_run(small_recipe, shifted):
    shifted(3.0)
    recipe = small_recipe(**BRIEF)
    with pytest.raises(RolloutError, match=r"sampler \(hf\) and trainer disagree by 1\.\d+ nats a token in step 1"):
        run(recipe)
    assert not (recipe.run_dir / "metrics.jsonl").exists()
    assert not list(recipe.run_dir.glob("checkpoints/checkpoint-*"))


def test_log_probs_that_are_not_numbers_stop_it_too(small_recipe, shifted):
    shifted(math.nan)
    with pytest.raises(RolloutError, match=r"step 1: log-probs of the sampler \(hf\) are not numbers"):
        run(small_recipe(**BRIEF))


@pytest.mark.parametrize("off", [{"rollout.max_sampler_gap": None}, {"rollout.top_p": 0.95}])
def test_the_check_can_be_off_and_is_with_top_p(small_recipe, shifted, off):
    shifted(3.0)
    assert step(run(small_recipe(**BRIEF, **off)))["sampler_gap"] > 1.0


def test_the_cap_weights_tokens_that_the_sampler_liked_more(small_recipe, shifted):
    """Every second token's weight is e^-3; the loss of an on-policy step is the weighted sum of its advantages."""
    shifted(3.0)
    changes = BRIEF | {"rollout.max_sampler_gap": None, "objective.aggregation": "token"}
    plain = step(run(small_recipe("plain", **changes)))
    capped = step(run(small_recipe("capped", **changes, **{"objective.sampler_cap": 2.0})))
    assert plain["reward"] == capped["reward"]
    assert 0 < capped["grad_norm"] < 0.9 * plain["grad_norm"]
    shifted(0.0)
    honest = step(run(small_recipe("honest", **changes, **{"objective.sampler_cap": 2.0})))
    # min(π_old / π_sampler, 2) of one model is 1 but for rounding.
    assert honest["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)


def test_an_engine_that_is_not_installed_is_named_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sharevl_lite.engines.importlib.util.find_spec", lambda name: None)
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: {path: nowhere/at-all}\ndata: {train: builtin:digits}\nrollout: {engine: vllm}\n")
    assert main(["train", str(recipe), "--output-dir", str(tmp_path)]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"rollout.engine: vLLM is not installed; {INSTALL_GPU}, or choose rollout.engine: hf" in message


def test_the_log_probs_of_the_sampler_are_in_the_loss_only_where_asked_for(small_recipe, shifted):
    """Without a cap, what the engine says of its own tokens changes nothing."""
    plain = step(run(small_recipe("plain", **BRIEF)))
    shifted(0.3)
    moved = step(run(small_recipe("moved", **BRIEF)))
    assert moved["loss"] == plain["loss"]
    assert moved["grad_norm"] == plain["grad_norm"]
    assert torch.isclose(torch.tensor(moved["sampler_gap"]), torch.tensor(0.15), atol=0.03)


@pytest.mark.parametrize("fault", ["nan", "overflow"])
def test_what_fails_in_a_pass_of_the_policy_is_told_and_saved(small_recipe, monkeypatch, fault):
    """In the second step, after a first one that is worth keeping."""
    forward, updates = PackedPolicy.forward, []
    unscale = LossScale.unscale
    monkeypatch.setattr(LossScale, "unscale", lambda scale, parameters: updates.append(0) or unscale(scale, parameters))

    def fail(policy, row, images, **options):
        scores = forward(policy, row, images, **options)
        if len(updates) < 1 or not torch.is_grad_enabled():
            return scores
        if fault == "overflow":
            raise PolicyError("model.dtype: the vision tower overflows")
        return scores._replace(logprobs_S=scores.logprobs_S * math.nan)

    monkeypatch.setattr(PackedPolicy, "forward", fail)
    recipe = small_recipe(**BRIEF | {"train.rollouts": 2, "train.save_rollouts": 10})
    told = {"nan": (RolloutError, "step 2: the loss is not finite"), "overflow": (PolicyError, "overflows")}[fault]
    with pytest.raises(told[0], match=told[1]):
        run(recipe)
    assert len(updates) == 1  # no smaller scale is tried
    assert [path.name for path in recipe.run_dir.glob("checkpoints/checkpoint-*")] == ["checkpoint-1"]
