"""Rewards of a user's own outside of the update: held-out figures, the best checkpoint, failures, their arguments."""

import json
import shlex

import pytest
from rich.console import Console
from safetensors.torch import load_file

from sharevl_lite import metrics_log, store, train
from sharevl_lite.cli import main
from sharevl_lite.rewards.functions import RewardFunctionError

pytestmark = pytest.mark.slow

REWARDS = '''
from pathlib import Path

def long(completion_ids, trainer_state, **kwargs):
    return [len(ids) / 10 for ids in completion_ids]

def fragile(completions, trainer_state, **kwargs):
    """Its judge is away in the third step, until somebody mends it."""
    if trainer_state.global_step == 4 and not Path(__file__).with_name("mended").exists():
        raise ConnectionError("no judge")
    return [float(len(text) % 3) for text in completions]

def judge(completions, trainer_state, **kwargs):
    """Away once, while held-out problems are asked after the first step."""
    away = Path(__file__).with_name("away")
    asked = Path(__file__).with_name("asked")
    with asked.open("a") as file:
        file.write("x")
    if away.exists() and trainer_state.global_step == 1 and len(completions) == 8:
        away.unlink()
        raise ConnectionError("no judge")
    return [float(len(text) % 3) for text in completions]

def told(completions, trainer_state, **kwargs):
    with Path(__file__).with_name("steps").open("a") as file:
        file.write(f"{trainer_state.global_step}/{trainer_state.max_steps} ")
    return [0.0 for _ in completions]

def named(completions, problem, images, answer, id, kind, solution, **kwargs):
    assert all("digit" in text for text in problem) and list(answer) == list(solution)
    assert all(pictures[0].mode == "RGB" for pictures in images) and len(set(id)) > 1
    return [0.0 for _ in completions]

def several(completions, answers, answer, **kwargs):
    assert answers == answer and all(isinstance(row, list) and row[0] == row[1] == "never" for row in answers)
    return [0.0 for _ in completions]

def wants(completions, hardness, **kwargs):
    return [0.0 for _ in completions]
'''


@pytest.fixture
def using(small_recipe, tmp_path):
    """`using(function, name, **changes)`: a small recipe with this function of `rewards.py`."""
    file = tmp_path / "rewards.py"
    file.write_text(REWARDS)

    def make(function, name="run", /, **changes):
        return small_recipe(name, **changes, **{"reward.functions": [{"path": f"{file}:{function}", "weight": 0.5}]})

    return make


def quietly(recipe, **kwargs):
    return train(recipe, console=Console(quiet=True), **kwargs)


def evaluations_of(run):
    return [record for record in metrics_log.read(run / "metrics.jsonl") if "eval_accuracy" in record]


def test_the_length_of_the_run_is_known_from_the_first_evaluation_on(using, tmp_path):
    quietly(using("told", **{"train.rollouts": 2}))
    asked = (tmp_path / "steps").read_text().split()
    assert asked[0] == "0/4", "before the training"
    assert {each.partition("/")[2] for each in asked} == {"4"}


def test_held_out_problems_are_rewarded_too_and_the_best_is_the_most_rewarded(using, capsys):
    """Accuracy has no weight: no answer box decides, and a reward for length falls as the demo's answers get right."""
    knobs = {"reward.accuracy_weight": 0.0, "reward.format_weight": 0.0, "eval.every_rollouts": 1}
    recipe = using("long", **knobs, **{"train.load_best_model_at_end": True, "train.learning_rate": 0.03})
    result = train(recipe, console=Console(width=140))
    evaluations = evaluations_of(result.run_dir)
    for record in evaluations:
        split = "best" if "eval_of_update" in record else "eval"
        rows = store.read(result.run_dir, split, steps=[record["step"]]).to_pylist()
        lengths = [len(row["token_ids"]) / 10 for row in rows]
        assert record["eval_reward/long"] == pytest.approx(sum(lengths) / len(lengths))
        assert record["eval_reward"] == pytest.approx(0.5 * record["eval_reward/long"])
    during = [record for record in evaluations[1:] if "eval_of_update" not in record]
    best = max(during, key=lambda record: record["eval_reward"])
    assert result.summary["adapter_update"] == best["update"]
    assert result.summary["reward_after"] == best["eval_reward"] == evaluations[-1]["eval_reward"]
    kept = result.run_dir / "checkpoints" / f"checkpoint-{best['update']}" / "adapter_model.safetensors"
    ended = load_file(str(result.run_dir / "adapter" / "adapter_model.safetensors"))
    assert all((tensor == ended[name]).all() for name, tensor in load_file(str(kept)).items())
    told = capsys.readouterr().out
    assert f"best      the adapter is that of update {best['update']}, the best in held-out reward" in told
    assert "reward/long" in told
    if best["update"] != during[-1]["update"]:
        assert f"held-out with the best checkpoint, of update {best['update']}:" in told


def test_a_failing_function_costs_one_step_and_the_run_goes_on_as_if_it_had_not(using, tmp_path, capsys):
    brief = {"data.eval": None, "train.save_rollouts": None}
    recipe = using("fragile", **brief)
    with pytest.raises(RewardFunctionError, match="no judge"):
        train(recipe, console=Console(width=140))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Saved after step 2. ")]
    words = shlex.split(line.partition("Continue with ")[2])
    assert words[-4:] == ["train", str(recipe.run_dir / "recipe.yaml"), "--resume", "auto"]
    assert [path.name for path in (recipe.run_dir / "checkpoints").iterdir()] == ["checkpoint-4"]
    (tmp_path / "mended").touch()
    went_on = quietly(recipe, resume="auto").run_dir
    undisturbed = quietly(using("fragile", "other", **brief)).run_dir
    one, other = (load_file(str(run / "adapter" / "adapter_model.safetensors")) for run in (went_on, undisturbed))
    assert all((tensor == other[name]).all() for name, tensor in one.items())
    assert store.read(went_on).drop_columns(["run_id"]).equals(store.read(undisturbed).drop_columns(["run_id"]))


def test_a_function_that_fails_on_held_out_problems_costs_no_evaluation(using, tmp_path):
    """Nothing is saved then: the step is repeated and evaluated, and the best checkpoint is the same."""
    knobs = {"reward.accuracy_weight": 0.0, "eval.every_rollouts": 1, "train.load_best_model_at_end": True}
    knobs |= {"train.rollouts": 2, "train.problems_per_update": 4, "eval.problems": 4}
    undisturbed = quietly(using("judge", "other", **knobs))
    (tmp_path / "away").touch()
    with pytest.raises(RewardFunctionError, match="no judge"):
        quietly(using("judge", **knobs))
    went_on = quietly(using("judge", **knobs), resume="auto")
    same = ("update", "eval_reward", "eval_accuracy")
    one, other = (
        [{name: record[name] for name in same} for record in evaluations_of(result.run_dir)]
        for result in (went_on, undisturbed)
    )
    assert one == other
    assert went_on.summary["adapter_update"] == undisturbed.summary["adapter_update"]


@pytest.mark.parametrize("columns", [{}, {"answer": "label"}])
def test_an_automatic_layout_s_columns_have_their_names_too(using, tmp_path, columns):
    """`question`, `image` and `label` or `answer`, as some data sets on the Hub have them."""
    from sharevl_lite.data.digits import digits_problems

    answer = columns.get("answer", "answer")
    (tmp_path / "rewards.py").write_text(
        f"def asks(completions, question, image, {answer}, problem, images, **kwargs):\n"
        "    assert question == problem and [p[0].size for p in image] == [p[0].size for p in images]\n"
        "    return [0.0 for _ in completions]\n"
    )
    with (tmp_path / "rows.jsonl").open("w") as file:
        for number, problem in enumerate(digits_problems("train")[:4]):
            problem.images[0].save(tmp_path / f"{number}.png")
            file.write(json.dumps({"question": problem.text, "image": f"{number}.png", answer: problem.answer}) + "\n")
    named = {"problem": "question", "images": "image", **columns} if columns else {}
    brief = {"data.eval": None, "train.rollouts": 1, "train.save_rollouts": None, "data.columns": named}
    quietly(using("asks", **brief, **{"data.train": str(tmp_path / "rows.jsonl")}))


def test_functions_get_the_columns_by_the_names_of_the_data_and_of_problems(using, tmp_path, capsys):
    """A file whose answer column is `solution`; what a function lacks is said before the model is read."""
    from sharevl_lite.data.digits import digits_problems

    with (tmp_path / "rows.jsonl").open("w") as file:
        for number, problem in enumerate(digits_problems("train")[:8]):
            problem.images[0].save(tmp_path / f"{number}.png")
            row = {"problem": problem.text, "images": [f"{number}.png"], "solution": problem.answer}
            file.write(json.dumps(row | problem.metadata) + "\n")
    brief = {
        "data.eval": None,
        "train.rollouts": 1,
        "train.save_rollouts": None,
        "data.columns": {"answer": "solution"},
    }
    data = {**brief, "data.train": str(tmp_path / "rows.jsonl")}
    quietly(using("named", **data))
    with pytest.raises(RewardFunctionError, match="'wants' needs hardness, which the data does not have; there are"):
        quietly(using("wants", "other", **data, **{"model.path": "no/such"}))


def test_a_run_on_lists_of_accepted_answers(using, tmp_path):
    """Functions get the lists; a row is right by its second answer; the store says both."""
    from sharevl_lite.data.digits import digits_problems

    problems = digits_problems("train")[:8]
    with (tmp_path / "rows.jsonl").open("w") as file:
        for number, problem in enumerate(problems):
            problem.images[0].save(tmp_path / f"{number}.png")
            row = {"problem": problem.text, "images": [f"{number}.png"], "answers": ["never", "never", problem.answer]}
            file.write(json.dumps(row) + "\n")
    data = {"data.train": str(tmp_path / "rows.jsonl"), "data.columns": {"answer": "answers"}, "data.eval": None}
    run = quietly(using("several", **data, **{"train.rollouts": 1})).run_dir
    rows = store.read(run).to_pylist()
    golds = {row["problem_id"]: row["answer"] for row in rows}
    assert golds == {number: f"never or {problems[int(number)].answer}" for number in golds}
    right = [row for row in rows if row["rewards"]["accuracy"] == 1.0]
    assert right
    assert all(row["verification"]["extracted"] in golds[row["problem_id"]].split() for row in right)


def test_an_evaluation_reports_them(using, tmp_path, capsys):
    recipe = using("long", **{"data.eval": None, "train.rollouts": 1, "train.save_rollouts": None})
    run = quietly(recipe).run_dir
    words = ["--data", "builtin:digits", "--eval.problems", "4", "--samples", "2", "--resamples", "200"]
    assert main(["eval", str(run), *words, "--name", "one"]) == 0
    told = capsys.readouterr().out
    assert "reward/long" in told
    figures = json.loads((run / "eval" / "one.json").read_text())
    rows = store.read(run / "eval" / "one", "eval").to_pylist()
    lengths = [len(row["token_ids"]) / 10 for row in rows if row["variant_index"] == 0]
    assert figures["metrics"]["reward/long"]["value"] == pytest.approx(sum(lengths) / len(lengths))
    assert main(["eval", str(run), *words, "--name", "two"]) == 0
    capsys.readouterr()
    assert main(["eval", "--compare", str(run / "eval" / "one.json"), str(run / "eval" / "two.json")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "reward/long" in line]
    assert "+0.000" in line
