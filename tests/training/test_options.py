"""Each knob of a run does what it says, in real runs of the shipped model."""

import json
import math
from io import StringIO

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from sharevl_lite import metrics_log, store, train
from sharevl_lite.checkpoints import list_checkpoints

pytestmark = pytest.mark.slow

# One step of one update, without held-out questions: seconds each.
BRIEF = {
    "data.eval": None,
    "train.rollouts": 1,
    "train.problems_per_update": 4,
    "train.save_rollouts": None,
}
# A learning rate that destroys the policy within two steps.
GETS_WORSE = {
    "train.load_best_model_at_end": True,
    "eval.every_rollouts": 1,
    "train.learning_rate": 0.03,
    "train.lr_scheduler_type": "constant_with_warmup",
    "train.warmup_updates": 5,
    "eval.problems": 6,
    "eval.samples": 2,
}

INTERRUPTS = '''
import os, signal

def interrupt(completions, trainer_state, **kwargs):
    """Ctrl-C during the evaluation after the second step."""
    if trainer_state.global_step == 4 and not os.path.exists(__file__ + ".done"):
        open(__file__ + ".done", "w").close()
        os.kill(os.getpid(), signal.SIGINT)
    return [0.0 for _ in completions]
'''


@pytest.fixture
def trained(small_recipe):
    """`trained(name, **changes)`: the folder of a small run, trained in this process."""

    def make(name, /, **changes):
        return train(small_recipe(name, **changes), console=Console(quiet=True)).run_dir

    return make


def records(run):
    return metrics_log.read(run / "metrics.jsonl")


def steps_of(run):
    return [record for record in records(run) if "loss" in record]


def evaluations_of(run):
    return [record for record in records(run) if "eval_accuracy" in record]


def adapter_in(folder):
    return load_file(str(folder / "adapter_model.safetensors"))


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def numbers(checkpoints):
    return [int(path.name.split("-")[-1]) for path in checkpoints]


def test_evaluation_during_training(small_recipe):
    """Before, every two steps, and after; the last step's own evaluation is the one after."""
    output = StringIO()
    recipe = small_recipe(**{"eval.every_rollouts": 2, "train.rollouts": 5, "eval.problems": 3})
    run = train(recipe, console=Console(file=output, width=140)).run_dir
    assert [(record["step"], record["update"]) for record in evaluations_of(run)] == [(0, 0), (2, 4), (4, 8), (5, 10)]
    assert [record["step"] for record in records(run)] == [0, 1, 2, 2, 3, 4, 4, 5, 5]
    assert sorted(set(store.read(run, "eval", columns=["step"])["step"].to_pylist())) == [0, 2, 4, 5]
    told = [line for line in output.getvalue().splitlines() if line.startswith("held-out after step")]
    assert [line.split(":")[0] for line in told] == [f"held-out after step {step}" for step in (0, 2, 4, 5)]
    for record, line in zip(evaluations_of(run), told, strict=True):
        assert f"accuracy {record['eval_accuracy']:.1%}, plain {record['eval_accuracy_plain']:.1%}" in line


def test_one_policy_is_evaluated_once(trained):
    """The evaluation after the last step is not repeated at the end: it would ask the same again."""
    run = trained("run", **{"eval.every_rollouts": 2, "train.rollouts": 2, "eval.problems": 2})
    assert [record["step"] for record in evaluations_of(run)] == [0, 2]


@pytest.mark.parametrize("limit", [1, 2])
def test_the_best_checkpoint_is_kept_and_loaded_at_the_end(trained, limit):
    """The first checkpoint is the best, and older than the limit allows."""
    run = trained("run", **GETS_WORSE, **{"train.save_total_limit": limit})
    during = evaluations_of(run)[1:5]
    best = max(during, key=lambda record: record["eval_accuracy"])
    assert best is during[0], "this test needs a run that gets worse"
    assert best["eval_accuracy"] > during[-1]["eval_accuracy"]
    kept = list_checkpoints(run / "checkpoints")
    assert numbers(kept) == [2, *range(10 - 2 * limit, 9, 2)]
    assert equal(adapter_in(run / "adapter"), adapter_in(kept[0]))
    assert not equal(adapter_in(run / "adapter"), adapter_in(kept[-1]))
    after = evaluations_of(run)[-1]
    assert len(evaluations_of(run)) == 6
    assert after["eval_accuracy"] == best["eval_accuracy"]
    assert store.read(run, "best").num_rows == store.read(run, "eval", steps=[4]).num_rows, "beside the last step's"
    assert after["eval_response_length"] == best["eval_response_length"]


def test_two_processes_end_with_the_same_best_adapter(command, finish_in_two, trained, tmp_path):
    """Each evaluates its share of the questions after the best checkpoint was loaded: both must have loaded it."""
    changes = {**GETS_WORSE, "train.rollouts": 2, "model.dtype": "float64", "train.save_total_limit": 1}
    finish_in_two(command(name="two", **changes))
    one, two = trained("one", **changes), tmp_path / "two"
    assert numbers(list_checkpoints(two / "checkpoints")) == [2, 4]
    assert equal(adapter_in(two / "adapter"), adapter_in(two / "checkpoints" / "checkpoint-2"))
    for name in ("eval_accuracy", "eval_accuracy_plain", "eval_accuracy_variants", "eval_response_length"):
        expected = pytest.approx([record[name] for record in evaluations_of(one)])
        assert [record[name] for record in evaluations_of(two)] == expected, name
    during, after = evaluations_of(two)[-3::2]
    assert during["eval_accuracy"] == after["eval_accuracy"] > evaluations_of(two)[-2]["eval_accuracy"]


@pytest.mark.parametrize(("limit", "kept"), [(2, [6, 8]), (None, [2, 4, 6, 8])])
def test_save_total_limit(trained, limit, kept):
    run = trained("run", **{"data.eval": None, "train.save_total_limit": limit})
    assert numbers(list_checkpoints(run / "checkpoints")) == kept
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == sorted(f"checkpoint-{n}" for n in kept)


def test_tensorboard(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trained("run", **{"train.report_to": ["tensorboard"], "train.rollouts": 2, "eval.problems": 2})
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for name in ("reward", "accuracy", "rescued", "gap_mean", "entropy", "seconds/rollout", "learning_rate", "loss"):
        expected = [(record["update"], pytest.approx(record[name], rel=1e-6)) for record in steps_of(run)]
        assert scalars[f"train/{name}"] == expected, name
    held_out = [(r["update"], pytest.approx(r["eval_accuracy"], rel=1e-6)) for r in evaluations_of(run)]
    assert scalars["eval/accuracy"] == held_out
    assert len(held_out) == 2
    assert not any("samples" in name or "flos" in name for name in scalars), "the Trainer's, which counts updates"
    (settings,) = (tag for tag in events.Tags()["tensors"] if tag.startswith("args"))
    told = events.Tensors(settings)[0].tensor_proto.string_val[0].decode()
    assert json.loads(told)["recipe"]["share"]["num_variants"] == 2


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("linear", lambda done: (6 - done) / (6 - 2)),
        ("cosine", lambda done: 0.5 * (1 + math.cos(math.pi * (done - 2) / (6 - 2)))),
        ("constant_with_warmup", lambda done: 1.0),
    ],
)
def test_learning_rates(trained, name, factor):
    """Six updates, two of them warm-up. A step logs the rate of its last update, before which `done` were taken."""
    changes = {**BRIEF, "train.rollouts": 3, "train.problems_per_update": 2, "share.num_responses": 2}
    run = trained(
        "run",
        **changes,
        **{"train.lr_scheduler_type": name, "train.warmup_updates": 2, "train.learning_rate": 2e-4},
    )
    rates = [record["learning_rate"] for record in steps_of(run)]
    expected = [2e-4 * (done / 2 if done < 2 else factor(done)) for done in (1, 3, 5)]
    assert rates == pytest.approx(expected, rel=1e-9)


def test_epochs_go_over_the_same_samples(trained):
    """Two epochs: twice the updates on one rollout's samples, the second of them off-policy."""
    changes = {**BRIEF, "train.rollouts": 2, "train.warmup_updates": 0}
    once, twice = (trained(f"epochs-{epochs}", **changes, **{"train.epochs_per_rollout": epochs}) for epochs in (1, 2))
    assert [record["update"] for record in steps_of(once)] == [1, 2]
    assert [record["update"] for record in steps_of(twice)] == [2, 4]
    assert all(record["ratio"] == 1.0 for record in steps_of(once))
    assert all(record["ratio"] != 1.0 for record in steps_of(twice))
    first = [steps_of(run)[0] for run in (once, twice)]
    for name in ("reward", "accuracy", "pairs", "entropy", "sampled_tokens"):
        assert first[0][name] == first[1][name], name
    columns = ["step", "problem_id", "variant_index", "response_index", "text"]
    rows = [store.read(run, columns=columns, steps=[1]) for run in (once, twice)]
    assert rows[0].equals(rows[1])


def first_pairs(run):
    """(advantage, tokens) of each pair of step 1."""
    return [
        (scorer["advantage"], len(row["token_ids"]))
        for row in store.read(run, steps=[1]).to_pylist()
        for scorer in row["scorers"]
    ]


def test_aggregations(trained):
    """On policy every ratio is 1, so the first loss is a weighted mean of the stored advantages."""
    runs = {
        name: trained(name, **BRIEF, **{"objective.aggregation": name}) for name in ("token", "sequence", "dr_grpo")
    }
    pairs = first_pairs(runs["token"])
    assert all(first_pairs(run) == pairs for run in runs.values())
    assert len(pairs) == 4 * 2 * 2 * 3
    assert len({length for _, length in pairs}) > 1, "with one length the aggregations would agree"
    summed = sum(advantage * length for advantage, length in pairs)
    expected = {
        "sequence": sum(advantage for advantage, _ in pairs) / len(pairs),
        "token": summed / sum(length for _, length in pairs),
        "dr_grpo": summed / (len(pairs) * 24),
    }
    for name, run in runs.items():
        # The Trainer sums a step's loss in float32.
        assert steps_of(run)[0]["loss"] == pytest.approx(-expected[name], rel=1e-4, abs=1e-7), name
    grads = [steps_of(run)[0]["grad_norm"] for run in runs.values()]
    assert len({round(grad, 6) for grad in grads}) == 3


def test_a_ratio_for_each_sequence(trained):
    """The second epoch is off policy: its ratios and clips are of sequences, those of the first are 1 either way."""
    changes = {**BRIEF, "train.epochs_per_rollout": 2, "train.warmup_updates": 0, "objective.epsilon": 0.01}
    runs = [
        trained(level, **changes, **{"objective.importance_sampling_level": level}) for level in ("token", "sequence")
    ]
    (token,), (sequence,) = (steps_of(run) for run in runs)
    assert token["pairs"] == sequence["pairs"]
    assert first_pairs(runs[0]) == first_pairs(runs[1])
    assert 1.0 != token["ratio"] != sequence["ratio"] != 1.0
    clipped = [sum(record[f"clip_{side}"] for side in ("low", "high")) for record in (token, sequence)]
    assert clipped[0] != clipped[1]


@pytest.mark.parametrize("trajectories", ["shared", "own"])
def test_corrections(trained, trajectories):
    """They touch tokens that another variant's policy sampled, and no others. A cap that nothing reaches is none."""
    figures = {}
    for name, cap in (("none", 1.0), ("truncate", 1.0), ("mask", 1.5), ("mask", 1e9)):
        knobs = {"objective.correction": name, "objective.correction_cap": cap, "share.trajectories": trajectories}
        (record,) = steps_of(trained(f"{name}-{cap}", **BRIEF, **knobs))
        figures[name, cap] = record["loss"], record["grad_norm"]
    assert figures["none", 1.0] == figures["mask", 1e9]
    assert len(set(figures.values())) == (3 if trajectories == "shared" else 1)


def test_grpo_scores_responses_under_their_own_variant_only(trained):
    """`trajectories: own`, `levels: local` is GRPO on the same variants: P·m·n pairs and nothing between variants."""
    run = trained("grpo", **{**BRIEF, "train.rollouts": 2, "share.trajectories": "own", "share.levels": "local"})
    for record in steps_of(run):
        assert record["pairs"] == 4 * 2 * 3
        assert not [name for name in record if name.startswith("gap")]
        assert {"vanished_local", "vanished_global", "rescued", "entropy"} <= record.keys()
    for row in store.read(run).to_pylist():
        own, other = row["scorers"][row["variant_index"]], row["scorers"][1 - row["variant_index"]]
        assert own["advantage"] == row["adv_local"]
        assert own["mean_logprob"] < 0.0
        assert {value for name, value in other.items() if name != "variant_index"} == {None}
        under = row["scorer_logprobs"]
        assert under[other["variant_index"]] is None
        assert len(under[own["variant_index"]]) == len(row["token_ids"])


@pytest.mark.parametrize("levels", ["global", "local"])
def test_levels_of_sharing(trained, levels):
    run = trained("run", **BRIEF, **{"share.levels": levels})
    rows = store.read(run).to_pylist()
    assert any(row["adv_global"] for row in rows)
    assert any(row["adv_local"] for row in rows)
    for row in rows:
        own, other = row["scorers"][row["variant_index"]], row["scorers"][1 - row["variant_index"]]
        assert own["advantage"] == row[f"adv_{levels}"]
        assert other["advantage"] == (row["adv_global"] if levels == "global" else 0.0)


@pytest.mark.parametrize(("num_variants", "pairs"), [(1, 4 * 3), (3, 4 * 9 * 3)])
def test_number_of_variants(trained, num_variants, pairs):
    run = trained("run", **BRIEF, **{"share.num_variants": num_variants})
    (record,) = steps_of(run)
    assert record["pairs"] == pairs
    assert ("gap_mean" in record) == ("gap_p95" in record) == (num_variants > 1)
    rows = store.read(run).to_pylist()
    assert len(rows) == 4 * num_variants * 3
    assert {row["variant_index"] for row in rows} == set(range(num_variants))
    assert all(len(row["scorers"]) == num_variants for row in rows)
    if num_variants == 1:
        assert record["rescued"] == 0.0
        assert record["vanished_local"] == record["vanished_global"]


def test_dropout_runs_and_is_off_where_it_must_be(trained):
    """Old log-probs are scored without dropout and the update with it, so a ratio no longer starts at 1."""
    plain = trained("plain", **BRIEF)
    run = trained("dropout", **BRIEF, **{"model.lora.dropout": 0.3})
    # The adapter starts at zero: dropout shows in its gradient before it shows in a ratio.
    assert steps_of(run)[0]["entropy"] == steps_of(plain)[0]["entropy"]
    assert steps_of(run)[0]["grad_norm"] != steps_of(plain)[0]["grad_norm"]
    longer = trained("longer", **{**BRIEF, "train.rollouts": 3}, **{"model.lora.dropout": 0.3})
    ratios = [record["ratio"] for record in steps_of(longer) if "ratio" in record]
    assert ratios[-1] != 1.0
    assert ratios[-1] == pytest.approx(1.0, abs=0.5)


def test_gradient_checkpointing_changes_no_number(trained):
    ways = {"off": (False, None), "on": (True, None), "partly": (True, 2)}
    first, *others = (
        trained(
            f"checkpointing-{name}",
            **{**BRIEF, "train.rollouts": 2, "model.gradient_checkpointing": on, "model.checkpointing_layers": layers},
        )
        for name, (on, layers) in ways.items()
    )
    for run in others:
        assert equal(adapter_in(first / "adapter"), adapter_in(run / "adapter"))
        for name in ("loss", "grad_norm", "reward", "ratio", "entropy", "gap_mean"):
            assert [record[name] for record in steps_of(first)] == [record[name] for record in steps_of(run)], name


def test_beta_pulls_towards_the_model_without_adapters(trained):
    """Step 1 starts at that model, where the KL is 0; a large weight keeps the policy nearer to it."""
    kls = {}
    for beta in (0.001, 10.0):
        changes = {**BRIEF, "train.rollouts": 4, "train.learning_rate": 0.003, "train.warmup_updates": 0}
        run = trained(f"beta-{beta}", **changes, **{"objective.beta": beta})
        kls[beta] = [record["kl"] for record in steps_of(run)]
        assert kls[beta][0] == 0.0
        assert all(record["pairs_skipped"] == 0 for record in steps_of(run)), "the KL term needs every pair"
    assert 0.0 < kls[10.0][-1] < kls[0.001][-1]


def test_a_resume_from_an_older_checkpoint_discards_the_later_ones(small_recipe, trained):
    """They belong to steps whose metrics and rollouts are discarded; `auto` must not find one of them."""
    recipe = small_recipe("run", **{"train.save_total_limit": None, "data.eval": None})
    run = trained("run", **{"train.save_total_limit": None, "data.eval": None})
    (run / "summary.json").unlink()
    (run / ".tmp-0123456789ab-adapter").mkdir()
    checkpoint = run / "checkpoints" / "checkpoint-4"
    seen = []

    class Stopped(Exception):
        pass

    class Stopping(Console):
        def print(self, *words, **kwargs):
            seen.append(numbers(list_checkpoints(run / "checkpoints")))
            raise Stopped

    with pytest.raises(Stopped):
        train(recipe, resume=checkpoint, console=Stopping())
    assert seen == [[2, 4]]
    assert [record["step"] for record in records(run)] == [1, 2]
    assert not list(run.glob(".tmp-*"))


def test_an_interrupt_keeps_the_newest_checkpoint_beside_the_best(small_recipe, tmp_path):
    """With a limit of one the best would leave no room for the one that the run goes on from."""
    (tmp_path / "stop.py").write_text(INTERRUPTS)
    functions = [{"path": f"{tmp_path}/stop.py:interrupt", "weight": 0.0}]
    recipe = small_recipe("run", **GETS_WORSE, **{"train.save_total_limit": 1, "reward.functions": functions})
    assert train(recipe, console=Console(quiet=True)).summary is None
    checkpoints = recipe.run_dir / "checkpoints"
    assert numbers(list_checkpoints(checkpoints)) == [2, 4], "the evaluation ends, and no further step begins"
    output = StringIO()
    assert train(recipe, resume="auto", console=Console(file=output, width=140)).summary["steps"] == 4
    assert "resuming after step 2" in output.getvalue()
    assert equal(adapter_in(recipe.run_dir / "adapter"), adapter_in(checkpoints / "checkpoint-2"))


def test_a_run_killed_during_its_last_words_ends_as_it_would_have(small_recipe, trained):
    """Everything is trained and evaluated but not yet said: a resume takes no step and evaluates nothing twice."""
    run = trained("run", **{"train.rollouts": 2, "eval.problems": 2})
    before, adapter = records(run), adapter_in(run / "adapter")
    summary = (run / "summary.json").read_bytes()
    (run / "summary.json").unlink()
    (run / "adapter" / "adapter_model.safetensors").unlink()
    recipe = small_recipe("run", **{"train.rollouts": 2, "eval.problems": 2})
    assert train(recipe, resume="auto", console=Console(quiet=True)).summary is not None
    assert records(run) == before
    assert (run / "summary.json").read_bytes() == summary
    assert equal(adapter_in(run / "adapter"), adapter)
