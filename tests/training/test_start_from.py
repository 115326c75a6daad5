"""A run that starts with the weights of another, and one that goes on at another rate."""

import json
import shutil

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from sharevl_lite import load_recipe, metrics_log, store, train
from sharevl_lite.policy.errors import PolicyError
from sharevl_lite.run_folder import RunError

pytestmark = pytest.mark.slow

BRIEF = {"data.eval": None, "train.rollouts": 2, "train.warmup_updates": 0}


@pytest.fixture
def trained(small_recipe):
    """`trained(name, resume=None, **changes)`: the folder of a small run, trained in this process."""

    def make(name, /, resume=None, **changes):
        return train(small_recipe(name, **BRIEF, **changes), resume=resume, console=Console(quiet=True)).run_dir

    return make


@pytest.fixture
def first(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "first")


def adapter_of(folder):
    return load_file(str(folder / "adapter_model.safetensors"))


def steps_of(run):
    return [record for record in metrics_log.read(run / "metrics.jsonl") if "loss" in record]


def stopped_after(run, update):
    """The run as a kill right after that update's checkpoint leaves it."""
    (run / "summary.json").unlink()
    for checkpoint in (run / "checkpoints").iterdir():
        if int(checkpoint.name.split("-")[-1]) > update:
            for file in checkpoint.iterdir():
                file.unlink()
            checkpoint.rmdir()


def test_another_run_s_adapter_is_where_training_starts(trained, first):
    still = {"train.learning_rate": 1e-12, "model.lora.start_from": str(first)}
    second = trained("second", **still)
    weights, start = adapter_of(second / "adapter"), adapter_of(first / "adapter")
    assert weights.keys() == start.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, start[name], rtol=0, atol=1e-9)  # four steps of Adam at 1e-12
    assert any(weight.abs().max() > 0 for name, weight in weights.items() if "lora_B" in name)
    # A checkpoint's folder does as well, and a stopped run goes on from its own weights, wherever it started.
    third = trained("third", **{"model.lora.start_from": str(first / "checkpoints" / "checkpoint-2")})
    ended = adapter_of(third / "adapter")
    stopped_after(third, 2)
    again = trained("third", resume="auto", **{"model.lora.start_from": str(first / "checkpoints" / "checkpoint-2")})
    assert all(torch.equal(weight, ended[name]) for name, weight in adapter_of(again / "adapter").items())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model.lora.alpha": 8}, "has rank 16 and alpha 8"),
        ({"model.lora.rank": 32, "model.lora.alpha": 64}, "has rank 16, alpha 32"),
        ({"model.lora.target_modules": ["q_proj"]}, "does not fit"),
        ({"model.lora.start_from": "nowhere"}, "nowhere: no such folder"),
        ({"lora_alpha": None}, "holds no adapter"),
        ({"r": 0}, "holds no adapter"),
        ({"alpha_pattern": {"q_proj": 999}}, "alpha_pattern"),
        ({"use_rslora": True}, "use_rslora"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(trained, first, changes, told):
    config = first / "adapter" / "adapter_config.json"
    own = {key: value for key, value in changes.items() if "." not in key}
    config.write_text(json.dumps(json.loads(config.read_text()) | own))
    changes = {key: value for key, value in changes.items() if "." in key}
    with pytest.raises(PolicyError, match=f"model.lora.start_from: .*{told}"):
        trained("second", **{"model.lora.start_from": str(first), **changes})


def test_a_run_goes_on_after_a_move_and_without_what_it_started_from(trained, first, tmp_path, monkeypatch):
    """Its data lies elsewhere now, and the adapter that it began with is gone."""
    from sharevl_lite.data.digits import digits_problems

    (tmp_path / "old").mkdir()
    lines = []
    for number, each in enumerate(digits_problems("train")[:8]):
        each.images[0].save(tmp_path / "old" / f"{number}.png")
        lines.append(f'{{"problem": "{each.text}", "images": ["{number}.png"], "answer": "{each.answer}"}}\n')
    (tmp_path / "old" / "rows.jsonl").write_text("".join(lines))
    monkeypatch.chdir(tmp_path / "old")
    (tmp_path / "start").mkdir()
    shutil.copytree(first / "adapter", tmp_path / "start" / "adapter")
    begun = {"model.lora.start_from": str(tmp_path / "start"), "data.train": "rows.jsonl"}
    run = trained("run", **begun)
    stopped_after(run, 2)
    (tmp_path / "old").rename(tmp_path / "new")
    shutil.rmtree(tmp_path / "start")
    monkeypatch.chdir(tmp_path / "new")
    trained("run", resume="auto", **begun)
    assert load_recipe(run / "recipe.yaml").data.train == str(tmp_path / "new" / "rows.jsonl")
    (run / "summary.json").unlink()
    (tmp_path / "new" / "rows.jsonl").write_text("".join(reversed(lines)))
    with pytest.raises(RunError, match="is not what"):
        trained("run", resume="auto", **begun)
    (tmp_path / "new" / "rows.jsonl").rename(tmp_path / "new" / "others.jsonl")
    with pytest.raises(RunError, match="another recipe"):
        trained("run", resume="auto", **{**begun, "data.train": "others.jsonl"})


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_stopped_run_goes_on_at_another_rate(trained, caplog, schedule):
    run = trained("run", **{"train.lr_scheduler_type": schedule})
    rates = [record["learning_rate"] for record in steps_of(run)]
    peak = load_recipe(run / "recipe.yaml").train.learning_rate
    stopped_after(run, 2)
    slower = {"train.lr_scheduler_type": schedule, "train.learning_rate": peak / 4, "rollout.max_sampler_gap": None}
    with caplog.at_level("WARNING"):
        trained("run", resume="auto", **slower)
    assert f"train.learning_rate was {peak:g}; the run goes on with {peak / 4:g}" in caplog.text
    assert [record["learning_rate"] for record in steps_of(run)] == pytest.approx([rates[0], rates[1] / 4])
    saved = torch.load(run / "checkpoints" / "checkpoint-4" / "scheduler.pt")
    assert saved["base_lrs"] == [peak / 4] * len(saved["base_lrs"])
    (run / "summary.json").unlink()
    with pytest.raises(RunError, match="another recipe"):
        trained("run", resume="auto", **slower, **{"objective.epsilon": 0.1})


def test_responses_that_were_cut_off_train_nothing_where_the_recipe_says_so(trained):
    short = {"rollout.max_completion_length": 18}
    runs = {
        flag: trained(f"cut-{flag}", **short, **{"objective.mask_truncated_completions": flag})
        for flag in (False, True)
    }
    first = {flag: store.read(run, steps=[1]).to_pylist() for flag, run in runs.items()}
    cut = [row["truncated"] for row in first[True]]
    assert 0 < sum(cut) < len(cut)
    for masked, plain in zip(first[True], first[False], strict=True):
        assert masked["adv_global"] == (None if masked["truncated"] else plain["adv_global"])
        assert len(masked["scorers"]) == (0 if masked["truncated"] else 2)
    pairs = {flag: steps_of(run)[0]["pairs"] for flag, run in runs.items()}
    assert pairs[True] == pairs[False] - 2 * sum(cut)  # each under two variants
    assert len(steps_of(runs[True])) == 2
