"""Users' reward functions and failing verifications, in real runs of the shipped model."""

import json

import pytest
import yaml
from rich.console import Console
from safetensors.torch import load_file

from sharevl_lite import metrics_log, store, train
from sharevl_lite.cli import main
from sharevl_lite.data.digits import digits_problems

pytestmark = pytest.mark.slow

NEVER_VERIFIED = r"\frac{1}{0}"  # the grader raises: it cannot evaluate it
NEVER_FINISHED = "9^{9^{9^{9}}}"  # the grader is killed: it would compute longer than anybody lives
BRIEF = {"data.eval": None, "train.rollouts": 2, "train.save_rollouts": None}

REWARDS = '''
from pathlib import Path

def brevity(prompts, completions, completion_ids, answer, trainer_state, kind, log_metric, log_extra, **kwargs):
    """TRL's signature: text, ids and every column of the data, one entry per completion."""
    assert len(prompts) == len(completions) == len(completion_ids) == len(answer) == len(kind)
    assert all("<think>" not in prompt and "digit" in prompt for prompt in prompts)
    with Path(__file__).with_name("steps.txt").open("a") as file:
        print(trainer_state.global_step, len(completions), file=file)
    log_metric("longest", max(map(len, completion_ids)))
    log_extra("kind", [k if k == "even" else None for k in kind])
    return [None if k == "even" else -len(ids) / 10 for k, ids in zip(kind, completion_ids)]

def silent(completions, **kwargs):
    return [None] * len(completions)

def broken(completions, **kwargs):
    return [1 / (len(text) - len(text)) for text in completions]
'''


@pytest.fixture
def recipe_file(command, tmp_path):
    """`recipe_file(**changes)`: a recipe in a folder of its own, with `rewards.py` beside it."""

    def make(**changes):
        from sharevl_lite import load_recipe
        from sharevl_lite.recipes import dump_recipe

        flags = [word for word in command() if word.startswith("--")]
        demo = next(word for word in command() if word.endswith(".yaml"))
        data = yaml.safe_load(dump_recipe(load_recipe(demo, flags)))
        for key, value in changes.items():
            section, name = key.split(".")
            data[section][name] = value
        folder = tmp_path / "mine"
        folder.mkdir()
        (folder / "rewards.py").write_text(REWARDS)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(data))
        return folder / "recipe.yaml"

    return make


@pytest.fixture
def ungraded(tmp_path):
    """`ungraded(golds)`: a file of problems of the demo, the first so many or `picks`, with these answers."""

    def make(golds, picks=(0, 1, 2, 3)):
        folder = tmp_path / "data"
        folder.mkdir()
        with (folder / "train.jsonl").open("w") as file:
            problems = digits_problems("train")
            for number, (gold, problem) in enumerate(
                (gold, problems[pick]) for gold, pick in zip(golds, picks, strict=False)
            ):
                problem.images[0].save(folder / f"{number}.png")
                row = {"id": f"p{number}", "problem": problem.text, "images": [f"{number}.png"]}
                # An ungraded problem is asked in its own words: the model boxes its answers to those.
                row |= {"answer": gold or problem.answer, "variants": [] if gold else list(problem.variants)}
                file.write(json.dumps(row) + "\n")
        return str(folder / "train.jsonl")

    return make


def steps_of(run):
    return [record for record in metrics_log.read(run / "metrics.jsonl") if "loss" in record]


def test_a_user_function_in_a_run(recipe_file, tmp_path):
    """Weight, metrics, store and the arguments of TRL's signature; None for a completion is no reward of 0."""
    functions = [{"path": "rewards.py:brevity", "weight": 0.5}]
    file = recipe_file(**{**BRIEF, "reward.functions": functions})
    assert main(["train", str(file)]) == 0
    run = tmp_path / "small"
    assert json.loads((run / "data.json").read_text())["rewards"].keys() == {"brevity"}
    for record in steps_of(run):
        rows = store.read(run, steps=[record["step"]]).to_pylist()
        values = []
        for row in rows:
            value = dict(row["rewards"]["functions"])["brevity"]
            if "even" in row["variant_text"]:
                assert value is None
                assert row["extra"] == [("kind", "even")]
            else:
                assert row["extra"] == []
                assert value == -len(row["token_ids"]) / 10
                values.append(value)
            base = 0.9 * row["rewards"]["accuracy"] + 0.1 * row["rewards"]["format"]
            assert row["rewards"]["total"] == pytest.approx(base + 0.5 * (value or 0.0))
        assert len(values) < len(rows), "this test needs a question about even digits"
        assert record["reward/brevity"] == pytest.approx(sum(values) / len(values))
        assert record["log_metric/longest"] == max(len(row["token_ids"]) for row in rows)
        assert record["reward/brevity/applied"] == pytest.approx(len(values) / len(rows))
        totals = [row["rewards"]["total"] for row in rows]
        assert record["reward"] == pytest.approx(sum(totals) / len(totals))
    called = (file.parent / "steps.txt").read_text().split()
    assert called == ["0", "24", "2", "24"], "the optimizer steps done, and all responses of the rollout at once"


def test_a_user_function_that_raises(recipe_file, capsys):
    file = recipe_file(**{**BRIEF, "reward.functions": [{"path": "rewards.py:broken"}]})
    assert main(["train", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sharevl-lite: reward function 'broken' raised ZeroDivisionError: division by zero (")
    assert "(rewards.py, line 18; called with " in error
    assert "Traceback" not in error


def test_a_user_function_that_applies_to_nothing_is_told(recipe_file, capsys):
    file = recipe_file(**{**BRIEF, "reward.functions": [{"path": "rewards.py:silent"}]})
    assert main(["train", str(file)]) == 0
    assert capsys.readouterr().out.count("reward function 'silent' returned None for every response") == 1


def test_a_user_function_that_is_not_there_is_found_before_the_model_is_read(recipe_file, tmp_path, capsys):
    file = recipe_file(**{**BRIEF, "reward.functions": [{"path": "rewards.py:bravery"}], "model.path": "no/such"})
    assert main(["train", str(file)]) == 2
    assert "defines no function 'bravery'" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def unverified(rows):
    return [row for row in rows if row["verification"]["failure"] is not None]


@pytest.mark.parametrize(
    ("gold", "reason"),
    [(NEVER_VERIFIED, "ValueError: Can't evaluate nan or zoo"), (NEVER_FINISHED, "timeout after 0.4 s")],
)
def test_a_failed_verification_is_left_out_and_counted(small_recipe, ungraded, gold, reason):
    """One problem of four cannot be graded; the others are trained as ever."""
    source = ungraded([gold, None, None, None])
    # Few different answers: each takes its time-out and a new grader process.
    changes = {"data.train": source, "reward.timeout_seconds": 0.4, "rollout.temperature": 0.5}
    result = train(small_recipe(**BRIEF, **changes), console=Console(quiet=True))
    failures = 0
    for record in steps_of(result.run_dir):
        rows = store.read(result.run_dir, steps=[record["step"]]).to_pylist()
        failed = unverified(rows)
        assert {row["problem_id"] for row in failed} == {"p0"}
        assert {row["verification"]["failure"] for row in failed} == {reason}
        assert record["verifier_failures"] == len(failed) > 0
        failures += len(failed)
        for row in failed:
            assert (row["adv_global"], row["adv_local"], row["scorers"]) == (None, None, [])
            assert (row["rewards"]["total"], row["rewards"]["accuracy"]) == (None, None)
            assert row["rewards"]["format"] is not None
        known = [row["rewards"]["total"] for row in rows if row not in failed]
        assert record["reward"] == pytest.approx(sum(known) / len(known)), "nothing is scored 0"
        assert record["pairs"] == 2 * len(known)
        assert record["grad_norm"] > 0.0
    assert result.summary["verifier_failures"] == failures


def test_a_rollout_without_any_verified_answer(small_recipe, ungraded, capsys):
    """Nothing to learn from: the step is logged and stored, the policy stays, the run goes on."""
    changes = {**BRIEF, "data.train": ungraded([NEVER_VERIFIED]), "train.warmup_updates": 0}
    one = {"train.problems_per_rollout": 1, "train.problems_per_update": 1, "rollout.temperature": 0.1}
    recipe = small_recipe(**changes, **one)
    run = train(recipe, console=Console()).run_dir
    for record in steps_of(run):
        rows = store.read(run, steps=[record["step"]]).to_pylist()
        assert len(unverified(rows)) == len(rows) == record["verifier_failures"], "a response without a box is known"
        assert not {"reward", "accuracy", "ratio", "gap_mean"} & record.keys()
        assert (record["loss"], record["grad_norm"], record["pairs"]) == (0.0, 0.0, 0)
        assert (record["vanished_global"], record["rescued"]) == (1.0, 0.0)
    adapter = load_file(str(run / "adapter" / "adapter_model.safetensors"))
    assert all(float(tensor.abs().max()) == 0.0 for name, tensor in adapter.items() if "lora_B" in name)
    output = capsys.readouterr().out
    assert "step 2/2  reward -  accuracy -" in output


def test_two_processes_of_which_one_or_both_have_nothing_to_learn_from(
    command, finish_in_two, small_recipe, ungraded, tmp_path
):
    """They take part in the gradient's reduction all the same: neither waits, and the figures are those of one."""
    # Every response to problem 0 has a box at this temperature; one without would be known to be wrong.
    source = ungraded([*3 * [NEVER_VERIFIED], None], picks=(0, 0, 0, 1))
    changes = {**BRIEF, "data.train": source, "train.problems_per_rollout": 2, "train.problems_per_update": 2}
    changes |= {"rollout.temperature": 0.1, "model.dtype": "float64", "reward.timeout_seconds": 5.0}
    changes |= {"data.eval": "null", "train.save_rollouts": "null", "train.warmup_updates": 0}
    finish_in_two(command(name="two", **changes))
    train(small_recipe("one", **changes), console=Console(quiet=True))
    one, two = (steps_of(tmp_path / name) for name in ("one", "two"))
    assert [record["verifier_failures"] for record in two] == [record["verifier_failures"] for record in one]
    assert sorted(record["verifier_failures"] for record in one) == [6, 12], "all of one process's, and of both"
    for name in ("loss", "grad_norm", "reward", "pairs"):
        for first, second in zip(one, two, strict=True):
            unknown = name == "reward" and first["verifier_failures"] == 12
            assert (name not in first) == (name not in second) == unknown
            assert unknown or second[name] == pytest.approx(first[name], rel=1e-4, abs=1e-7), name
