"""Files of other kinds come with the command that makes one of them that is read."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from sharevl_lite.config import DataSection
from sharevl_lite.data import load_problems
from sharevl_lite.data.errors import DataError

ROWS = [
    {"problem": "<image>How many?", "images": "one.png", "answer": "2"},
    {"problem": "<image>Say \u201cit's\u201d, or not?", "images": "one.png", "answer": "no"},
    {"problem": "<image>Which agent?", "images": "one.png", "answer": "007"},
    {"problem": "<image>Is there one?", "images": "one.png", "answer": "None"},
]


def as_csv(file):
    import csv

    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)


@pytest.mark.parametrize(
    ("name", "write", "told"),
    [
        ("it's mine.csv", as_csv, ".csv is not understood; give .parquet or .jsonl; convert it once: "),
        (
            "rows.json",
            lambda file: file.write_text(json.dumps(ROWS)),
            ".json is not understood; give .parquet or .jsonl; ",
        ),
        ("one.jsonl", lambda file: file.write_text(json.dumps(ROWS)), "one JSON array, not an object on each line; "),
        (
            "pretty.jsonl",
            lambda file: file.write_text(json.dumps(ROWS, indent=1), encoding="utf-8-sig"),
            "one JSON array, not an object on each line; ",
        ),
    ],
    ids=["csv", "json", "array", "array over lines"],
)
def test_the_command_in_the_message_makes_a_file_that_is_read(tmp_path, name, write, told):
    file = tmp_path / name
    Image.new("RGB", (32, 32)).save(tmp_path / "one.png")
    write(file)
    with pytest.raises(DataError) as caught:
        load_problems(str(file), DataSection(), split="train")
    message = str(caught.value)
    assert told in message
    assert "skip" not in message
    command = message.partition("convert it once: python ")[2]
    subprocess.run(f"{sys.executable} {command}", shell=True, check=True, capture_output=True)
    (made,) = tmp_path.glob("*-lines.jsonl" if file.suffix == ".jsonl" else "*.jsonl")
    problems = load_problems(str(made), DataSection(), split="train").problems
    assert [(problem.text, problem.gold) for problem in problems] == [(row["problem"], row["answer"]) for row in ROWS]
