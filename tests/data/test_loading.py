"""Problems are read from real files, and every kind of bad row is named or skipped."""

import base64
import io
import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import serve_hub
from PIL import Image

from sharevl_lite.config import ColumnNames, DataSection
from sharevl_lite.data import BadRowError, DataError, RowFault, load_problems
from sharevl_lite.data.images import ImageReader

ROOT = Path(__file__).parents[2]
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SKIP = DataSection(on_bad_row="skip")
STOP = DataSection(on_bad_row="stop")


def encoded(colour="red", size=(6, 4), mode="RGB", kind="PNG", **options):
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind, **options)
    return buffer.getvalue()


def row(**cells):
    return {"problem": "<image>How many?", "images": ["red.png"], "answer": "3", **cells}


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "red.png").write_bytes(encoded())
    path.write_text("".join(json.dumps(r) + "\n" if not isinstance(r, str) else r + "\n" for r in rows), "utf-8")
    return path


def write_parquet(path, rows, **types):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"problem": pa.string(), "images": pa.list_(IMAGE_TYPE), "answer": pa.string(), **types}
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(list(columns.items()))), path)
    return path


def load(path, section=STOP, **options):
    return load_problems(str(path), section, **{"split": "train", **options})


def only(path, section=STOP):
    (problem,) = load(path, section).problems
    return problem


# ---------------------------------------------------------------- sources


def test_parquet_with_image_structs(tmp_path):
    rows = [
        row(images=[{"bytes": encoded("red"), "path": None}], level=4),
        row(images=[{"bytes": encoded("blue"), "path": "x.png"}] * 2, problem="<image><image>Same?", level=5),
    ]
    loaded = load(write_parquet(tmp_path / "p.parquet", rows, level=pa.int64()))
    first, second = loaded.problems
    assert (first.id, first.text, first.answer, first.metadata) == ("0", "<image>How many?", "3", {"level": 4})
    assert first.images[0].getpixel((0, 0)) == (255, 0, 0)
    assert [image.getpixel((0, 0)) for image in second.images] == [(0, 0, 255)] * 2
    assert loaded.skipped == []


def test_parquet_of_more_rows_than_one_batch_keeps_order_and_numbers(tmp_path):
    rows = [row(images=[{"bytes": encoded(), "path": None}], answer=str(n)) for n in range(150)]
    rows[130]["answer"] = " "
    path = write_parquet(tmp_path / "p.parquet", rows)
    loaded = load(path, SKIP)
    assert [problem.answer for problem in loaded.problems] == [str(n) for n in range(150) if n != 130]
    assert [bad.place.row for bad in loaded.skipped] == [130]
    with pytest.raises(BadRowError, match=r"row 130 \(counted from 0; p.parquet row 130\)"):
        load(path)


def test_jsonl_paths_start_from_the_folder_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "set/images").mkdir(parents=True)
    (tmp_path / "set/images/a.png").write_bytes(encoded("blue"))
    write_jsonl(tmp_path / "set/p.jsonl", [row(images=["images/a.png"])])
    monkeypatch.chdir(tmp_path)
    assert only("set/p.jsonl").images[0].getpixel((0, 0)) == (0, 0, 255)


def test_jsonl_ignores_blank_lines_and_a_byte_order_mark(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [row(), "", row(), ""])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [problem.id for problem in load(path).problems] == ["0", "1"]


def test_folder_reads_all_files_in_name_order_and_numbers_rows_through(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", [row(answer="b0"), row(answer="")])
    write_parquet(tmp_path / "a.parquet", [row(images=[{"bytes": encoded(), "path": None}], answer="a0")])
    loaded = load(tmp_path, SKIP)
    assert [problem.answer for problem in loaded.problems] == ["a0", "b0"]
    assert [str(bad.place) for bad in loaded.skipped] == [f"{tmp_path}: row 2 (counted from 0; b.jsonl line 2)"]


def test_folder_with_split_names_gives_the_split_that_is_asked_for(tmp_path):
    for name in ("train-00001-of-00002", "train-00000-of-00002", "test-00000-of-00001"):
        write_jsonl(tmp_path / f"{name}.jsonl", [row(answer=name)])
    assert [problem.answer for problem in load(tmp_path).problems] == ["train-00000-of-00002", "train-00001-of-00002"]
    assert len(load(tmp_path, split="test").problems) == 1


def test_folder_never_hands_out_another_split(tmp_path):
    write_jsonl(tmp_path / "test-00000-of-00001.jsonl", [row()])
    with pytest.raises(DataError, match=r"starts with the split 'train', but there are test-0.*data.train_split"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("split", "chosen", "others"),
    [
        ("test", ["test-00000-of-00001"], ["testmini-00000-of-00001", "test_hard-00000-of-00001"]),
        ("test_hard", ["test_hard-00000-of-00001"], ["test-00000-of-00001"]),
        ("testmini", ["testmini-00000-of-00001"], ["test-00000-of-00001"]),
        ("train", ["train-00000-of-00001"], ["train_sft-00000-of-00001", "training_log"]),
        ("train", ["train[:10%]-00000-of-00001"], ["test-00000-of-00001"]),
        ("train", ["train", "train-0", "train2", "train_1"], ["trainset", "training"]),
        ("train", ["training"], ["testing"]),
        ("val", ["validation-00000-of-00001"], ["train-00000-of-00001"]),
        ("val", ["valid"], ["train"]),
        ("val", ["val"], ["validation", "values"]),
        ("train", ["devices", "values"], []),
        ("train", ["devices-00000-of-00002", "devices-00001-of-00002"], []),
    ],
)
def test_a_split_is_a_word_of_its_own(tmp_path, split, chosen, others):
    for name in (*chosen, *others):
        write_jsonl(tmp_path / f"{name}.jsonl", [row(answer=name)])
    assert sorted(problem.answer for problem in load(tmp_path, split=split).problems) == chosen


@pytest.mark.parametrize("other", ["testmini", "testing", "testset", "train_sft-00000-of-00001", "validation", "valid"])
def test_what_tells_another_split_is_not_handed_out(tmp_path, other):
    write_jsonl(tmp_path / f"{other}.jsonl", [row()])
    write_jsonl(tmp_path / "rows.jsonl", [row()])
    with pytest.raises(DataError, match=f"no file name starts with the split 'train', but there are {other}"):
        load(tmp_path)


def test_folder_without_files_names_the_folder_below_that_has_some(tmp_path):
    write_jsonl(tmp_path / "data/train.jsonl", [row()])
    with pytest.raises(DataError, match=rf"holds no .parquet or .jsonl file; there are some in {tmp_path}/data"):
        load(tmp_path)


def test_folder_of_save_to_disk_says_how_to_convert_it(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"problem": "How many?", "images": [], "answer": "3"}])
    rows.save_to_disk(tmp_path / "one")
    DatasetDict({"train": rows}).save_to_disk(tmp_path / "two")
    for name, part in (("one", ""), ("two", r"\['train'\]")):
        call = rf"datasets.load_from_disk\('{tmp_path / name}'\){part}.to_parquet\('train.parquet'\)"
        with pytest.raises(DataError, match=rf"holds no .parquet or .jsonl file; save_to_disk .* with {call}"):
            load(tmp_path / name)


def test_an_image_folder_with_its_metadata_file(tmp_path):
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats/1.png").write_bytes(encoded("blue"))
    write_jsonl(
        tmp_path / "metadata.jsonl", [{"file_name": "cats/1.png", "problem": "Which colour?", "answer": "blue"}]
    )
    problem = only(tmp_path, DataSection(columns=ColumnNames(images="file_name")))
    assert problem.text == "<image>Which colour?"
    assert problem.images[0].getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("question", ["[{x}] is what?", '[{"x": 1}] has how many keys?', '[{"x": 1}]', "[{'a': 1}, 2]"])
def test_brackets_in_a_question_are_no_chat(tmp_path, question):
    assert only(write_jsonl(tmp_path / "p.jsonl", [row(problem=question)])).text == "<image>" + question


def test_builtin_digits():
    loaded = load("builtin:digits", limit=3)
    assert len(loaded.problems) == 3
    assert all(p.text.count("<image>") == len(p.images) and p.answer for p in loaded.problems)
    with pytest.raises(DataError, match="builtin:digits"):
        load("builtin:letters")
    with pytest.raises(DataError, match="nope"):
        load("builtin:digits", split="nope")


def test_limit_reads_no_further_than_it_must(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [row(), row(answer=""), row(answer="4"), "not json"])
    loaded = load(path, SKIP, limit=2)
    assert [problem.answer for problem in loaded.problems] == ["3", "4"]
    assert [bad.place.row for bad in loaded.skipped] == [1]


def test_missing_file_names_the_nearest_one(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [row()])
    with pytest.raises(DataError, match=r"no such file or folder .*Did you mean '.*/train.jsonl'\?.*builtin:digits"):
        load(tmp_path / "trian.jsonl")


@pytest.mark.parametrize("name", ["p.csv", "p"])
def test_unknown_kind_of_file(tmp_path, name):
    (tmp_path / name).write_text("problem,answer")
    with pytest.raises(DataError, match=r"is not understood; give .parquet or .jsonl"):
        load(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"PAR1 but no more", encoded()])
def test_broken_parquet_file_is_named(tmp_path, content):
    (tmp_path / "p.parquet").write_bytes(content)
    with pytest.raises(
        DataError, match=r"p.parquet: cannot be read as Parquet from row 0 .*[^.]\. Write the file again"
    ):
        load(tmp_path / "p.parquet", SKIP)


def test_parquet_damaged_in_the_middle_is_named(tmp_path):
    rows = [row(images=[{"bytes": os.urandom(2000), "path": None}]) for _ in range(200)]
    path = write_parquet(tmp_path / "p.parquet", rows)
    data = bytearray(path.read_bytes())
    data[100:4000] = bytes(3900)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"p.parquet"):
        load(path)


@pytest.mark.parametrize("section", [STOP, SKIP])
def test_source_without_rows(tmp_path, section):
    with pytest.raises(DataError, match="holds no rows"):
        load(write_jsonl(tmp_path / "p.jsonl", [""]), section)
    with pytest.raises(DataError, match="holds no rows"):
        load(write_parquet(tmp_path / "p.parquet", []), section)


def test_all_rows_bad_is_an_error_even_when_skipping(tmp_path):
    with pytest.raises(DataError, match=r"all 2 rows are bad; the first one is .*row 0 .*answer.* is empty"):
        load(write_jsonl(tmp_path / "p.jsonl", [row(answer=""), row(answer="")]), SKIP)


# ---------------------------------------------------------------- columns


def test_columns_are_remapped_and_the_rest_is_metadata(tmp_path):
    columns = ColumnNames(problem="q", images="image", answer="a", variants="alts", id="key")
    cells = {
        "q": "What?",
        "image": "red.png",
        "a": "1",
        "alts": ["Which?"],
        "key": 7,
        "problem": "kept",
        "level": [1, None],
    }
    problem = only(write_jsonl(tmp_path / "p.jsonl", [cells]), DataSection(columns=columns))
    assert (problem.id, problem.text, problem.answer) == ("7", "<image>What?", "1")
    assert problem.variants == ("<image>Which?",)
    assert problem.metadata == {"problem": "kept", "level": [1, None]}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_unknown_column_lists_the_columns_and_the_nearest(tmp_path, kind):
    if kind == "jsonl":
        path = write_jsonl(tmp_path / "p.jsonl", [{"problem": "a", "imagess": "red.png", "answer": "1"}])
    else:
        path = tmp_path / "p.parquet"
        pq.write_table(pa.table({"problem": ["a"], "imagess": [encoded()], "answer": ["1"]}), path)
    message = r"no column 'images'; there are 'problem', 'imagess', 'answer'; nearest: 'imagess'. Set data.columns.imag"
    with pytest.raises(DataError, match=message):
        load(path, SKIP)
    mapped = DataSection(columns=ColumnNames(images="imagess"))
    assert only(path, mapped).images[0].size == (6, 4)


def test_an_optional_column_that_the_recipe_names_must_exist(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [row()])
    with pytest.raises(DataError, match=r"no column 'alts'.*data.columns.variants"):
        load(path, DataSection(columns=ColumnNames(variants="alts")))


def test_jsonl_rows_may_leave_out_the_images_that_other_rows_have(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [{"problem": "1+1?", "answer": 2}, row()])
    assert [len(problem.images) for problem in load(path).problems] == [0, 1]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["<image>A?", "B <image>?"], ("<image>A?", "B <image>?")),
        (["no placeholder"], ("<image>no placeholder",)),
        ('["A \\"quoted\\"?", "B?"]', ('<image>A "quoted"?', "<image>B?")),
        ("['A isn\\'t?', \"B's?\"]", ("<image>A isn't?", "<image>B's?")),
        ("('A?', 'B?')", ("<image>A?", "<image>B?")),
        ("Just one?", ("<image>Just one?",)),
        ("[x] is what?", ("<image>[x] is what?",)),
        ("__import__('os').system('touch pwned')", ("<image>__import__('os').system('touch pwned')",)),
        ("42", ("<image>42",)),
        ("", ()),
        (None, ()),
        ([], ()),
    ],
)
@pytest.mark.parametrize("column", ["variants", "new_questions"])
def test_variants_as_list_or_string(tmp_path, monkeypatch, column, value, expected):
    monkeypatch.chdir(tmp_path)
    problem = only(write_jsonl(tmp_path / "p.jsonl", [row(**{column: value})]))
    assert problem.variants == expected
    assert problem.metadata == {}
    assert not (tmp_path / "pwned").exists()


def test_variants_win_over_their_alias(tmp_path):
    problem = only(write_jsonl(tmp_path / "p.jsonl", [row(variants=["A?"], new_questions=["B?"])]))
    assert problem.variants == ("<image>A?",)
    assert problem.metadata == {"new_questions": ["B?"]}


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (2.5, "2.5"), (-1, "-1"), (" x ", " x "), (10**400, str(10**400))]
)
def test_numbers_become_text(tmp_path, value, text):
    assert only(write_jsonl(tmp_path / "p.jsonl", [row(answer=value)])).answer == text


def test_placeholders_are_put_in_front_of_a_text_without_any(tmp_path):
    cells = row(
        problem="Which is larger?", images=["red.png", "red.png"], variants=["Larger: <image> or <image>?", "Which?"]
    )
    problem = only(write_jsonl(tmp_path / "p.jsonl", [cells]))
    assert problem.text == "<image><image>Which is larger?"
    assert problem.variants == ("Larger: <image> or <image>?", "<image><image>Which?")


def test_ids_and_mirrors(tmp_path):
    rows = [row(id="a", allow_mirrors=True), row(id=5, allow_mirrors=False), row(id=None, allow_mirrors=None), row()]
    problems = load(write_jsonl(tmp_path / "p.jsonl", rows)).problems
    assert [problem.id for problem in problems] == ["a", "5", "2", "3"]
    assert [problem.allow_mirrors for problem in problems] == [True, False, False, False]


def test_a_row_names_what_may_be_done_to_its_images(tmp_path):
    rows = [row(transforms=["noise_10", "rotate_180"]), row(transforms=[]), row(transforms=None), row()]
    problems = load(write_jsonl(tmp_path / "p.jsonl", rows)).problems
    assert [problem.transforms for problem in problems] == [{"noise_10", "rotate_180"}, set(), None, None]
    assert "transforms" not in problems[0].metadata


# ---------------------------------------------------------------- images


def test_images_come_as_path_bytes_struct_or_pil_one_or_many(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded())
    forms = [
        "a.png",
        str(tmp_path / "a.png"),
        encoded(),
        {"bytes": encoded(), "path": "gone.png"},
        {"bytes": None, "path": "a.png"},
        {"path": "a.png"},
        base64.b64encode(encoded()).decode(),
        "data:image/png;base64," + base64.b64encode(encoded()).decode(),
        {"path": "DATA:image/x-anything;name=a;base64,\n" + base64.encodebytes(encoded()).decode()},
        Image.new("RGB", (6, 4), "red"),
    ]
    reader = ImageReader()
    singles = [reader.read(form, tmp_path)[0] for form in forms]
    assert all(np.array_equal(np.asarray(image), np.asarray(singles[0])) for image in singles)
    assert [image.size for image in reader.read(forms, tmp_path)] == [(6, 4)] * len(forms)
    assert len(reader.read(None, tmp_path)) == len(reader.read([], tmp_path)) == 0


def test_equal_files_share_one_image(tmp_path):
    first, second = load(write_jsonl(tmp_path / "p.jsonl", [row(), row()])).problems
    assert first.images._images[0] is second.images._images[0]
    assert first.images[0] is not first.images[0], "decoded each time, not kept"
    assert first.image_sizes == (first.images[0].size,)


@pytest.mark.parametrize(
    ("given", "read"), [(3.0, "3"), (-2.0, "-2"), (0.0, "0"), (2.5, "2.5"), (7, "7"), ("3.0", "3.0")]
)
def test_whole_numbers_in_a_column_of_floats_are_integers(tmp_path, given, read):
    assert load(write_jsonl(tmp_path / "p.jsonl", [row(answer=given)])).problems[0].answer == read


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["3", "three"], ("3", "three")),
        ([3, 3.0, "three", 2.5], ("3", "3", "three", "2.5")),
        (["3"], ("3",)),
        ("['3', 'three']", "['3', 'three']"),
        ('["3", "three"]', '["3", "three"]'),
        ("[4, 2, 30, 40]", "[4, 2, 30, 40]"),
        (["4", "2", "30", "40"], ("4", "2", "30", "40")),
    ],
)
def test_a_list_holds_accepted_answers_and_a_text_is_one_answer(tmp_path, given, read):
    problem = only(write_jsonl(tmp_path / "p.jsonl", [row(answer=given)]))
    assert problem.answer == read
    assert problem.accepted == ((read,) if isinstance(read, str) else tuple(dict.fromkeys(read)))
    assert problem.answer_cell == (read if isinstance(read, str) else list(read))


def test_what_several_answers_read_like(tmp_path):
    lists = [["3", "three", "3"], ["3"], "3"]
    problems = load(write_jsonl(tmp_path / "p.jsonl", [row(answer=given) for given in lists])).problems
    assert [problem.gold for problem in problems] == ["3 or three", "3", "3"]


@pytest.mark.parametrize(("array", "read"), [(np.array(["3", "three"]), ("3", "three")), (np.array([3.0]), ("3",))])
def test_arrays_of_parquet_files_are_lists(tmp_path, array, read):
    images = pa.array([[{"bytes": encoded(), "path": None}]], pa.list_(IMAGE_TYPE))
    table = pa.table({"problem": ["<image>How many?"], "images": images, "answer": pa.array([array])})
    pq.write_table(table, tmp_path / "p.parquet")
    assert only(tmp_path / "p.parquet").answer == read


def test_exif_orientation_is_applied(tmp_path):
    photo = Image.new("RGB", (40, 20), "white")
    photo.paste("black", (0, 0, 20, 20))  # the left half
    exif = photo.getexif()
    exif[0x0112] = 6  # the camera lay on its side: show it turned clockwise by a quarter
    photo.save(tmp_path / "p.png", exif=exif)
    (image,) = ImageReader().read("p.png", tmp_path)
    assert image.size == (20, 40)
    assert (image.getpixel((10, 2)), image.getpixel((10, 38))) == ((0, 0, 0), (255, 255, 255))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(mode):
    ink = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    ink.putpixel((1, 1), (0, 0, 0, 255))
    buffer = io.BytesIO()
    ink.convert(mode).save(buffer, "PNG")
    (image,) = ImageReader().read(buffer.getvalue(), None)
    assert image.mode == "RGB"
    assert (image.getpixel((0, 0)), image.getpixel((1, 1))) == ((255, 255, 255), (0, 0, 0))


@pytest.mark.parametrize("mode", ["1", "L", "CMYK"])
def test_other_modes_become_rgb(mode):
    (image,) = ImageReader().read(encoded(0, mode=mode, kind="TIFF"), None)
    assert image.mode == "RGB"


# ---------------------------------------------------------------- bad rows


def photo_cut_short():
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()[: buffer.tell() // 2]


CUT = photo_cut_short()
JSONL_FAULTS = {
    "malformed": ("{'problem': 1}", r"line 2\): the line is not valid JSON \(.* at character 1\)"),
    "constant": ("[1, 2]", "holds a JSON list, not an object"),
    "deep": ("[" * 100_000, "nested too deeply|not valid JSON"),
    "problem missing": ({"images": [], "answer": "1"}, r"the problem \(column 'problem'\) is empty"),
    "problem empty": (row(problem=" \n"), r"the problem \(column 'problem'\) is empty"),
    "problem not text": (row(problem=[{"role": "user"}]), r"the problem .* is \[\{'role': 'user'\}\], not text"),
    "problem a chat in JSON": (
        row(problem='[{"role": "user", "content": "How many?"}]'),
        r"column 'problem'\) is .*not text but the messages of a chat; write .* data.columns.problem",
    ),
    "problem a chat in Python": (row(problem="[{'from': 'human', 'value': 'How many?'}]"), "the messages of a chat"),
    "problem not unicode": (row(problem="<image>\ud83d?"), "has half of a UTF-16 character pair at character 7"),
    "answer not unicode": (row(answer="\ud83d"), "the answer .* has half of a UTF-16"),
    "id not unicode": (row(id="\ud83d"), "the id .* has half of a UTF-16"),
    "answer missing": ({"problem": "a", "images": []}, r"the answer \(column 'answer'\) is empty"),
    "answer empty": (row(answer="  "), "the answer .* is empty"),
    "answer null": (row(answer=None), "the answer .* is empty"),
    "answer list empty": (row(answer=[]), r"the answer \(column 'answer'\) is an empty list; give at least one"),
    "answer list nested": (
        row(answer=["1", ["2"]]),
        r"accepted answer 1 \(from 0, column 'answer'\) is \['2'\]; give text or a number",
    ),
    "answer list with nothing": (row(answer=["1", " "]), r"accepted answer 1 \(from 0, .* is empty"),
    "answer list with null": (row(answer=[None]), r"accepted answer 0 \(from 0, .* is empty"),
    "answer list with bool": (row(answer=["1", True]), r"accepted answer 1 .* is True; give text or a number"),
    "answer list with nan": (row(answer=[float("nan")]), "accepted answer 0 .* is nan; give a finite number"),
    "answer list not unicode": (row(answer=["1", "\ud83d"]), "accepted answer 1 .* has half of a UTF-16"),
    "answer list a box": (row(answer=[4, 2, 30, 40]), r"is \[4, 2, 30, 40\], .*; write a point, a box or a set as one"),
    "answer list a point": (row(answer=[120, 45.5]), r"is \[120, 45.5\], each of them right alone"),
    "answer record": (row(answer={"text": "1"}), r"the answer .* is \{'text': '1'\}; give text or a number"),
    "answer bool": (row(answer=True), "the answer .* is True; give text or a number"),
    "answer nan": (row(answer=float("nan")), "the answer .* is nan; give a finite number"),
    "too few placeholders": (row(images=["red.png"] * 2), r"the problem .* has 1 <image> for 2 image\(s\)"),
    "too many placeholders": (row(problem="<image><image>?"), r"has 2 <image> for 1 image\(s\)"),
    "placeholder without image": (row(images=[]), r"has 1 <image> for 0 image\(s\)"),
    "images null": (row(images=None), r"has 1 <image> for 0 image\(s\)"),
    "variant placeholders": (
        row(variants=["<image>ok", "<image><image>"]),
        r"variant 1 \(from 0, .* has 2 <image> for 1",
    ),
    "variant empty": (row(variants=["<image>ok", ""]), r"variant 1 \(from 0, column 'variants'\) is empty"),
    "variant not text": (row(variants=[{"q": 1}]), r"variant 0 .* is \{'q': 1\}, not text"),
    "variants a number": (row(new_questions=5), "column 'new_questions' is 5; give a list"),
    "variants cut off": (row(variants="['a', 'b"), "starts like a list but is neither"),
    "variants without commas": (row(variants="['a?'\n 'b?']"), "two texts with no comma between them"),
    "image missing": (row(images=["gone.png"]), r"image 0 \(from 0\) cannot be read from '.*gone.png': No such file"),
    "image a folder": (row(images=["."]), "cannot be read from .*: Is a directory"),
    "image cut": (
        row(images=["cut.jpg"]),
        r"image 0 \(from 0\), '/.*/cut.jpg', does not decode \(\d+ bytes; OSError: .*truncated",
    ),
    "image cut in PNG": (row(images=["cut.png"]), r"image 0 \(from 0\), '/.*/cut.png', does not decode"),
    "image not one": (
        row(images="p.jsonl"),
        r"the image, '/.*/p.jsonl', does not decode \(\d+ bytes; UnidentifiedImageError: cannot identify image file\)",
    ),
    "image named, but of text": (row(images={"path": "p.jsonl"}), r"the image, '/.*/p.jsonl', does not decode"),
    "image url": (row(images=["https://x.org/a.png"]), "is the address 'https://x.org/a.png'; download it"),
    "image data address of text": (row(images=["data:text/plain;base64,AAAA"]), "data:image/…;base64,… is understood"),
    "image data address as plain": (row(images=["data:image/svg+xml,<svg/>"]), "data:image/…;base64,… is understood"),
    "image data address cut": (
        row(images=["data:image/png;base64,iVBORw0KG"]),
        r"image 0 \(from 0\) is base64 text that does not decode \(.*; encode the file again",
    ),
    "image base64 of no image": (row(images=["data:image/png;base64,AAAA"]), "does not decode .3 bytes; Unidentified"),
    "image base64 cut": (row(images=["iVBORw0KGgo" + "A" * 50]), "is base64 text that does not decode"),
    "image null": (row(images=[None]), r"image 0 \(from 0\) is None; it must be a path"),
    "image struct empty": (row(images=[{"bytes": None, "path": None}]), "it must be a path, the bytes"),
    "image 16 bit": (row(images=["deep.png"]), r"'/.*/deep.png', has more than 8 bits per channel \(mode I;16\)"),
    "id taken": (row(id="0"), "the id '0' is already that of row 0; ids must be unique"),
    "id float": (row(id=1.5), r"the id \(column 'id'\) is 1.5; give text or a whole number"),
    "id empty": (row(id=""), "the id .* is ''; give text"),
    "unknown transform": (row(transforms=["spin"]), r"column 'transforms' is \['spin'\]; give a list of"),
    "transforms nested": (row(transforms=[["noise_10"]]), r"column 'transforms' is \[\['noise_10'\]\]; give a list of"),
    "transforms not a list": (row(transforms="noise_10"), "column 'transforms' is 'noise_10'; give a list of"),
    "mirrors not bool": (row(allow_mirrors="yes"), "column 'allow_mirrors' is 'yes'; give true or false"),
}


@pytest.mark.parametrize("kind", JSONL_FAULTS)
def test_bad_row_stops_or_is_skipped(tmp_path, caplog, kind):
    bad, reason = JSONL_FAULTS[kind]
    (tmp_path / "cut.jpg").write_bytes(CUT)
    (tmp_path / "cut.png").write_bytes(encoded()[:-30])
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    path = write_jsonl(tmp_path / "p.jsonl", [row(), bad, row()])
    with pytest.raises(BadRowError, match=reason) as error:
        load(path, STOP)
    assert error.value.bad.place.row == 1
    assert f"{path}: row 1 (counted from 0; p.jsonl line 2): " in str(error.value)
    assert "on_bad_row: skip" in str(error.value)

    with caplog.at_level(logging.WARNING):
        loaded = load(path, SKIP)
    assert [problem.id for problem in loaded.problems] == ["0", "2"]
    assert [skipped.place.row for skipped in loaded.skipped] == [1]
    assert str(loaded.skipped[0]) in caplog.text


def test_many_bad_rows_are_not_told_one_by_one(tmp_path, caplog):
    path = write_jsonl(tmp_path / "p.jsonl", [row(), *[row(answer="")] * 50, row(problem="<image>" + "long " * 9)])
    loaded = load(path, SKIP)

    def short(problem):
        if len(problem.text) > 30:
            raise RowFault("the prompt has 45 tokens")

    assert len(loaded.recheck(short, "skip").skipped) == 51
    told = [record.getMessage() for record in caplog.records]
    assert [f"row {number} " in line for number, line in enumerate(told[:10], start=1)] == [True] * 10
    assert told[10:] == [f"{path}: more bad rows than these 10 are skipped"]


def test_bytes_that_are_no_text_are_a_bad_row(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [row()])
    path.write_bytes(path.read_bytes() + b'{"problem": "\xff"}\n')
    with pytest.raises(BadRowError, match=r"row 1 .*line 2.*not UTF-8"):
        load(path)


@pytest.mark.parametrize("data", [b"", CUT, b"\x89PNG\r\n\x1a\n garbage", encoded()[:40]])
def test_broken_image_bytes_in_parquet(tmp_path, data):
    good = row(images=[{"bytes": encoded(), "path": None}])
    path = write_parquet(tmp_path / "p.parquet", [good, row(images=[{"bytes": data, "path": "1.png"}])])
    told = r"row 1 \(counted from 0; p.parquet row 1\): image 0 \(from 0\), '1.png', does not decode \([^<>]*\)\. Fix"
    with pytest.raises(BadRowError, match=told):
        load(path)
    assert [bad.place.row for bad in load(path, SKIP).skipped] == [1]


def test_id_of_a_bad_row_is_not_taken(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [row(id="a", answer=""), row(id="a")])
    assert [problem.id for problem in load(path, SKIP).problems] == ["a"]


def test_error_survives_pickling(tmp_path):
    with pytest.raises(BadRowError) as error:
        load(write_jsonl(tmp_path / "p.jsonl", [row(answer="")]))
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_a_later_check_names_the_same_rows(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [row(answer=""), row(), row(problem="<image>" + "long " * 9), row()])
    loaded = load(path, SKIP)

    def short(problem):
        if len(problem.text) > 30:
            raise RowFault("the prompt has 45 tokens")

    again = loaded.recheck(short, "skip")
    assert [problem.id for problem in again.problems] == ["1", "3"]
    assert [(bad.place.row, bad.reason) for bad in again.skipped][1:] == [(2, "the prompt has 45 tokens")]
    assert len(loaded.skipped) == 1
    with pytest.raises(BadRowError, match=r"row 2 \(counted from 0; p.jsonl line 3\): the prompt has 45 tokens"):
        loaded.recheck(short, "stop")

    def never(problem):
        raise RowFault("no")

    with pytest.raises(DataError, match="all 4 rows are bad"):
        loaded.recheck(never, "skip")


# ---------------------------------------------------------------- the Hub

HUB_SCRIPT = """
import json, sys
from sharevl_lite.config import DataSection
from sharevl_lite.data import load_problems
out = {}
for name, source, split in json.loads(sys.argv[1]):
    try:
        loaded = load_problems(source, DataSection(on_bad_row="skip"), split=split)
        out[name] = [[p.text, p.answer, list(p.images[0].getpixel((0, 0))), p.variants] for p in loaded.problems]
        out[name + " skipped"] = [str(bad) for bad in loaded.skipped]
    except Exception as error:
        out[name] = f"{type(error).__name__}: {error}"
out["heavy"] = sorted({"torch", "transformers"} & set(sys.modules))
print("RESULT" + json.dumps(out))
"""


def hub_features():
    value = {"dtype": "string", "_type": "Value"}
    images = {"feature": {"_type": "Image"}, "_type": "List"}
    features = {"problem": value, "images": images, "answer": value}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """What loading from a Hub gives, in a process that knows only the loopback server."""
    root = tmp_path_factory.mktemp("hub")
    images = [{"bytes": encoded("blue"), "path": "a.png"}]
    rows = [row(images=images), row(images=images, answer=""), row(images=[{"bytes": CUT, "path": None}])]
    for split, count in (("train", 3), ("test", 1)):
        path = write_parquet(root / f"repos/me/geometry/data/{split}-00000-of-00001.parquet", rows[:count])
        pq.write_table(pq.read_table(path).replace_schema_metadata(hub_features()), path)
    write_jsonl(root / "repos/me/renamed/train.jsonl", [{"question": "a", "answer": "b"}])
    asked = [
        ["train", "me/geometry", "train"],
        ["test", "me/geometry", "test"],
        ["unknown split", "me/geometry", "dev"],
        ["unknown name", "me/nothing", "train"],
        ["columns", "me/renamed", "train"],
    ]
    with serve_hub(root / "repos") as (endpoint, requests):
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(root / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
        }
        command = [sys.executable, "-c", HUB_SCRIPT, json.dumps(asked)]
        done = subprocess.run(
            command, env=environment, cwd=root, capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 0, done.stderr
    assert any("resolve" in request and request.endswith(".parquet") for request in requests)
    return json.loads(done.stdout.split("RESULT")[1])


def test_hub_dataset_with_image_features(hub):
    assert hub["train"] == [["<image>How many?", "3", [0, 0, 255], []]]
    assert hub["test"] == hub["train"]
    empty, cut = hub["train skipped"]
    assert empty == "me/geometry: row 1 (counted from 0): the answer (column 'answer') is empty"
    assert cut.startswith("me/geometry: row 2 (counted from 0): image 0 (from 0) does not decode")


def test_hub_errors_say_what_there_is(hub):
    assert hub["unknown split"].startswith("MissingSource: me/geometry")
    assert "['test', 'train']" in hub["unknown split"] or "['train', 'test']" in hub["unknown split"]
    assert "doesn't exist on the Hub" in hub["unknown name"]
    assert "no such file or folder here" in hub["unknown name"]
    assert "give the path from the current directory" in hub["unknown name"]
    assert "no column 'problem'; there are 'question', 'answer'" in hub["columns"]


def test_loading_needs_no_model_library(hub):
    assert hub["heavy"] == []


def test_importing_the_room_reads_no_heavy_library():
    script = (
        "import sys, sharevl_lite.data as d; "
        "print([m for m in ('datasets', 'pyarrow', 'pandas', 'torch', 'sklearn') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
