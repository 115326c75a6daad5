"""A run on a float16 base: an overflow costs a repetition, not an update."""

import pytest

from sharevl_lite import metrics_log, train
from sharevl_lite.loss_scale import START

BRIEF = {"model.dtype": "float16", "data.eval": None, "train.rollouts": 2}


@pytest.mark.slow
def test_an_overflow_repeats_the_update(small_recipe, monkeypatch):
    recipe = small_recipe("calm", **BRIEF)
    calm = steps(train(recipe).run_dir)
    monkeypatch.setattr("sharevl_lite.loss_scale.START", 2.0**20)
    loud = train(small_recipe("loud", **BRIEF)).run_dir
    wild = steps(loud)
    assert START == calm[0]["loss_scale"] <= wild[0]["loss_scale"] < 2.0**20
    for name in ("loss", "ratio", "clip_low", "pairs", "reward"):
        assert calm[0][name] == wild[0][name], name
    # Other scales round other gradients.
    assert calm[0]["grad_norm"] == pytest.approx(wild[0]["grad_norm"], rel=1e-2)
    assert (loud / "checkpoints" / "checkpoint-4" / "loss_scale.json").is_file()


def steps(run_dir):
    return [record for record in metrics_log.read(run_dir / "metrics.jsonl") if "loss" in record]
