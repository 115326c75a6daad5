"""`evaluate_target` with the shipped model: what is asked, saved and found again, the same every time."""

import html
import json
import math
import os
import re
import shutil
from dataclasses import replace

import pytest
from sharevl_explorer.prompt import prompt_as_sent

from sharevl_lite import store
from sharevl_lite.collect import Collector
from sharevl_lite.data import load_problems
from sharevl_lite.evaluate import Settings, _own_adapter_folder, evaluate_target, find_subject, report, state_of
from sharevl_lite.evaluation import document
from sharevl_lite.evaluation.errors import EvaluationError
from sharevl_lite.evaluation.saving import Place
from sharevl_lite.evaluation.subject import ALL_ROWS
from sharevl_lite.heldout import Evaluator
from sharevl_lite.policy.hf import load_policy
from sharevl_lite.policy.prompts import PromptEncoder
from sharevl_lite.recipes import load_recipe
from sharevl_lite.rewards import RewardScorer
from sharevl_lite.rollout.hf import HFRolloutEngine
from sharevl_lite.run import RunError
from sharevl_lite.wording import typed_command

MODEL = "builtin:digits-vl"
FEW = 200
"""Draws of a bootstrap where the interval does not matter."""


@pytest.fixture(scope="module")
def evaluated(run_dir):
    """The run, as its own recipe says; its folder had nothing in eval/ before."""
    return evaluate_target(str(run_dir), Settings(source_column="kind", resamples=FEW))


@pytest.fixture(scope="module")
def evaluation(evaluated):
    return evaluated.evaluation


def test_every_problem_is_asked_in_every_kind_of_way(evaluation):
    assert [len(outcome.asked) for outcome in evaluation.problems] == [4] * 6
    assert list(evaluation.kinds) == ["plain", "reworded", "rotate", "noise"]
    assert {len(way.answers) for outcome in evaluation.problems for way in outcome.asked} == {2}
    assert evaluation.counts["responses"] == 6 * 4 * 2
    assert set(evaluation.sources) == {"sum", "difference", "larger", "even"}
    assert 0.0 < evaluation.metrics["mean@2"].value < 1.0, "or this test shows little"


def test_figures_are_those_of_the_stored_responses(evaluated):
    """The store tells the same story: counted again from the Parquet rows."""
    rows = store.read(evaluated.place.responses, "eval").to_pylist()
    assert len(rows) == evaluated.evaluation.counts["responses"]
    plain = [row["rewards"]["accuracy"] for row in rows if row["variant_index"] == 0]
    assert evaluated.evaluation.metrics["mean@2"].value == pytest.approx(sum(plain) / len(plain))
    turned = [row["rewards"]["accuracy"] for row in rows if (row["transform"] or "").startswith("rotate")]
    assert evaluated.evaluation.kinds["rotate"]["mean@2"].value == pytest.approx(sum(turned) / len(turned))
    said = {(row["problem_id"], row["variant_index"], row["response_index"]): row for row in rows}
    for outcome in evaluated.evaluation.problems:
        for j, way in enumerate(outcome.asked):
            for i, answer in enumerate(way.answers):
                row = said[outcome.id, j, i]
                assert (row["verification"]["extracted"] or None) == answer.extracted
                assert len(row["token_ids"]) == answer.tokens
    shown = {sha for row in rows for sha in row["image_sha"]}
    assert len(shown) == 6 * 3, "the picture, turned, and noisy"


def test_the_explorer_shows_the_prompts_of_its_responses_as_they_were_sent(evaluated):
    """Those of every kind of asking, in the model's own template, with the recipe's prompt."""
    recipe = load_recipe(evaluated.place.folder.parent / "recipe.yaml")
    encoder = PromptEncoder.of(load_policy(recipe.model, seed=0), recipe.data)
    asked = sorted(set(store.read(evaluated.place.responses, "eval")["variant_text"].to_pylist()))
    assert len(asked) >= 6
    for question in asked:
        fold = str(prompt_as_sent(evaluated.place.responses, question))
        shown = re.search(r'<bdi class="words code" dir="auto">(.*?)</bdi>', fold, re.S)
        assert html.unescape(shown[1]) == encoder.render(question)
    assert (evaluated.place.responses / "tokenizer.json").is_file(), "or its tokens are shown as numbers"


def test_it_is_read_again_as_it_was_written(evaluated):
    assert document.read(evaluated.place.json) == evaluated.evaluation
    written = json.loads(evaluated.place.json.read_text(), parse_constant=pytest.fail)
    assert set(written["metrics"]["mean@2"]) >= {"value", "low", "high"}
    assert all(value is None or isinstance(value, str | int | float) for value in written["protocol"].values())
    told = evaluated.place.markdown.read_text()
    for words in ("## Plain questions: 6 problems, 2 responses each", "| rotate | 6 |", "| seed | 0 |", "consistency"):
        assert words in told
    plain, _, rest = told.partition("## All ways of asking a problem together")
    assert "mean@2" in plain
    for name in ("consistency", "all_right", "all_wrong", "mixed"):
        assert f"| {name} |" not in plain
        assert f"| {name} |" in rest


def test_the_next_command_is_named_as_it_can_be_typed(evaluated, monkeypatch, capsys):
    monkeypatch.setenv("PATH", os.devnull)
    report(evaluated, as_json=False)
    command = typed_command()
    assert f"({command} view {evaluated.place.responses})" in capsys.readouterr().out


def test_reward_functions_are_told_how_far_the_training_was(run_dir, tmp_path):
    """One that fades over the run could not be evaluated without."""
    (tmp_path / "fading.py").write_text(
        "def fading(completions, trainer_state, **kwargs):\n"
        "    return [trainer_state.global_step / trainer_state.max_steps] * len(completions)\n"
    )
    words = ["--reward.functions", f"[{{path: {tmp_path / 'fading.py'}:fading}}]", "--eval.problems", "2"]
    settings = Settings(overrides=words, variants="none", resamples=FEW, out=tmp_path)
    found = evaluate_target(str(run_dir), settings).evaluation
    assert found.metrics["reward/fading"].value == 1.0, "nothing says how far it was: to its end"
    subject = find_subject(str(run_dir), settings)
    length = subject.recipe.train.rollouts * subject.recipe.train.updates_per_rollout
    assert length > 1
    run = tmp_path / "run"
    for folder, made in ((run / "adapter", 1), (run / "checkpoints" / "checkpoint-7", 7)):
        folder.mkdir(parents=True)
        state = state_of(replace(subject, adapter=folder, run_dir=run))
        assert (state.global_step, state.max_steps) == (length, length)
        (run / "summary.json").write_text('{"adapter_update": 1.0}')
        (run / "checkpoints" / "checkpoint-7").mkdir(parents=True, exist_ok=True)
        (run / "checkpoints" / "checkpoint-7" / "trainer_state.json").write_text('{"global_step": 7}')
        assert state_of(replace(subject, adapter=folder, run_dir=run)).global_step == made
        shutil.rmtree(run)
    assert state_of(replace(subject, adapter=None, run_dir=None)).global_step == 0


def test_two_evaluations_of_one_thing_are_equal_and_neither_is_overwritten(run_dir, evaluated):
    again = evaluate_target(str(run_dir), Settings(source_column="kind", resamples=FEW))
    assert again.evaluation == evaluated.evaluation
    assert again.place.json != evaluated.place.json
    assert again.place.json.read_bytes() == evaluated.place.json.read_bytes()
    assert evaluated.place.folder == run_dir / "eval"
    assert sorted(path.name for path in run_dir.iterdir()) == ["adapter", "eval", "recipe.yaml"]
    other = evaluate_target(str(run_dir), Settings(overrides=["--seed", "1"], variants="none", resamples=FEW))
    assert other.evaluation.problems != evaluated.evaluation.problems


def test_the_adapter_is_evaluated_and_known_by_its_weights(run_dir, evaluation, tmp_path):
    bare = evaluate_target(
        MODEL,
        Settings(data="builtin:digits", recipe_file=str(run_dir / "recipe.yaml"), resamples=FEW, out=tmp_path,
                 overrides=["--eval.problems", "6"], source_column="kind"),
    ).evaluation  # fmt: skip
    assert bare.protocol["data_digest"] == evaluation.protocol["data_digest"]
    assert bare.protocol["adapter_sha256"] is None
    assert len(evaluation.protocol["adapter_sha256"]) == 64
    assert bare.problems != evaluation.problems


def test_drawn_variants_give_the_accuracy_that_training_logs(recipe_file):
    """The same questions with the same random numbers as the trainer's own held-out evaluation."""
    found = evaluate_target(
        MODEL, Settings(data="builtin:digits", recipe_file=str(recipe_file), variants="drawn", resamples=FEW,
                        overrides=["--eval.problems", "6", "--model.dtype", "float64"]),
    ).evaluation  # fmt: skip
    recipe = load_recipe(recipe_file, {"model.dtype": "float64"})
    policy = load_policy(recipe.model, seed=recipe.seed)
    encoder = PromptEncoder(policy.processor, policy.base.model.get_rope_index, recipe.data.prompt_template)
    problems = load_problems("builtin:digits", recipe.data, split="test", limit=6).problems
    with RewardScorer(recipe.reward) as scorer:
        collector = Collector(recipe, encoder, HFRolloutEngine(policy, recipe.rollout.batch_size), scorer)
        record = Evaluator(recipe, collector, problems).evaluate(0).record
    drawn = [way.known for outcome in found.problems for way in outcome.asked[1:]]
    assert found.metrics["mean@2"].value == pytest.approx(record["accuracy_plain"])
    assert sum(map(sum, drawn)) / sum(map(len, drawn)) == pytest.approx(record["accuracy_variants"])
    assert found.metrics["response_length"].value > 0
    assert found.counts["responses"] == record["responses"]


def test_one_of_several_accepted_answers_is_enough(recipe_file, tmp_path):
    """All numbers are accepted: a boxed number is right, whichever it is, and right ones are one class."""
    problems = load_problems("builtin:digits", load_recipe(recipe_file).data, split="test", limit=6).problems
    with (tmp_path / "rows.jsonl").open("w") as file:
        for number, problem in enumerate(problems):
            problem.images[0].save(tmp_path / f"{number}.png")
            row = {"problem": problem.text, "images": [f"{number}.png"], "answer": [str(n) for n in range(-9, 82)]}
            file.write(json.dumps(row) + "\n")
    settings = Settings(data=str(tmp_path / "rows.jsonl"), recipe_file=str(recipe_file), variants="none", resamples=FEW,
                        samples=4, out=tmp_path / "out")  # fmt: skip
    done = evaluate_target(MODEL, settings)
    answers = [answer for outcome in done.evaluation.problems for answer in outcome.asked[0].answers]
    assert {answer.group for answer in answers if (answer.extracted or "").isdigit()} == {0}
    said = [{a.extracted for a in outcome.asked[0].answers if a.correct} for outcome in done.evaluation.problems]
    assert max(map(len, said)) > 1, "or this test shows little"
    rows = store.read(done.place.responses, "eval").to_pylist()
    assert {row["answer"] for row in rows} == {" or ".join(map(str, range(-9, 82)))}
    assert done.evaluation.problems[0].gold == rows[0]["answer"]


def test_a_tolerance_is_in_the_protocol_where_there_is_one(run_dir, evaluation):
    assert "numeric_tolerance" not in evaluation.protocol, "as before"
    words = ["--reward.numeric_tolerance", "0.5"]
    settings = Settings(overrides=words, variants="none", samples=1, resamples=FEW)
    relaxed = evaluate_target(str(run_dir), settings).evaluation
    assert relaxed.protocol["numeric_tolerance"] == 0.5


def test_a_checkpoint_is_evaluated_into_its_run(run_dir, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(run_dir / "recipe.yaml", run)
    shutil.copytree(run_dir / "adapter", run / "checkpoints" / "checkpoint-8")
    (run / "checkpoints" / "checkpoint-8" / "trainer_state.json").write_text('{"global_step": 8}')
    done = evaluate_target(
        str(run / "checkpoints" / "checkpoint-8"), Settings(variants="none", samples=1, resamples=FEW, name="eight")
    )
    assert done.place.json == run / "eval" / "eight.json"
    assert done.evaluation.protocol["checkpoint"] == "checkpoint-8"
    with pytest.raises(EvaluationError, match="there already; choose another --name"):
        evaluate_target(str(run), Settings(name="eight"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (Settings(data="builtin:digits", name="x"), "--out DIR"),
        (Settings(data="builtin:digits", source_column="topic"), "--by topic: no problem has it.*digits, kind"),
        (Settings(data="builtin:digits", name="a/b", out="x"), "--name a/b"),
        (Settings(data="builtin:digits", out="/dev/null/x"), "cannot be made"),
    ],
)
def test_mistakes_are_said_before_a_model_is_loaded(settings, told, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sharevl_lite.evaluate.load_policy_of", lambda recipe: pytest.fail("loaded"))
    with pytest.raises(EvaluationError, match=told):
        evaluate_target(MODEL, settings)


@pytest.mark.parametrize(
    ("words", "rows"), [((), ALL_ROWS), (("--eval.problems", "8"), 8), (("--eval", "{problems: 8}"), 8)]
)
def test_all_rows_of_data_are_asked_unless_an_override_limits_them(recipe_file, words, rows):
    settings = Settings(data="builtin:digits", recipe_file=str(recipe_file), overrides=words)
    assert find_subject(MODEL, settings).recipe.eval.problems == rows


def test_without_data_there_is_nothing_to_evaluate_on():
    with pytest.raises(RunError, match="--data"):
        evaluate_target(MODEL)


def test_servers_read_the_adapter_from_a_folder_of_this_evaluation(recipe_file, tmp_path):
    """`served` in the run may be in use by its training, and an engine empties it at its start."""
    server = {"rollout.engine": "server", "rollout.server_urls": ["http://127.0.0.1:9/v1"]}
    recipe = load_recipe(recipe_file, server)
    with _own_adapter_folder(recipe, Place(tmp_path, "one")) as own:
        folder = own.rollout.server_adapter_dir
        assert folder.parent == tmp_path
        assert folder.is_dir()
    assert not folder.exists()
    shared = load_recipe(recipe_file, {**server, "rollout.server_adapter_dir": str(tmp_path)})
    with _own_adapter_folder(shared, None) as own:
        assert own.rollout.server_adapter_dir == tmp_path, "the user's own, for a server on another machine"
    assert tmp_path.is_dir()


def test_answers_that_cannot_be_verified_have_no_figures_and_are_shown_so(recipe_file, tmp_path, capsys):
    """The grader cannot evaluate this gold: figures are null and a dash, not 0."""
    (problem,) = load_problems("builtin:digits", load_recipe(recipe_file).data, split="test", limit=1).problems
    problem.images[0].save(tmp_path / "digits.png")
    row = {"problem": problem.text, "images": [str(tmp_path / "digits.png")], "answer": r"\frac{1}{0}"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "answer": ""}) + "\n")
    done = evaluate_target(
        MODEL, Settings(data=str(tmp_path / "rows.jsonl"), recipe_file=str(recipe_file), variants="none", resamples=FEW,
                        overrides=["--eval.temperature", "0", "--data.on_bad_row", "skip"]),
    )  # fmt: skip
    assert done.place is None
    assert done.evaluation.protocol["bad_rows_skipped"] == 1
    assert done.evaluation.counts["not_verified"] == 2
    found = done.evaluation.metrics["mean@2"]
    assert (found.value, found.low, found.problems, found.left_out) == (None, None, 0, 1)
    report(done, as_json=True)
    shown = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert shown["metrics"]["mean@2"]["value"] is None
    report(done, as_json=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["mean@2", "–", "–", "0", "(1", "left", "out)"] in lines
    assert ["bad", "rows,", "skipped", "1"] in lines
    assert not any(isinstance(v, float) and math.isnan(v) for v in shown["counts"].values())
