"""The solver check against a real server on loopback, and folders whose requests failed."""

import json
import os
import re
import signal
import subprocess
import time

import pytest
from chat_server import serve_chat
from test_variants_command import ROOT, answer, command, data, endpoint, manifest, run

from sharevl_lite.config import DataSection
from sharevl_lite.data import load_problems
from sharevl_lite.rewrite.check import TEMPLATE, filled

RIGHT, WRONG = r"So it is \boxed{731946}.", r"So it is \boxed{5}."


def solver(*, wrong, pause=0.0):
    """Rewrites where it is asked to rewrite; answers otherwise, wrong where the question has the word `wrong`."""

    def script(number, body):
        asked = body["messages"][0]["content"][-1]["text"]
        if asked.startswith("Rewrite the question"):
            return (*answer(number, body)[:3], pause)
        return 200, {}, WRONG if wrong in asked else RIGHT, pause

    return script


def checked(source, out, server, *more):
    return (*endpoint(source, out, server), "--check-with", "openai", "--check-samples", 2, *more)


def test_rewrites_on_which_the_solver_disagrees_are_rejected_by_name(tmp_path):
    out = tmp_path / "out"
    with serve_chat(solver(wrong="Determine")) as server:
        run(*checked(data(tmp_path, 2), out, server))
        assert "731946" not in json.dumps(server.bodies)
        assert len(server.bodies) == 2 * (1 + 2 * 4)  # one to rewrite; two samples of the original and three rewrites
    found = manifest(out)
    assert found["rejected_by"] == {"solver_disagrees": 2}
    assert found["check"] == {"samples": 16, "right": 12, "wrong": 4, "unverified": 0, "never_solved": 0}
    assert (found["cost"]["requests"], found["cost"]["check_requests"]) == (2, 16)
    assert found["cost"]["check_tokens_out"] == 80
    problems = load_problems(str(out), DataSection(), split="train").problems
    assert all(len(problem.variants) == 2 for problem in problems)
    assert not any("Determine" in text for problem in problems for text in problem.variants)
    assert "solver_disagrees" in (out / "report.md").read_text()


def test_a_solver_that_fails_the_original_proves_nothing_and_rejects_nothing(tmp_path):
    out = tmp_path / "out"
    with serve_chat(solver(wrong="sum")) as server:
        run(*checked(data(tmp_path, 1), out, server))
    assert manifest(out)["counts"]["accepted"] == 3
    assert manifest(out)["check"]["never_solved"] == 1


def test_the_solver_is_right_by_any_accepted_answer(tmp_path):
    row = {"problem": "What is the sum of the two digits? Case 0.", "images": [], "answer": ["9", "731946"]}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / "out"
    with serve_chat(solver(wrong="Determine")) as server:
        run(*checked(tmp_path / "p.jsonl", out, server))
    assert manifest(out)["check"] == {"samples": 8, "right": 6, "wrong": 2, "unverified": 0, "never_solved": 0}


def test_what_cannot_be_verified_is_counted_and_not_taken_for_wrong(tmp_path):
    row = {"problem": "What is the sum of the two digits? Case 0.", "images": [], "answer": r"\frac{1}{0}"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / "out"
    with serve_chat(solver(wrong="nothing")) as server:
        run(*checked(tmp_path / "p.jsonl", out, server))
    assert manifest(out)["check"] == {"samples": 8, "right": 0, "wrong": 0, "unverified": 8, "never_solved": 0}
    assert manifest(out)["rejected_by"] == {"solver_unverified": 3}


@pytest.mark.parametrize(
    ("template", "asked"),
    [
        (r"{problem} Box it: \boxed{{}}", r"Q Box it: \boxed{}"),  # as in a recipe
        (r"{problem} Box it: \boxed{}", r"Q Box it: \boxed{}"),
        (TEMPLATE, TEMPLATE.replace("{problem}", "Q")),
        (r"{problem} Box it: \boxed{\frac{1}{2}}", r"Q Box it: \boxed{\frac{1}{2}}"),
        (r"{problem} {x} {{y}}", "Q {x} {{y}}"),
        ("{problem} {problem.real}", "Q {problem.real}"),
        ("{problem}", "Q"),
    ],
)
def test_braces_of_a_template_are_doubled_or_single(template, asked):
    assert filled(template, "Q") == asked


def test_the_template_of_a_recipe_asks_the_solver_as_in_training(tmp_path):
    template = DataSection().prompt_template
    with serve_chat(solver(wrong="nothing")) as server:
        run(*checked(data(tmp_path, 1), tmp_path / "out", server, "--check-template", template))
        asked = [body["messages"][0]["content"][-1]["text"] for body in server.bodies]
    assert template.format(problem="What is the sum of the two digits? Case 0.") in asked


def test_killed_while_checking_it_goes_on_without_paying_twice(tmp_path):
    out = tmp_path / "out"
    with serve_chat(solver(wrong="Determine", pause=0.2)) as server:
        words = checked(data(tmp_path, 3), out, server, "--concurrency", 2)
        process = subprocess.Popen(command(*words), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(server.bodies) < 14 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not out.exists()
        run(*words)
        assert 27 <= len(server.bodies) <= 27 + 2  # the two under way when it died
    assert manifest(out)["rejected_by"] == {"solver_disagrees": 3}


def test_a_folder_with_failed_requests_says_so_and_asks_only_those_again(tmp_path):
    out, healed = tmp_path / "out", []

    def script(number, body):
        if re.search(r"Case [24]\.", json.dumps(body)) and not healed:
            return 400, {}, "{}", 0.0
        return answer(number, body)

    with serve_chat(script) as server:
        words = endpoint(data(tmp_path, 6), out, server)
        told = run(*words, code=1)
        assert "NOT COMPLETE" in told
        assert "2 problems" in told
        assert ": 2, 4\n" in told
        assert "HTTP 400 (2)" in told
        assert "Not complete" in (out / "report.md").read_text()
        problems = load_problems(str(out), DataSection(), split="train").problems
        assert [len(problem.variants) for problem in problems] == [3, 3, 0, 3, 0, 3]
        healed.append(True)
        before = len(server.bodies)
        cache = out.with_name("out.cache.sqlite")
        cache.rename(tmp_path / "elsewhere.sqlite")
        assert "--cache" in run(*words, code=2)
        assert len(server.bodies) == before
        assert "asking again for 2 problems" in run(*words, "--cache", tmp_path / "elsewhere.sqlite")
        assert len(server.bodies) == before + 2
        assert "complete already" in run(*words)
    problems = load_problems(str(out), DataSection(), split="train").problems
    assert [len(problem.variants) for problem in problems] == [3] * 6
    assert manifest(out)["failed"] == []


def test_a_few_questions_that_are_refused_however_often_they_are_sampled_do_not_end_the_run(tmp_path):
    """The samples of a question fail together: those are a few bad questions, not a model that is gone."""

    def script(number, body):
        asked = body["messages"][0]["content"][-1]["text"]
        refused = not asked.startswith("Rewrite the question")
        return (400, {}, "{}", 0.0) if refused else solver(wrong="nothing")(number, body)

    out = tmp_path / "out"
    with serve_chat(script) as server:
        words = checked(data(tmp_path, 3), out, server, "--check-samples", 12, "--concurrency", 2)
        assert "3 problems" in run(*words, code=1)
    assert [entry["id"] for entry in manifest(out)["failed"]] == ["0", "1", "2"]
