"""Names of evaluations: one evaluation each, also of those that start together, and none for what was interrupted."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from sharevl_lite.evaluate import Settings, evaluate_target
from sharevl_lite.evaluation.errors import EvaluationError
from sharevl_lite.evaluation.saving import default_name, reserved_place
from sharevl_lite.recipes import load_recipe

MODEL = "builtin:digits-vl"
KILLED = """
import os, signal, sys
from pathlib import Path
from sharevl_lite.evaluation.saving import reserved_place
with reserved_place(Path(sys.argv[1]), None, default="x") as place:
    print(place.name, flush=True)
    if sys.argv[2:]:
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def name_in(folder, name=None):
    with reserved_place(folder, name, default="x") as place:
        return place.name


def test_evaluations_that_start_together_get_names_of_their_own(tmp_path):
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        contexts = [reserved_place(tmp_path, None, default="x") for _ in range(24)]
        places = list(pool.map(lambda context: context.__enter__(), contexts))
        for context in contexts:
            stack.push(context)
        assert sorted(place.name for place in places) == sorted(["x", *(f"x-{number}" for number in range(2, 25))])
        with pytest.raises(EvaluationError, match=r"x-7: there already, without x-7\.json: an evaluation is under way"):
            name_in(tmp_path, "x-7")


def test_another_process_keeps_its_name_as_long_as_it_lives_and_not_longer(tmp_path):
    """Killed before it saved anything, it leaves an empty folder, which is no evaluation's."""
    words = [sys.executable, "-c", KILLED, str(tmp_path), "wait"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "x\n"
        assert name_in(tmp_path) == "x-2"
        other.stdin.close()
        other.wait()
    assert (tmp_path / "x").is_dir(), "what it left"
    assert name_in(tmp_path, "x") == "x"


def fail_in(folder, name, error, files=(), markdown=None):
    """An evaluation that wrote these files and then ended with an error; its name."""

    def evaluate():
        with reserved_place(folder, name, default="x") as place:
            for file in files:
                (place.responses / file).parent.mkdir(parents=True, exist_ok=True)
                (place.responses / file).write_bytes(b"content")
            if markdown is not None:
                place.markdown.write_text(markdown)
            raise error(place.name)

    with pytest.raises(error) as raised:
        evaluate()
    return raised.value.args[0]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_is_interrupted_before_a_response_was_stored_leaves_nothing(tmp_path, error):
    """Nor does the report stay where the document could not be written any more."""
    assert fail_in(tmp_path, "x", error, ["images/a.png", "prompt.json"], markdown="figures") == "x"
    assert list(tmp_path.iterdir()) == []


def test_responses_of_an_interrupted_evaluation_stay_and_their_name_is_taken(tmp_path):
    file = "rollouts/eval/step_000000.parquet"
    assert fail_in(tmp_path, None, KeyboardInterrupt, [file]) == "x"
    assert (tmp_path / "x" / file).is_file()
    assert name_in(tmp_path) == "x-2"
    with pytest.raises(EvaluationError, match="or one was interrupted"):
        name_in(tmp_path, "x")


def test_files_of_the_users_own_are_never_taken_for_leftovers(tmp_path):
    (tmp_path / "x" / "images").mkdir(parents=True)
    (tmp_path / "x-2").write_text("a file")
    (tmp_path / "x-3.md").write_text("notes")
    assert fail_in(tmp_path, None, RuntimeError) == "x-4"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x-2", "x-3.md"]
    assert (tmp_path / "x" / "images").is_dir()


def test_an_evaluation_that_fails_frees_its_name(tmp_path, recipe_file, monkeypatch):
    settings = Settings(data="builtin:digits", recipe_file=str(recipe_file), out=tmp_path, name="mine", samples=1,
                        variants="none", overrides=["--eval.problems", "2"])  # fmt: skip

    def interrupted(recipe):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("sharevl_lite.evaluate.load_policy_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate_target(MODEL, settings)
    assert list(tmp_path.iterdir()) == []
    evaluate_target(MODEL, settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine.json", "mine.md"]
    with pytest.raises(EvaluationError, match=r"mine\.json: there already"):
        evaluate_target(MODEL, settings)


@pytest.mark.parametrize(
    ("data", "checkpoint", "name"),
    [
        ("builtin:digits", "checkpoint-20", "checkpoint-20-digits-test-4x"),
        ("hub-name/geometry3k", None, "base-geometry3k-test-4x"),
        ("some where/my rows.jsonl", "adapter", "adapter-my-rows-4x"),
    ],
)
def test_the_name_says_what_was_asked_and_no_split_of_a_single_file(data, checkpoint, name):
    recipe = load_recipe(None, {"data.eval": data, "eval.samples": 4})
    assert default_name(recipe, checkpoint) == name
