"""Runs on a user's own files: images on disk, other column names, bad rows, and a resume on top of it."""

import json
from io import StringIO

import pytest
from rich.console import Console

from sharevl_lite import metrics_log, store, train
from sharevl_lite.checkpoints import list_checkpoints
from sharevl_lite.cli import main

pytestmark = pytest.mark.slow

COLUMNS = {"problem": "question", "images": "picture", "answer": "solution", "variants": "rewrites", "id": "key"}
GOOD, BAD = 12, {3: "no image", 7: "half an image", 10: "no answer"}
MEASURED = ("seconds", "memory", "tokens_per_second")


@pytest.fixture
def digits(tmp_path):
    """`digits(bad)`: questions about two scans of scikit-learn's digits, images beside them; rows `bad` are bad."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    scans = load_digits()

    def make(bad=()):
        folder = tmp_path / "digits"
        (folder / "pictures").mkdir(parents=True)
        lines = []
        for number in range(GOOD + len(bad)):
            left, right = scans.images[2 * number], scans.images[2 * number + 1]
            page = (255 - 255 / 16 * np.concatenate([left, right], axis=1)).astype("uint8")
            picture = folder / "pictures" / f"{number}.png"
            Image.fromarray(page).resize((112, 56)).save(picture)
            row = {
                "key": f"pair-{number}",
                "question": "What is the sum of the two digits?",
                "picture": f"pictures/{number}.png",
                "solution": int(scans.target[2 * number] + scans.target[2 * number + 1]),
                "rewrites": ["Find the total of both digits."],
                "source": "scans",
            }
            if number in bad:
                if bad[number] == "no image":
                    picture.unlink()
                elif bad[number] == "half an image":
                    picture.write_bytes(picture.read_bytes()[:90])
                else:
                    row["solution"] = ""
            lines.append(json.dumps(row))
        (folder / "pairs.jsonl").write_text("\n".join(lines))
        return {
            "data.train": str(folder / "pairs.jsonl"),
            "data.eval": "null",
            **{f"data.columns.{key}": name for key, name in COLUMNS.items()},
            "train.rollouts": 2,
        }

    return make


def figures(run):
    records = metrics_log.read(run / "metrics.jsonl")
    return [{k: v for k, v in record.items() if not any(word in k for word in MEASURED)} for record in records]


def test_bad_rows_are_skipped_and_counted(small_recipe, digits, tmp_path):
    output = StringIO()
    recipe = small_recipe(**digits(BAD), **{"data.on_bad_row": "skip"})
    run = train(recipe, console=Console(file=output, width=100)).run_dir
    summary = json.loads((run / "summary.json").read_text())
    assert summary["bad_rows_skipped"] == 3
    assert "eval_bad_rows_skipped" not in summary
    told = output.getvalue().splitlines()[0]
    assert "pairs.jsonl: skipped 3 bad rows and kept 12; the first:" in told
    assert "row 3 (counted from 0; pairs.jsonl line 4): the image cannot be read" in told
    assert str(tmp_path / "digits" / "pictures" / "3.png") in told
    rows = store.read(run).to_pylist()
    asked = {row["problem_id"] for row in rows}
    assert len(asked) == 2 * 4
    assert asked <= {f"pair-{number}" for number in range(GOOD + len(BAD)) if number not in BAD}
    for row in rows:
        assert "digits" in row["variant_text"]
        assert row["answer"].isdigit()
        assert store.RolloutStore(run).image(row["image_sha"][0]).width in (56, 112)  # 56 where it was turned


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({5: "no image"}, ["row 5 (counted from 0; pairs.jsonl line 6)", "cannot be read", "pictures/5.png"]),
        ({5: "half an image"}, ["row 5 (counted from 0; pairs.jsonl line 6)", "does not decode"]),
        ({5: "no answer"}, ["row 5 (counted from 0; pairs.jsonl line 6)", "the answer (column 'solution') is empty"]),
    ],
)
def test_a_bad_row_stops_the_run_before_it_starts(command, digits, tmp_path, capsys, bad, told):
    words = command(**digits(bad), **{"data.on_bad_row": "stop"})[3:]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert all(piece in error for piece in told), error
    assert "data.on_bad_row: skip" in error
    assert "Traceback" not in error
    assert not (tmp_path / "small").exists()


def test_a_prompt_that_is_too_long_is_a_bad_row(small_recipe, digits, tmp_path):
    changes = digits()
    file = tmp_path / "digits" / "pairs.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[8]["question"] = "What is the sum of the two digits? " * 20
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"row 8 .*its prompt has \d+ tokens.*, above data.max_prompt_length \(96\)"):
        train(small_recipe(**changes), console=Console(quiet=True))
    output = StringIO()
    recipe = small_recipe(**changes, **{"data.on_bad_row": "skip"})
    run = train(recipe, console=Console(file=output, width=100)).run_dir
    assert "skipped 1 bad rows and kept 11" in output.getvalue()
    assert json.loads((run / "summary.json").read_text())["bad_rows_skipped"] == 1
    assert "pair-8" not in store.read(run, columns=["problem_id"])["problem_id"].to_pylist()


def test_a_column_that_is_not_there(command, digits, capsys):
    changes = {**digits(), "data.columns.answer": "solutions"}
    assert main(command(**changes)[3:]) == 2
    error = capsys.readouterr().err
    assert "no column 'solutions'" in error
    assert "nearest: 'solution'" in error
    assert "data.columns.answer" in error


def test_resume_on_local_data(small_recipe, digits):
    """Skipping bad rows leaves the same problems under the same numbers: the run goes on to the same figures."""
    recipe = small_recipe(**{**digits(BAD), "train.rollouts": 4, "data.on_bad_row": "skip"})
    run = train(recipe, console=Console(quiet=True)).run_dir
    expected, rows = figures(run), store.read(run)
    (run / "summary.json").unlink()
    (first, *_) = list_checkpoints(run / "checkpoints")
    train(recipe, resume=first, console=Console(quiet=True))
    assert figures(run) == expected
    assert store.read(run).equals(rows)
