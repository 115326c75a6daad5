"""lmms-eval's command, and its files: recorded from lmms-eval 0.7.3 with seven made-up questions and a server whose
answer to one of them was an error."""

import json
import shutil
from pathlib import Path

import pytest

from sharevl_lite.evaluation.document import Evaluation
from sharevl_lite.evaluation.errors import EvaluationError
from sharevl_lite.evaluation.harness import command, find_harness, parse_suite, read_results, shell_line
from sharevl_lite.evaluation.outcomes import Outcome
from sharevl_lite.evaluation.published import BENCHMARKS, R1_SHAREVL_7B
from sharevl_lite.recipes import load_recipe
from sharevl_lite.rollout.serving import name_of

RECORDED = Path(__file__).with_name("recorded")
BOTH = ["mathvista", "ai2d"]


@pytest.fixture
def recipe(recipe_file):
    return load_recipe(
        recipe_file,
        {
            "rollout.engine": "server",
            "rollout.server_urls": ["http://127.0.0.1:9/v1"],
            "eval.temperature": 0.0,
            "seed": 3,
        },
    )


@pytest.fixture
def output(tmp_path):
    return Path(shutil.copytree(RECORDED, tmp_path / "lmms-eval"))


def test_the_command_asks_the_recipes_server_with_the_recipes_sampling(recipe):
    words = command(["lmms-eval"], recipe, BOTH, model="m", output=Path("out"), limit=5)
    given = dict(zip(words[1::2], words[2::2], strict=False))
    assert given["--tasks"] == "sharevl_mathvista,sharevl_ai2d"
    told = dict(pair.split("=") for pair in given["--model_args"].split(","))
    assert told["model"] == "m"
    assert told["base_url"] == "http://127.0.0.1:9/v1"
    assert int(told["timeout"]) == 600, "its own default is ten seconds"
    assert given["--gen_kwargs"] == "temperature=0.0,top_p=1.0,max_new_tokens=24,seed=3"
    assert Path(given["--include_path"], "sharevl_ai2d.yaml").is_file()
    assert (given["--limit"], given["--output_path"]) == ("5", "out")
    with pytest.raises(EvaluationError, match="splits at commas"):
        command(["lmms-eval"], recipe, BOTH, model="a,b", output=Path("out"), limit=None)


@pytest.mark.parametrize("model", ["/models/geo3k", "grpo1", "org/demo4-7b", "my-gpt-5", "12345e678901", "7", "True"])
def test_a_name_that_the_harness_takes_for_something_else_is_refused(recipe, model):
    with pytest.raises(EvaluationError, match=r"--served-model-name base, and give --rollout\.server_model base here"):
        command(["lmms-eval"], recipe, BOTH, model=model, output=Path("out"), limit=None)


@pytest.mark.parametrize("name", ["geo3k", "grpo1", "demo3", "gpt-5", "run"])
def test_an_adapters_name_has_nothing_that_the_harness_goes_by(recipe, run_dir, monkeypatch, name):
    """Whatever the run is called, and also where the digest has nothing but digits and an e."""
    named = recipe.model_copy(update={"name": name})
    for digest in (None, "12345e678901" + "f" * 52):
        if digest is not None:
            monkeypatch.setattr("sharevl_lite.rollout.serving.adapter_digest", lambda folder, told=digest: told)
        model = name_of(named, run_dir / "adapter")
        words = command(["lmms-eval"], named, BOTH, model=model, output=Path("out"), limit=None)
        assert f"model={model}," in words[words.index("--model_args") + 1]
        assert model.startswith("adapter-")


def test_the_key_is_not_in_the_printed_line(recipe, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "very-secret")
    words = command(["lmms-eval"], recipe, BOTH, model="m", output=Path("out"), limit=None)
    assert "very-secret" not in shell_line(words, {"SHAREVL_PROMPT": "a b.json"})
    assert "SHAREVL_PROMPT='a b.json' lmms-eval" in shell_line(words, {"SHAREVL_PROMPT": "a b.json"})


def test_recorded_files_are_read_and_a_failed_request_is_left_out(output):
    """lmms-eval itself says 50% for mathvista: it counts the request that failed as a wrong answer."""
    found = read_results(output, BOTH, max_tokens=7)
    assert found.facts["problems"] == 7
    assert found.facts["requests_failed"] == 1
    protocol = {"samples": 1, "seed": 0, "bootstrap_resamples": 200}
    evaluation = Evaluation.of(protocol, found.outcomes)
    assert [Outcome.from_json(problem) for problem in evaluation.as_json()["problems"]] == list(found.outcomes)
    sources = evaluation.sources
    assert sources["mathvista"]["mean@1"].value == pytest.approx(2 / 3)
    assert (sources["mathvista"]["mean@1"].problems, sources["mathvista"]["mean@1"].left_out) == (3, 1)
    assert sources["ai2d"]["mean@1"].value == pytest.approx(1 / 3)
    assert sources["mathvista"]["format"].value == 1.0
    assert sources["mathvista"]["truncated"].value == 1.0, "all have 7 tokens"
    assert read_results(output, BOTH, max_tokens=8).outcomes[0].asked[0].answers[0].truncated is False
    first = found.outcomes[0]
    assert (first.id, first.source, first.gold) == ("mathvista/0", "mathvista", "1")
    assert first.question.startswith("Question: What is 0+1?")


def edit(output, pattern, change):
    (file,) = output.glob(f"*/*{pattern}")
    file.write_text(change(file.read_text()))
    return file


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda out: shutil.rmtree(out / "my-model"), "wrote no results"),
        (lambda out: next(out.glob("*/*ai2d.jsonl")).unlink(), "did not finish ai2d"),
        (lambda out: edit(out, "ai2d.jsonl", lambda text: text[:-40]), "damaged"),
        (lambda out: edit(out, "ai2d.jsonl", lambda text: text.split("\n")[0]), "its samples say 1.0000"),
        (lambda out: edit(out, "ai2d.jsonl", lambda text: text.replace('"doc_id"', '"id"')), "is not as lmms-eval"),
        (
            lambda out: edit(out, "results.json", lambda text: text.replace("acc_score,none", "acc")),
            "sharevl_mathvista is not",
        ),
    ],
)
def test_missing_and_damaged_files_are_named(output, damage, told):
    damage(output)
    with pytest.raises(EvaluationError, match=told):
        read_results(output, BOTH, max_tokens=100)


def test_a_score_between_right_and_wrong_is_refused(output):
    edit(output, "ai2d.jsonl", lambda text: text.replace('"acc_score": 1.0', '"acc_score": 0.5'))
    told = json.loads(next(output.glob("*/*results.json")).read_text())
    told["results"]["sharevl_ai2d"]["acc_score,none"] = 0.5 / 3
    edit(output, "results.json", lambda text: json.dumps(told))
    with pytest.raises(EvaluationError, match=r"doc_id 0 scores 0\.5, neither right nor wrong"):
        read_results(output, BOTH, max_tokens=100)


def test_benchmarks_by_name():
    assert parse_suite("MathVista, ai2d,mathvista") == ["mathvista", "ai2d"]
    assert tuple(parse_suite("all")) == BENCHMARKS == ("mathvista", "mathverse", "mathvision", "mmstar", "mmmu", "ai2d")
    with pytest.raises(EvaluationError, match="there is no gqa; benchmarks are mathvista"):
        parse_suite("gqa,ai2d")
    with pytest.raises(EvaluationError, match="names nothing"):
        parse_suite(" , ")


def test_without_the_harness_the_way_to_install_it_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sharevl_lite.evaluation.harness.find_spec", lambda name: None)
    with pytest.raises(EvaluationError, match="lmms/bin/pip install lmms-eval=="):
        find_harness()


def test_every_published_figure_has_a_source_and_none_is_made_up():
    for found in R1_SHAREVL_7B.values():
        assert "arXiv" in found.source
        assert (found.percent is not None) != found.source.startswith("not verified")
