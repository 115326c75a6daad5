"""A column of answer options: found or named, put below each question once, with the answer as letter and text."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharevl_lite.config import DataSection
from sharevl_lite.data import BadRowError, DataError, load_problems

ROW = {"question": "What is 2 - 1?", "images": [], "answer": "B", "options": ["0", "1", "2"]}
ASKED, ANSWER = "What is 2 - 1?\nOptions:\n(A) 0\n(B) 1\n(C) 2", "B. 1"
NAMED = {"problem": "question", "answer": "answer"}


def load(tmp_path, *rows, suffix="parquet", **columns):
    file = tmp_path / f"p.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_problems(str(file), DataSection(columns=columns), split="train").problems


def renamed(**row):
    return {name: value for name, value in ({**ROW, **row}).items() if value is not ...}


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (ROW, {}),
        (ROW, NAMED),
        (renamed(options=..., choices=ROW["options"]), NAMED),
        (renamed(options=..., picks=ROW["options"]), {**NAMED, "choices": "picks"}),
        (renamed(options=..., picks=ROW["options"]), {"choices": "picks"}),
        (renamed(options=..., question=..., problem=ROW["question"], choices=ROW["options"]), {}),
        (renamed(options=["0", "1", "2"], choices=["7", "8"]), {**NAMED, "choices": "options"}),
        (renamed(options="['0', '1', '2']"), NAMED),
        (renamed(options={"A": 0, "B": 1, "C": 2}), NAMED),
    ],
)
def test_the_options_of_a_column_are_asked(tmp_path, suffix, row, columns):
    (problem,) = load(tmp_path, row, suffix=suffix, **columns)
    assert (problem.text, problem.answer) == (ASKED, ANSWER)
    assert problem.columns.choices in problem.metadata


def test_null_reads_no_options(tmp_path):
    (problem,) = load(tmp_path, ROW, **NAMED, choices=None)
    assert (problem.text, problem.answer, problem.columns.choices) == (ROW["question"], "B", None)


def test_a_column_that_is_named_and_missing_is_told(tmp_path):
    with pytest.raises(DataError, match=r"no column 'option'.*nearest: 'options'. Set data.columns.choices"):
        load(tmp_path, ROW, **NAMED, choices="option")


def test_two_columns_of_options_are_not_guessed(tmp_path):
    with pytest.raises(DataError, match=r"both 'choices' and 'options' .* name one in data.columns.choices"):
        load(tmp_path, renamed(choices=["7"]), **NAMED)


@pytest.mark.parametrize("answer", ["1", "B", "(B)", "B.", "B. 1"])
def test_the_answer_may_be_text_or_letter(tmp_path, answer):
    assert load(tmp_path, renamed(answer=answer), **NAMED)[0].answer == ANSWER


@pytest.mark.parametrize("answer", [2, 2.0, "2", "2.0", "B"])
def test_options_in_a_column_of_floats_are_the_integers_they_were(tmp_path, answer):
    """Parquet gives [1, 2, null] beside a fraction or a gap as floats."""
    (problem,) = load(tmp_path, renamed(options=[1.0, 2.0, None], answer=answer))
    assert (problem.text, problem.answer) == ("What is 2 - 1?\nOptions:\n(A) 1\n(B) 2", "B. 2")


@pytest.mark.parametrize(("answer", "read"), [("2.0", "B. 2.0"), ("2", "A. 2"), (2.0, "B. 2.0"), (2, "A. 2")])
def test_options_that_are_texts_keep_their_digits(tmp_path, answer, read):
    assert load(tmp_path, renamed(options=["2", "2.0"], answer=answer))[0].answer == read


def test_what_is_no_list_or_no_option_says_how_to_leave_it_out(tmp_path):
    for row in (renamed(options="0 or 1"), renamed(answer="7")):
        with pytest.raises(BadRowError, match=r"set data.columns.choices: null"):
            load(tmp_path, row, **NAMED, choices="options")


@pytest.mark.parametrize(
    "question",
    [
        ASKED,
        "What is 2 - 1? (A) $0$ (B) $1$ (C) $2$",
        "What is 2 - 1?\nA. 0\nB. 1\nC. 2\nAnswer with the letter.",
    ],
)
def test_a_question_that_shows_its_options_does_not_get_them_twice(tmp_path, question):
    (problem,) = load(tmp_path, renamed(question=question), **NAMED)
    assert (problem.text, problem.answer) == (question, ANSWER)


def test_other_lettered_lines_are_not_the_options(tmp_path):
    (problem,) = load(tmp_path, renamed(question="(A) 3 > 2 (B) 1 > 2 (C) 2 > 2: how many hold?"), **NAMED)
    assert problem.text.endswith("how many hold?\nOptions:\n(A) 0\n(B) 1\n(C) 2")


def test_rewrites_get_the_options_too(tmp_path):
    rewrites = ["What does 2 - 1 make?", ASKED]
    (problem,) = load(tmp_path, renamed(variants=rewrites), **NAMED)
    assert problem.variants == ("What does 2 - 1 make?" + ASKED.removeprefix(ROW["question"]), ASKED)


def test_rows_without_options_are_asked_as_they_are(tmp_path, caplog):
    first, second = load(tmp_path, ROW, renamed(options=None, answer="1"), **NAMED)
    assert (first.text, second.text, second.answer) == (ASKED, ROW["question"], "1")
    assert not caplog.messages


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("empty", ["null", " None ", "nan", "[]", [], [None, None], ["", " "], {"A": None, "B": None}])
def test_a_row_with_an_empty_cell_has_no_options(tmp_path, caplog, suffix, empty):
    """In whatever way a table says so, beside a row that lists some."""
    listed = ROW["options"] if not isinstance(empty, str | dict) else str(ROW["options"])
    listed = {"A": "0", "B": "1", "C": "2"} if isinstance(empty, dict) else listed
    rows = [renamed(options=listed), renamed(options=empty, answer="1")]
    first, second = load(tmp_path, *rows, suffix=suffix, **NAMED)
    assert (first.text, second.text, second.answer) == (ASKED, ROW["question"], "1")
    assert second.columns.choices is None
    assert not caplog.messages


def test_a_column_of_nan_is_empty(tmp_path):
    (problem,) = load(tmp_path, renamed(options=float("nan")), **NAMED)
    assert problem.text == ROW["question"]


@pytest.mark.parametrize("gaps", [[None], ["", None]])
def test_gaps_at_the_end_are_no_options_and_one_called_none_is(tmp_path, gaps):
    (problem,) = load(tmp_path, renamed(options=["0", "1", "None", *gaps]), **NAMED)
    assert problem.text == ASKED.replace("(C) 2", "(C) None")
    with pytest.raises(BadRowError, match=r"row 0 .*column 'options' is \['0', None, '2'\]"):
        load(tmp_path, renamed(options=["0", None, "2"]), renamed(), **NAMED)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize(("other", "told"), [("by hand", "'by hand'"), ({"size": 3}, "{'size': 3}"), (7, "7")])
def test_a_column_that_lists_options_in_no_row_is_ignored_and_said_once(tmp_path, caplog, suffix, other, told):
    """It is only called so: in the demo's own layout as in named columns, wherever the first such row stands."""
    rows = [renamed(options=None, answer="1"), *[renamed(options=other, answer=str(n)) for n in range(3)]]
    for columns in (NAMED, {}):
        caplog.clear()
        problems = load(tmp_path, *rows, suffix=suffix, **columns)
        assert [(problem.text, problem.columns.choices) for problem in problems] == [(ROW["question"], None)] * 4
        (message,) = caplog.messages
        assert "the column 'options' lists answer options in no row, so it is ignored (row 1: " in message
        assert f"column 'options' is {told})" in message
        assert problems[1].metadata["options"] == other


def test_a_malformed_row_is_an_error_where_another_lists_options_or_the_column_is_named(tmp_path):
    """Also where the first row that lists some comes later."""
    good, bad = renamed(options=str(ROW["options"])), renamed(options="0; 1")
    for place, rows in enumerate([(bad, good), (good, bad)]):
        with pytest.raises(BadRowError, match=rf"row {place} .*column 'options' is '0; 1'; give a list"):
            load(tmp_path, *rows, **NAMED)
    with pytest.raises(BadRowError, match=r"row 0 .*column 'options' is '0; 1'; give a list"):
        load(tmp_path, bad, **NAMED, choices="options")


@pytest.mark.parametrize("empty", [[], "", None, ["A", "B", "C"]])
def test_a_column_without_any_option_is_told(tmp_path, caplog, empty):
    (problem,) = load(tmp_path, renamed(options=empty), **NAMED)
    assert (problem.text, problem.answer) == (ROW["question"], "B")
    assert "the column 'options' names no options in any row that was read" in caplog.text


def test_a_reading_that_broke_off_says_nothing_of_the_rows_after_it(tmp_path, caplog):
    with pytest.raises(BadRowError, match="row 1"):
        load(tmp_path, renamed(options=None), renamed(options=None, answer=""), renamed(), **NAMED)
    assert "names no options" not in caplog.text


@pytest.mark.parametrize("columns", [{}, NAMED, {"choices": "options"}, {**NAMED, "choices": "options"}])
def test_what_variants_wrote_is_read_as_it_stands(tmp_path, columns):
    """With the source's column of options beside the text that has them, by the recipe of the source or by none."""
    rewritten = ASKED.replace("What is", "Find")
    row = {"id": "a", "problem": ASKED, "images": [], "answer": ANSWER, "variants": [rewritten]}
    row |= {"allow_mirrors": False, "transforms": None, "options": ROW["options"]}
    (problem,) = load(tmp_path, row, **columns)
    assert (problem.text, problem.answer, problem.variants) == (ASKED, ANSWER, (rewritten,))
