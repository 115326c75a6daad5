"""`sharevl-lite variants` as a user runs it: against a real server on loopback, killed, resumed, and read back."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chat_server import serve_chat

from sharevl_lite.cli import main
from sharevl_lite.config import DataSection
from sharevl_lite.data import load_problems
from sharevl_lite.rewrite.replies import parse_rewrites

ROOT = Path(__file__).parents[2]
GOLD = "731946"
GOOD = json.dumps([f"{verb} the sum of the two digits." for verb in ("Find", "Determine", "Calculate")])
OK = (200, {}, GOOD, 0.0)


def command(*words):
    return [sys.executable, "-m", "sharevl_lite", "variants", *map(str, words)]


def run(*words, code=0):
    """The command in this process: what it printed."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        returned = main(["variants", *map(str, words)])
    assert returned == code, told.getvalue()
    return told.getvalue()


def data(folder, count):
    rows = [
        {"problem": f"What is the sum of the two digits? Case {n}.", "images": [], "answer": GOLD, "note": n}
        for n in range(count)
    ]
    path = folder / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def endpoint(source, out, server, *more):
    return (source, "--out", out, "--with", "openai", "--base-url", server.url, "--model", "m", *more)


def answer(number, body):
    """Rewrites that keep the case's number."""
    case = re.search(r"Case \d+\.", json.dumps(body))[0]
    texts = [f"{verb} the sum of the two digits. {case}" for verb in ("Find", "Determine", "Calculate")]
    return 200, {}, json.dumps(texts), 0.0


def manifest(out):
    return json.loads((out / "manifest.json").read_text())


def test_success_fills_variants_and_no_request_holds_the_answer(tmp_path):
    out = tmp_path / "out"
    with serve_chat(answer) as server:
        run(*endpoint(data(tmp_path, 6), out, server, "--num", 2))
        assert len(server.bodies) == 6
        assert GOLD not in json.dumps(server.bodies)
    problems = load_problems(str(out), DataSection(), split="train").problems
    assert [problem.metadata["note"] for problem in problems] == list(range(6))
    assert all(len(problem.variants) == 2 for problem in problems)
    assert manifest(out)["cost"]["tokens_in"] == 60
    assert "Determine" in run("--report", out)


def test_images_go_along(tmp_path):
    with serve_chat(lambda number, body: OK) as server:
        run(*endpoint("builtin:digits", tmp_path / "out", server, "--limit", 2))
        parts = server.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "text"]
    assert parts[0]["image_url"]["url"].startswith("data:image/png;base64,")


def test_rate_limit_error_and_broken_reply_are_retried_and_counted(tmp_path):
    trouble = {0: (429, {"Retry-After": "1"}, "{}", 0.0), 1: (500, {}, "{}", 0.0), 2: (200, {}, None, 0.0)}
    out = tmp_path / "out"
    with serve_chat(lambda n, body: trouble.get(n) or answer(n, body)) as server:
        run(*endpoint(data(tmp_path, 1), out, server))
        assert server.times[1] - server.times[0] >= 1.0
        assert len(server.bodies) == 4
    cost = manifest(out)["cost"]
    assert cost["retried: HTTP 429"] == cost["retried: HTTP 500"] == 1
    assert manifest(out)["counts"]["accepted"] == 3


def test_the_last_try_is_followed_by_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr("sharevl_lite.rewrite.endpoint.TRIES", 2)
    with serve_chat(lambda n, body: (500, {}, "{}", 0.0)) as server:
        run(*endpoint(data(tmp_path, 1), tmp_path / "out", server), code=1)
        assert len(server.bodies) == 2
    assert manifest(tmp_path / "out")["cost"]["retried: HTTP 500"] == 1
    assert manifest(tmp_path / "out")["failed"] == [{"id": "0", "reason": "HTTP 500, 2 times"}]


def test_a_hang_ends_at_the_time_out(tmp_path):
    out = tmp_path / "out"
    with serve_chat(lambda n, body: (200, {}, "[]", 30.0) if n == 0 else answer(n, body)) as server:
        run(*endpoint(data(tmp_path, 1), out, server, "--timeout", 2))
    assert manifest(out)["cost"]["retried: APITimeoutError"] == 1


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (
            None,
            "APIConnectionError, 1 times: nothing can be reached at {url}; start the server, or correct the address",
        ),
        (9.0, "APITimeoutError, 1 times: {url} did not answer in time; raise --timeout, or lower --concurrency"),
    ],
)
def test_an_address_without_an_answer_is_named(tmp_path, monkeypatch, seconds, told):
    monkeypatch.setattr("sharevl_lite.rewrite.endpoint.TRIES", 1)
    with serve_chat(lambda n, body: (200, {}, "[]", seconds)) as server:
        if seconds is None:
            server.shutdown()
            server.server_close()
        said = run(*endpoint(data(tmp_path, 2), tmp_path / "out", server, "--timeout", 1), code=1)
    assert told.format(url=server.url) in said


def test_a_reply_that_is_no_list_is_asked_again_with_another_seed_then_counted(tmp_path):
    out = tmp_path / "out"
    with serve_chat(lambda n, body: (200, {}, "I cannot do that.", 0.0)) as server:
        run(*endpoint(data(tmp_path, 1), out, server))
        assert [body["seed"] for body in server.bodies] == [0, 1, 2]
    assert manifest(out)["cost"]["unparsable"] == 1
    assert manifest(out)["counts"]["without"] == 1


def test_a_refused_key_stops_with_code_2(tmp_path):
    with serve_chat(lambda n, body: (401, {}, "{}", 0.0)) as server:
        assert "HTTP 401" in run(*endpoint(data(tmp_path, 1), tmp_path / "out", server), code=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["sécret-of-this-test", "secret\nof-this-test"])
def test_a_key_that_cannot_be_sent_is_said_at_once_and_not_told(tmp_path, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with serve_chat(answer) as server:
        said = run(*endpoint(data(tmp_path, 1), tmp_path / "out", server), code=2)
    assert "OPENAI_API_KEY holds characters that no HTTP header may have" in said
    assert "cret" not in said
    assert server.bodies == []


def test_the_line_end_of_a_key_is_not_sent(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-this-test\n")
    with serve_chat(answer) as server:
        run(*endpoint(data(tmp_path, 1), tmp_path / "out", server))
    assert server.bodies


def slow(number, body):
    return (*answer(number, body)[:3], 0.3)


def test_killed_in_the_middle_it_goes_on_without_paying_twice(tmp_path):
    source, out = data(tmp_path, 12), tmp_path / "out"
    with serve_chat(slow) as server:
        words = endpoint(source, out, server, "--concurrency", 2)
        process = subprocess.Popen(command(*words), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(server.bodies) < 7 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not out.exists()
        before = len(server.bodies)
        run(*words)
        assert len(server.bodies) <= 12 + 2  # the two under way when it died are asked again, no other
        assert before >= 7
    assert manifest(out)["counts"]["accepted"] == 36
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_run_of_hours_keeps_its_folder_beside_others(tmp_path):
    """The folder that is filled looks old: rows go into a folder inside."""
    source, out = data(tmp_path, 8), tmp_path / "out"
    with serve_chat(slow) as server:
        process = subprocess.Popen(command(*endpoint(source, out, server, "--concurrency", 1)), cwd=ROOT)
        deadline = time.monotonic() + 120
        while not server.bodies and time.monotonic() < deadline:
            time.sleep(0.02)
        (filled,) = tmp_path.glob(".tmp-*-out")
        os.utime(filled, (0, 0))
        run(source, "--out", tmp_path / "other")
        assert filled.is_dir()
        assert process.wait(timeout=300) == 0
    assert manifest(out)["counts"]["accepted"] == 24


def test_two_processes_on_one_cache_ask_each_question_once(tmp_path):
    source, cache = data(tmp_path, 10), tmp_path / "shared.sqlite"
    with serve_chat(slow) as server:
        both = [
            subprocess.Popen(command(*endpoint(source, tmp_path / name, server, "--cache", cache)), cwd=ROOT)
            for name in ("a", "b")
        ]
        assert [process.wait(timeout=300) for process in both] == [0, 0]
        assert len(server.bodies) == 10
    assert manifest(tmp_path / "a")["counts"] == manifest(tmp_path / "b")["counts"]


def test_credentials_in_the_address_are_stored_nowhere(tmp_path):
    out = tmp_path / "out"
    with serve_chat(answer) as server:
        url = server.url.replace("http://", "http://user:s3cret@")
        run(data(tmp_path, 1), "--out", out, "--with", "openai", "--base-url", url, "--model", "m")
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not any(b"s3cret" in file.read_bytes() for file in written)


def test_rules_repeat_themselves_and_other_settings_are_refused(tmp_path):
    source = data(tmp_path, 3)
    run(source, "--out", tmp_path / "a")
    run(source, "--out", tmp_path / "b")
    first, second = (load_problems(str(tmp_path / n), DataSection(), split="train").problems for n in "ab")
    assert [problem.variants for problem in first] == [problem.variants for problem in second]
    assert "complete already" in run(source, "--out", tmp_path / "a")
    assert "num differ" in run(source, "--out", tmp_path / "a", "--num", 2, code=2)


def test_output_loads_with_datasets(tmp_path):
    from datasets import load_dataset

    run("builtin:digits", "--out", tmp_path / "out", "--limit", 8)
    loaded = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "hf"))
    assert loaded[0]["images"][0].size == (112, 56)
    assert all(loaded["variants"])
    assert (tmp_path / "out" / "images" / "00-0.png").is_file()


def test_what_a_row_allows_and_its_other_columns_survive(tmp_path):
    rows = [
        {"problem": "What is the sum?", "images": [], "answer": "1", "allow_mirrors": True, "note": "kept"},
        {"problem": "What is the sum?", "images": [], "answer": "2", "transforms": ["rotate_180", "noise_10"]},
        {"problem": "What is the sum?", "images": [], "answer": "3", "transforms": []},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(tmp_path / "p.jsonl", "--out", tmp_path / "out")
    problems = load_problems(str(tmp_path / "out"), DataSection(), split="train").problems
    assert [problem.allow_mirrors for problem in problems] == [True, False, False]
    assert [problem.transforms for problem in problems] == [None, {"rotate_180", "noise_10"}, set()]
    assert [problem.metadata["note"] for problem in problems] == ["kept", None, None]
    assert all(problem.variants for problem in problems)


def test_columns_with_names_of_ours_lose_nothing(tmp_path):
    row = {"question": "What is the sum?", "picture": None, "answer": "1", "key": "k"}
    row |= {"id": "own", "source_id": "other", "problem": "geometry", "note": "kept"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    names = "problem=question,images=picture,id=key"
    run(tmp_path / "p.jsonl", "--out", tmp_path / "out", "--columns", names)
    (problem,) = load_problems(str(tmp_path / "out"), DataSection(), split="train").problems
    assert problem.id == "k"
    assert problem.metadata == {
        "source_id": "other",
        "source_source_id": "own",
        "source_problem": "geometry",
        "note": "kept",
    }


def test_rows_behind_the_limit_are_not_read(tmp_path):
    source = data(tmp_path, 2)
    source.write_text(source.read_text() + "not json\n")
    run(source, "--out", tmp_path / "out", "--limit", 2)
    assert manifest(tmp_path / "out")["counts"]["problems"] == 2
    assert "line 3" in run(source, "--out", tmp_path / "all", "--limit", 3, code=2)


@pytest.mark.parametrize("last", [["7", "seven", "7"], "7"])
def test_lists_of_accepted_answers_survive_beside_single_ones(tmp_path, monkeypatch, last):
    """Batches of two: the first has texts, the second both, the third may have a text alone."""
    monkeypatch.setattr("sharevl_lite.rewrite.output.BATCH", 2)
    answers = ["1", "[2, 3]", "4", ["5", "five"], last]
    rows = [{"problem": "What is the sum?", "images": [], "answer": answer} for answer in answers]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(tmp_path / "p.jsonl", "--out", tmp_path / "out")
    problems = load_problems(str(tmp_path / "out"), DataSection(), split="train").problems
    lists = [[answer] if isinstance(answer, str) else answer for answer in answers]
    assert [problem.answer_cell for problem in problems] == lists
    assert all(problem.variants for problem in problems)
    run(tmp_path / "out", "--out", tmp_path / "again")
    again = load_problems(str(tmp_path / "again"), DataSection(), split="train").problems
    assert [problem.answer_cell for problem in again] == lists


ENDPOINT = ["builtin:digits", "--out", "x", "--with", "openai", "--model", "m", "--base-url"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["builtin:digits"], "--out"),
        (["builtin:digits", "--out", "x", "--with", "magic"], "rules, openai, hf:MODEL and vllm:MODEL"),
        (["builtin:digits", "--out", "x", "--with", "openai"], "--base-url"),
        (["builtin:digits", "--out", "x", "--num", "0"], "--num"),
        (["builtin:digits", "--out", "x", "--with", "hf:no/such-folder/at-all"], "cannot be loaded"),
        (["builtin:digits", "--out", "x", "--check-with", "openai"], "--check-base-url"),
        ([*ENDPOINT, "localhost:8000"], "--base-url must be an address such as http://localhost:8000/v1"),
        ([*ENDPOINT, "http://localhost:port/v1"], "--base-url must be an address such as http://localhost:8000/v1"),
        (["builtin:digits", "--out", "x", "--model", "m"], "--base-url and --model need --with openai, or --check-wi"),
        (["builtin:digits", "--out", "x", "--check-with", "hf"], "name the model"),
        (["no/such.parquet", "--out", "x"], "no such file"),
        (["--report", "nowhere"], "no report"),
    ],
)
def test_mistakes_are_told(words, told, tmp_path):
    words = [str(tmp_path / word) if word == "x" else word for word in words]
    assert told in run(*words, code=2)


def test_replies_are_read_however_they_are_wrapped():
    assert parse_rewrites('Sure:\n```json\n["a b", "c d"]\n```') == ["a b", "c d"]
    assert parse_rewrites('{"rewrites": [{"text": "a"}, {"text": "b"}]}') == ["a", "b"]
    assert parse_rewrites(r'["Find \triangle ABC and \frac{1}{2}", "x\nOptions: \"A\""]') == [
        r"Find \triangle ABC and \frac{1}{2}",
        'x\nOptions: "A"',
    ]
    assert parse_rewrites('<think>["no"]</think>["yes"]') == ["yes"]
    assert parse_rewrites('["cut off') is None


def test_options_of_a_column_are_written_once_and_read_back_as_they_stand(tmp_path):
    """Named columns do not hide it, and the recipe that names them trains on what was written."""
    row = {"question": "Find the value of $x$.", "images": [], "options": ["1", "2"], "answer": "B"}
    source, out = tmp_path / "mcq.jsonl", tmp_path / "out"
    source.write_text(json.dumps(row) + "\n")
    names = {"problem": "question", "answer": "answer"}
    told = run(source, "--out", out, "--columns", "problem=question,answer=answer")
    assert "options of column 'options' below each question" in told
    section = DataSection(columns=names)
    (problem,) = load_problems(str(out), section, split="train").problems
    (raw,) = load_problems(str(source), section, split="train").problems
    assert (problem.text, problem.answer) == (raw.text, raw.answer)
    assert raw.text.endswith("Options:\n(A) 1\n(B) 2")
    assert all(text.count("(A)") == 1 for text in problem.variants)
    left_out = tmp_path / "without"
    assert "options of" not in run(source, "--out", left_out, "--columns", "problem=question,choices=null")
