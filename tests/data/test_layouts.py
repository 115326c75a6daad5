"""Known column layouts, each with a small table of its published shape (made here; see `sharevl_lite.data.layouts`)."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sharevl_lite.config import DataSection
from sharevl_lite.data import BadRowError, DataError, load_problems


def picture(path=None):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), "red").save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": path}


MATHVISTA = {
    "pid": "7",
    "question": "Which is red?",
    "image": "images/7.jpg",
    "decoded_image": picture(),
    "choices": ["ball", "cube"],
    "unit": None,
    "precision": 1.0,
    "answer": "cube",
    "question_type": "multi_choice",
    "answer_type": "text",
    "metadata": {"language": "english"},
    "query": "Hint: … Question: Which is red?",
}
ROWS = {
    "geometry3k": ({"images": [picture()], "problem": "<image>Find x.", "answer": "3"}, "<image>Find x.", "3"),
    "R1-ShareVL-52K": (
        {"images": [picture()], "problem": "<image>Find x.", "answer": "3", "new_questions": "['<image>What is x?']"},
        "<image>Find x.",
        "3",
    ),
    "CLEVR-Math": (
        {"template": "addition", "id": "a.png", "question": "How many are left?", "image": picture(), "label": 4},
        "<image>How many are left?",
        "4",
    ),
    "GEOQA": (
        {"image": picture(), "problem": "Find ∠A.", "solution": "<answer> 145° </answer>"},
        "<image>Find ∠A.",
        "145°",
    ),
    "MathVista": (MATHVISTA, "<image>Which is red?\nOptions:\n(A) ball\n(B) cube", "B. cube"),
}


def load(tmp_path, *rows):
    pq.write_table(pa.Table.from_pylist(list(rows)), tmp_path / "p.parquet")
    return load_problems(str(tmp_path / "p.parquet"), DataSection(), split="train").problems


@pytest.mark.parametrize("name", ROWS)
def test_layout_is_known_by_its_columns(tmp_path, name):
    row, text, answer = ROWS[name]
    (problem,) = load(tmp_path, row)
    assert (problem.text, problem.answer, len(problem.images)) == (text, answer, 1)


def test_new_questions_in_a_string_are_read_not_run(tmp_path):
    (problem,) = load(tmp_path, ROWS["R1-ShareVL-52K"][0])
    assert problem.variants == ("<image>What is x?",)


def test_rows_that_share_the_file_name_of_clevr_are_numbered(tmp_path):
    row = ROWS["CLEVR-Math"][0]
    assert [problem.id for problem in load(tmp_path, row, row)] == ["0", "1"]


def test_an_answer_that_is_no_option_is_a_bad_row(tmp_path):
    with pytest.raises(BadRowError, match="none of the options"):
        load(tmp_path, {**MATHVISTA, "answer": "cone"})


def test_each_accepted_answer_is_read_by_the_layout(tmp_path):
    (several,) = load(tmp_path, {**MATHVISTA, "answer": ["cube", "A"]})
    assert several.answer == ("B. cube", "A. ball")
    (tagged,) = load(tmp_path, {**ROWS["GEOQA"][0], "solution": ["<answer>145°</answer>", "so <answer>145</answer>"]})
    assert tagged.answer == ("145°", "145")
    with pytest.raises(BadRowError, match="'cone' is none of the options"):
        load(tmp_path, {**MATHVISTA, "answer": ["cube", "cone"]})


def test_a_solution_without_its_tag_is_a_bad_row(tmp_path):
    with pytest.raises(BadRowError, match="no <answer>"):
        load(tmp_path, {**ROWS["GEOQA"][0], "solution": "because"})


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("<think>2 + 3</think>\n<answer> 5 </answer>", "5"),
        ("He has 2 + 3 = 5 of them.\n#### 5", "5"),
        ("a < answer", "a < answer"),
        ("# 5", "# 5"),
        ("##### 5", "##### 5"),
        ("<think>2 + 3</think>\n#### 5", "5"),
    ],
)
def test_the_answer_is_taken_out_of_a_solution(tmp_path, written, answer):
    """As R1's and GSM8K's data sets have it: no response would be right by the whole of it."""
    (problem,) = load(tmp_path, {"problem": "How many?", "images": [picture()], "answer": written})
    assert problem.answer == answer


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("<think>2 + 3</think> The answer is 5", r"has no <answer>…</answer>: .*name the column that holds the bare"),
        ("<THINK>2 + 3</THINK> 5", "has no <answer>"),
        ("<answer><image></answer>", "has an <image>"),
        ("<image>What is shown?", r"has an <image>: .*are the columns of problem and answer swapped\?"),
    ],
)
def test_a_solution_without_an_answer_to_be_found_is_a_bad_row(tmp_path, written, told):
    with pytest.raises(BadRowError, match=told):
        load(tmp_path, {"problem": "How many?", "images": [picture()], "answer": written})


def test_columns_of_two_layouts_are_not_guessed(tmp_path):
    row = {"question": "x?", "image": picture(), "answer": "1", "images": [picture()]}
    with pytest.raises(DataError, match=r"more than one known layout.*--columns"):
        load(tmp_path, row)


def test_a_folder_of_variants_needs_no_other_recipe_than_its_source(tmp_path):
    """One recipe names the columns of the original data, for its held-out problems, and trains on the variants."""
    named = DataSection(columns={"problem": "question", "images": "picture", "answer": "solution"})
    written = {"id": "a", "problem": "<image>x?", "images": [picture()], "answer": "1", "variants": ["<image>Find x."]}
    written |= {"allow_mirrors": False, "transforms": ["noise_10"]}
    pq.write_table(pa.Table.from_pylist([written]), tmp_path / "variants.parquet")
    (problem,) = load_problems(str(tmp_path / "variants.parquet"), named, split="train").problems
    assert (problem.text, problem.answer, problem.variants) == ("<image>x?", "1", ("<image>Find x.",))

    pq.write_table(
        pa.Table.from_pylist([{"question": "x?", "picture": picture(), "solution": "2"}]), tmp_path / "p.parquet"
    )
    assert load_problems(str(tmp_path / "p.parquet"), named, split="train").problems[0].answer == "2"
    pq.write_table(pa.Table.from_pylist([{"problem": "x?", "images": [], "answer": "2"}]), tmp_path / "q.parquet")
    with pytest.raises(DataError, match="no column 'question'"):
        load_problems(str(tmp_path / "q.parquet"), named, split="train")
