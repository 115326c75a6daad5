"""The folder of a run: held by one process, made where it can be, and read with a message where it is damaged."""

import io
import json
import re
import shlex
import shutil

import pytest
from rich.console import Console

from sharevl_lite import train
from sharevl_lite.atomic import locked
from sharevl_lite.checkpoints import CheckpointError, list_checkpoints, remove_checkpoint
from sharevl_lite.data import Problem, load_problems
from sharevl_lite.data.errors import DataError
from sharevl_lite.errors import UserError
from sharevl_lite.policy.errors import PolicyError
from sharevl_lite.policy.folder import resolve_model_path
from sharevl_lite.policy.weights_digest import PIECE, PROBES, weights_digests
from sharevl_lite.recipes import dump_recipe
from sharevl_lite.resume import prepare
from sharevl_lite.rewards.functions import RewardFunctionError
from sharevl_lite.run import RunError
from sharevl_lite.run_basis import check_same_data, check_same_model, data_record, reward_digests
from sharevl_lite.run_folder import is_finished

pytestmark = pytest.mark.slow
FEW = {"train.rollouts": 2, "train.problems_per_rollout": 2, "train.problems_per_update": 2, "data.eval": None}


def test_a_folder_in_which_another_process_trains_is_left_alone(small_recipe):
    recipe = small_recipe(**FEW)
    recipe.run_dir.mkdir(parents=True)
    for resume in (None, "auto"):
        with locked(recipe.run_dir), pytest.raises(RunError, match="another process trains in it; wait for it, or set"):
            train(recipe, resume=resume)
    assert not list(recipe.run_dir.iterdir())


def test_a_place_that_cannot_be_written_is_said_and_nothing_stays(small_recipe, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=r"cannot be written .* set --output-dir to another folder"):
        train(small_recipe(**FEW, output_dir=tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"
    recipe = small_recipe(**FEW | {"data.train": str(tmp_path / "nothing.jsonl")})
    with pytest.raises(DataError):
        train(recipe)
    assert not recipe.run_dir.exists()


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_run_that_failed_in_its_first_step_is_started_again(small_recipe, tmp_path, resume):
    """With what made it fail put right, so by another recipe."""
    source = tmp_path / "reward.py"
    functions = [{"path": f"{source}:mine", "weight": 0.5}]
    source.write_text("import sys\n\ndef mine(completions, **columns):\n    sys.exit(3)\n")
    with pytest.raises(RewardFunctionError, match="reward function 'mine' raised SystemExit: 3"):
        train(small_recipe(**FEW, **{"reward.functions": functions}))
    source = tmp_path / "fixed.py"
    source.write_text("def mine(completions, **columns):\n    return [1.0] * len(completions)\n")
    recipe = small_recipe(**FEW, **{"reward.functions": [{"path": f"{source}:mine", "weight": 0.4}]})
    assert train(recipe, resume=resume).summary["steps"] == 2
    with pytest.raises(RunError, match="already holds a run"):
        train(recipe)
    with pytest.raises(RunError, match=r"started with another recipe \(seed was 0, now 1\)"):
        train(recipe.model_copy(update={"seed": 1}), resume="auto")


def test_a_run_that_begins_where_one_was_to_be_resumed_says_so(small_recipe):
    left_behind(small_recipe("digits_cpu"))
    recipe, told = small_recipe("digit_cpu", **FEW), io.StringIO()
    console = Console(file=told, width=200)
    assert train(recipe, resume="auto", console=console).summary["steps"] == 2
    assert f"{recipe.run_dir} holds no run to resume: it begins; if you meant" in told.getvalue()
    assert f"{recipe.run_dir.with_name('digits_cpu')}, stop this" in told.getvalue()
    train(recipe, resume="auto", console=console)
    assert told.getvalue().count("holds no run") == 1


def left_behind(recipe, updates=(4, 8)):
    """A run's folder as far as resuming looks at it."""
    (recipe.run_dir / "checkpoints").mkdir(parents=True)
    (recipe.run_dir / "recipe.yaml").write_text(dump_recipe(recipe))
    for update in updates:
        checkpoint = recipe.run_dir / "checkpoints" / f"checkpoint-{update}"
        checkpoint.mkdir()
        (checkpoint / "trainer_state.json").write_text(f'{{"global_step": {update}}}')
    return recipe.run_dir


def test_what_is_no_checkpoint_is_told_with_what_there_is(small_recipe, tmp_path):
    recipe, other = small_recipe("mine"), small_recipe("other")
    with pytest.raises(RunError, match=r"auot: no such folder; .*mine has no checkpoints: give auto to begin it"):
        prepare(recipe, "auot")
    run, elsewhere = left_behind(recipe), left_behind(other)
    there = "give auto for the newest, or one of .*mine/checkpoints/checkpoint-4, .*checkpoint-8"
    for given, why in (
        ("auot", "no such folder"),
        (run / "checkpoints" / "checkpoint-5", "no such folder"),
        (run, "not a checkpoint"),
        (run / "checkpoints", "not a checkpoint"),
    ):
        with pytest.raises(RunError, match=rf"{why}.*; {there}$"):
            prepare(recipe, given)
    told = rf"not a checkpoint.*; there is .*checkpoint-8, of another run: set --name other and --output-dir {tmp_path}"
    with pytest.raises(RunError, match=told):
        prepare(recipe, elsewhere)
    assert prepare(recipe, run / "checkpoints" / "checkpoint-4").name == "checkpoint-4"


def test_a_reward_file_that_has_changed_is_told(small_recipe, tmp_path, caplog):
    """And not refused: who mends a judge wants to go on. Older programs kept no digest."""
    source = tmp_path / "reward.py"
    source.write_text("def mine(completions, **columns):\n    return [1.0] * len(completions)\n")
    recipe = small_recipe(**{"reward.functions": [{"path": f"{source}:mine"}]})
    problems = [Problem("a", "What?", (), "5")]
    recipe.run_dir.mkdir(parents=True)
    kept = data_record(problems, rewards=reward_digests(recipe))
    for record in ({name: value for name, value in kept.items() if name != "rewards"}, kept):
        (recipe.run_dir / "data.json").write_text(json.dumps(record))
        check_same_data(recipe, problems)
    assert not caplog.records
    source.write_text(source.read_text().replace("1.0", "-5.0"))
    check_same_data(recipe, problems)
    assert "reward.functions: the file of mine has changed; rewards of the steps before do not compare" in caplog.text


def test_a_finished_run_is_not_said_to_go_on(small_recipe, caplog):
    run = left_behind(small_recipe())
    changed = small_recipe(**{"train.learning_rate": 1e-5, "train.token_budget": 4096})
    with caplog.at_level("WARNING"):
        prepare(changed, "auto")
        assert "the run goes on with 1e-05" in caplog.text
        caplog.clear()
        (run / "summary.json").write_text("{}")
        prepare(changed, "auto")
    assert [record.getMessage() for record in caplog.records] == [
        "train.learning_rate, train.token_budget: of no effect, for the run is finished"
    ]


@pytest.mark.parametrize(
    ("then", "skips", "told"),
    [
        (1, "skip", r"data.jsonl is not what .*run was started with \(1 problems then, 2 now; see .*data.json\)"),
        (1, "skip", r"Restore the data, or start another run with --name NAME --model.lora.start_from .*checkpoint-4"),
        (1, "skip", "rows that an older version skipped are good now, .* take them out"),
        (1, "stop", r"checkpoint-4\.$"),
        (3, "skip", r"\(3 problems then, 2 now; .*checkpoint-4\.$"),
        (2, "skip", r"\(2 problems, not the same; .*checkpoint-4\.$"),
    ],
)
def test_other_problems_than_the_run_was_started_with(small_recipe, then, skips, told):
    recipe = small_recipe("run", **{"data.on_bad_row": skips, "data.train": "data.jsonl"})
    (recipe.run_dir / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    (recipe.run_dir / "data.json").write_text(f'{{"problems": {then}, "fingerprint": "of then"}}')
    with pytest.raises(RunError, match=told):
        check_same_data(recipe, [Problem("a", "Why?", (), "1"), Problem("b", "Why?", (), ("2", "two"))])


DAMAGED = {
    "optimizer.pt": (CheckpointError, r"checkpoint-1 is damaged .* go on with --resume auto from the one before"),
    "scheduler.pt": (CheckpointError, "checkpoint-1 is damaged"),
    "rng_state.pth": (CheckpointError, "checkpoint-1 is damaged"),
    "trainer_state.json": (CheckpointError, "checkpoint-1 is damaged"),
    "adapter_model.safetensors": (PolicyError, r"adapter_model.safetensors is damaged .* use another checkpoint"),
}


def test_a_damaged_checkpoint_is_named(small_recipe):
    recipe = small_recipe(**FEW)
    train(recipe)
    (recipe.run_dir / "summary.json").unlink()  # as if it had been killed in the second step
    remove_checkpoint(list_checkpoints(recipe.run_dir / "checkpoints")[-1])
    for file, (error, message) in DAMAGED.items():
        damaged = list_checkpoints(recipe.run_dir / "checkpoints")[-1] / file
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[:100])
        with pytest.raises(error, match=message):
            train(recipe, resume="auto")
        damaged.write_bytes(whole)
    assert train(recipe, resume="auto").summary["steps"] == 2


def test_a_run_begun_without_the_column_of_options_goes_on_without(small_recipe, tmp_path):
    """As those of versions that did not read it, whose recipes do not know the key."""
    row = {"question": "1 + 1?", "images": [], "answer": "B", "options": ["1", "2"]}
    (tmp_path / "mcq.jsonl").write_text(json.dumps(row))
    columns = {"problem": "question", "answer": "answer"}
    words = FEW | {"data.train": str(tmp_path / "mcq.jsonl"), "data.columns": columns}
    recipe = small_recipe("old", **words)
    without = small_recipe("old", **words | {"data.columns": {**columns, "choices": None}})
    read = [load_problems(each.data.train, each.data, split="train").problems for each in (recipe, without)]
    run = left_behind(recipe)
    (run / "recipe.yaml").write_text((run / "recipe.yaml").read_text().replace("    choices: found\n", ""))
    (run / "data.json").write_text(json.dumps(data_record(read[1])))
    assert prepare(recipe, "auto") == prepare(without, "auto") == run / "checkpoints" / "checkpoint-8"
    check_same_data(without, read[1])
    with pytest.raises(RunError, match=r"options of column 'options': go on .* --data.columns.choices null"):
        check_same_data(recipe, read[0])


def test_another_recipe_is_told_with_the_words_that_go_on(small_recipe):
    """And the command line reads those words as the values of then."""
    then = {
        "data.train": "data-variants",
        "data.system_prompt": "Be brief; it's a test.",
        "train.report_to": ["tensorboard"],
        "model.max_pixels": 1000,
        "share.std": "none",
    }
    left_behind(small_recipe("mine", **then))
    with pytest.raises(RunError) as caught:
        prepare(small_recipe("mine", **{"data.train": "builtin:digits"}), "auto")
    words = re.search(r"go on as it was with (.*), or start another with --name NAME", str(caught.value))[1]
    assert "--data.train data-variants " in words
    again = shlex.split(words)
    recipe = small_recipe("mine", **dict(zip(again[::2], again[1::2], strict=True)), **{"train.report_to": []})
    assert prepare(recipe, "auto") is not None
    with pytest.raises(RunError, match="go on with the recipe of the run's folder in place of this one"):
        prepare(small_recipe("mine", **{f"data.columns.{name}": "x" for name in ("id", "problem", "images")}), "auto")


def copied_model(folder):
    shutil.copytree(resolve_model_path("builtin:digits-vl"), folder)
    return folder


def test_another_model_or_other_held_out_data_of_the_same_name_is_not_taken_for_it(small_recipe, tmp_path):
    """The same ones elsewhere are."""
    from safetensors.torch import load_file, save_file

    row = {"problem": "1 + 1?", "images": [], "answer": "2"}
    for place, rows in {"one": [row], "moved": [row], "other": [{**row, "answer": "3"}]}.items():
        copied_model(tmp_path / place / "model")
        (tmp_path / place / "test.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    file = tmp_path / "other" / "model" / "model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"][0, 0] += 1.0
    save_file(weights, file, metadata={"format": "pt"})

    def recipe_of(model, held_out):
        places = {"model.path": tmp_path / model / "model", "data.eval": tmp_path / held_out / "test.jsonl"}
        return small_recipe("run", **FEW | {name: str(path) for name, path in places.items()})

    train(recipe_of("one", "one"))
    run = recipe_of("one", "one").run_dir
    (run / "summary.json").unlink()  # as if it had been killed at its end
    with pytest.raises(
        RunError, match=r"other/model is not the base model that .*run was started with \(other weights"
    ):
        train(recipe_of("other", "one"), resume="auto")
    with pytest.raises(
        RunError, match=r"other/test.jsonl is not what .*run was started with \(1 problems, not the same"
    ):
        train(recipe_of("one", "other"), resume="auto")
    assert train(recipe_of("moved", "moved"), resume="auto").summary["steps"] == 2


def test_what_an_older_version_kept_no_digest_of_is_told_when_it_moves(small_recipe, tmp_path, caplog):
    for place in ("one", "two"):
        copied_model(tmp_path / place / "model")
    run = left_behind(small_recipe(**{"model.path": str(tmp_path / "one" / "model")}))
    (run / "data.json").write_text('{"problems": 1, "fingerprint": "f"}')
    with caplog.at_level("WARNING"):
        prepare(small_recipe(**{"model.path": str(tmp_path / "two" / "model")}), "auto")
        (message,) = caplog.messages
        assert re.search("model.path was .*one/model, now .*two/model: taken for the same by its name", message)
        caplog.clear()
        prepare(small_recipe(**{"model.path": str(tmp_path / "one" / "model")}), "auto")
    assert not caplog.messages


def test_held_out_problems_are_compared_where_both_are_known(small_recipe):
    recipe = small_recipe("run", **{"data.eval": "test.jsonl"})
    recipe.run_dir.mkdir()
    train_, first, second = ([Problem(name, "Why?", (), "1")] for name in "abc")
    for record, held_out, told in (
        (data_record(train_, first), first, None),
        (data_record(train_, first), second, "test.jsonl is not what"),
        (data_record(train_, first), [*first, *second], r"\(1 problems then, 2 now;"),
        (data_record(train_), second, None),
    ):
        (recipe.run_dir / "data.json").write_text(json.dumps(record))
        if told is None:
            check_same_data(recipe, train_, held_out)
        else:
            with pytest.raises(RunError, match=told):
                check_same_data(recipe, train_, held_out)


def test_weights_are_known_by_pieces_of_each_file(small_recipe, tmp_path):
    """A change anywhere in a small file; in a large one of more than a stretch, and at its ends."""
    folder = tmp_path / "model"
    folder.mkdir()
    large = bytearray(3 * PROBES * PIECE)
    (folder / "model-2.safetensors").write_bytes(b"small")
    (folder / "model-1.safetensors").write_bytes(large)
    (folder / "training_args.bin").write_bytes(b"no weights")
    first = weights_digests(str(folder))
    assert list(first) == ["model-1.safetensors", "model-2.safetensors"]
    for start, length in ((0, 1), (len(large) - 1, 1), (len(large) // 2, 3 * PIECE)):
        changed = bytearray(large)
        changed[start : start + length] = b"x" * length
        (folder / "model-1.safetensors").write_bytes(changed)
        now = weights_digests(str(folder))
        assert now["model-1.safetensors"] != first["model-1.safetensors"], start
        assert now["model-2.safetensors"] == first["model-2.safetensors"]
    (folder / "model-1.safetensors").unlink()
    recipe = small_recipe("run", **{"model.path": str(folder)})
    recipe.run_dir.mkdir()
    (recipe.run_dir / "data.json").write_text(json.dumps(data_record([], model=first)))
    with pytest.raises(RunError, match="other weights"):
        check_same_model(recipe)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    (folder / "consolidated.safetensors").write_bytes(b"beside it")
    assert list(weights_digests(str(folder))) == ["model-2.safetensors"]  # what is read, and nothing else there
    (folder / "model.safetensors.index.json").write_text("{}")  # damaged: told when the model is loaded
    (folder / "model.safetensors").write_bytes(b"alone")
    assert list(weights_digests(str(folder))) == ["model.safetensors"]
    assert weights_digests("No/Such-Model") == {}
    check_same_model(small_recipe("run", **{"model.path": "No/Such-Model"}))


@pytest.mark.parametrize("damaged", ['{"steps": 2', "[2]", "\x80"])
@pytest.mark.parametrize("name", ["summary.json", "data.json"])
def test_a_damaged_file_of_the_run_is_named_with_what_to_do(small_recipe, name, damaged):
    recipe = small_recipe("damaged")
    run = left_behind(recipe)
    (run / name).write_bytes(damaged.encode("latin-1"))
    with pytest.raises(UserError, match=rf"{name}: .*; restore it from a copy, or remove it: the run is then taken as"):
        is_finished(recipe) if name == "summary.json" else check_same_data(recipe, [])
    (run / name).unlink()
    assert prepare(recipe, "auto") == run / "checkpoints" / "checkpoint-8"
