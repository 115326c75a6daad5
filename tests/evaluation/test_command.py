"""Options of `eval` that do not fit together: one message, code 2, before anything is loaded."""

import pytest

from sharevl_lite.cli import main
from sharevl_lite.errors import UserError
from sharevl_lite.evaluation.settings import Settings
from sharevl_lite.evaluation.subject import find_subject

MODEL = "builtin:digits-vl"
DIGITS = ["--data", "builtin:digits"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "a run or a model, or --compare"),
        ([MODEL, *DIGITS, "--engine", "vllm"], "vLLM is not installed"),
        ([MODEL, *DIGITS, "--engine", "server"], "server_urls"),
        (
            [MODEL, *DIGITS, "--server-url", "http://127.0.0.1:9/v1", "--rollout.server-retries", "0"],
            "cannot be reached",
        ),
        ([MODEL, "--engine", "hf", "--server-url", "http://a/v1"], "--server-url and --engine hf"),
        (["./nope"], "./nope: no such run, checkpoint or model"),
        (["runs/of/mine"], "runs/of/mine: no such run, checkpoint or model"),
        (["runs/nothere", *DIGITS], "runs/nothere: no such run, checkpoint or model"),
        (["runs/dome", *DIGITS], "runs/dome: no such run, checkpoint or model; did you mean runs/done?"),
        (["done", *DIGITS], "done: no such run, checkpoint or model; did you mean runs/done?"),
        (["old/done2", *DIGITS], "old/done2: no such run, checkpoint or model"),
        (["a model", *DIGITS], "a model: no such run, checkpoint or model"),
        (
            ["runs/nothere", *DIGITS],
            "names under runs/ or beside runs, and names of runs in runs/ are paths; any other",
        ),
        (["runs/data", *DIGITS], "cannot load 'runs/data' (it is a folder without config.json)"),
        (["builtin:nope"], "built in: builtin:digits-vl"),
        ([MODEL, "--resamples", "9"], "--resamples 9"),
        ([MODEL, "--force"], "--force belongs to --compare"),
        (["--compare", "no/a.json", "no/b.json"], "no/a.json: cannot be read"),
        ([MODEL, "--compare", "a.json", "b.json"], "takes no builtin:digits-vl"),
        (["--compare", "a.json", "b.json", "--samples", "2"], "takes no --samples"),
        (["--compare", "a.json", "b.json", "--server-url", "http://a/v1"], "takes no --server-url"),
        (["--compare", "a.json", "b.json", "--limit", "3", "--print-command"], "takes no --limit --print-command"),
        ([MODEL, "--rollout.overlap", "true"], "sharevl-lite: the defaults: rollout.overlap needs"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else None,
)
def test_a_mistake_is_one_clear_message_and_code_2(words, told, capsys, monkeypatch, tmp_path):
    (tmp_path / "runs" / "data").mkdir(parents=True)
    for run in (tmp_path / "runs" / "done", tmp_path / "old" / "one"):
        (run / "adapter").mkdir(parents=True)
        (run / "recipe.yaml").write_text("name: it\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sharevl_lite.evaluate.load_policy_of", lambda recipe: pytest.fail("loaded a model"))
    if "vllm" in words:
        monkeypatch.setattr("sharevl_lite.engines.importlib.util.find_spec", lambda name: None)
    assert main(["eval", *words]) == 2
    assert told in capsys.readouterr().err


def test_knobs_of_trainings_alone_are_told_and_the_others_are_not(capsys, monkeypatch):
    def stop(*_, **__):
        raise UserError("asked")

    monkeypatch.setattr("sharevl_lite.evaluate.evaluate", stop)
    knobs = ["--train.learning-rate", "0.1", "--objective.beta=0.1", "--train.rollouts", "9", "--seed", "3"]
    assert main(["eval", MODEL, *DIGITS, *knobs]) == 2
    told = capsys.readouterr().err
    assert "--train.learning-rate --objective.beta: of no effect, for an evaluation trains nothing\n" in told
    assert "rollouts" not in told
    assert told.endswith("asked\n")


@pytest.mark.parametrize("target", ["gpt2", "Qwen/Qwen2.5-VL-3B-Instruct"])
def test_an_id_of_the_hub_is_taken_for_one(target, tmp_path, monkeypatch):
    """Without an organisation, and beside a folder that is called like the organisation."""
    (tmp_path / "Qwen" / "notes").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    subject = find_subject(target, Settings())
    assert (subject.recipe.model.path, subject.adapter, subject.run_dir) == (target, None, None)
