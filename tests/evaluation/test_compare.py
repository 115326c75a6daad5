"""Two evaluations compared: what must be alike, what is tested, and what is said."""

import dataclasses
import json

import pytest
from test_figures import answers, outcome

from sharevl_lite.evaluation import document
from sharevl_lite.evaluation.compare import compare, tables
from sharevl_lite.evaluation.document import Evaluation
from sharevl_lite.evaluation.errors import EvaluationError
from sharevl_lite.evaluation.outcomes import Asked, Outcome

PROTOCOL = {
    "target": "a run", "data_digest": "d", "problems": 8, "samples": 2, "temperature": 1.0, "top_p": 1.0, "seed": 0,
    "max_completion_length": 32, "prompt_sha256": "p", "variants": "each", "bootstrap_resamples": 200, "engine": "hf",
}  # fmt: skip


def evaluation(plains, protocol=(), **others):
    outcomes = [
        outcome(f"p{number}", groups, "x" if number < 4 else "y", **{k: v[number] for k, v in others.items()})
        for number, groups in enumerate(plains)
    ]
    return Evaluation.of({**PROTOCOL, **dict(protocol)}, outcomes)


FIRST = evaluation([(1, 1), (0, 1), (0, 0), (1, 1)] * 2, rotate=[(1, 1)] * 8)
SECOND = evaluation([(0, 0), (0, 1), (0, 0), (0, 1)] * 2, rotate=[(0, 1)] * 8)


def test_the_difference_is_over_problems_with_its_test_and_movers():
    found = compare(FIRST, SECOND)
    mean = found.tests["mean@2"]
    assert (mean.first, mean.second, mean.problems) == (0.375, 0.75, 8)
    # Four problems moved, all upwards: of the 16 ways to swap them two are as far from zero.
    assert mean.p_value == pytest.approx(2 / 16)
    assert found.tests["mean@2 rotate"].difference == pytest.approx(0.5)
    assert found.tests["mean@2 [x]"].problems == 4
    assert [(mover.id, mover.first, mover.second) for mover in found.better] == [
        ("p0", 0.0, 1.0), ("p4", 0.0, 1.0), ("p3", 0.0, 0.5), ("p7", 0.0, 0.5),
    ]  # fmt: skip
    assert found.worse == []
    assert [mover.id for mover in compare(SECOND, FIRST).worse] == ["p0", "p4", "p3", "p7"]
    json.dumps(found.as_json())


def test_one_response_each_is_tested_by_mcnemar():
    one = {"samples": 1}
    first = evaluation([(1,)] * 6 + [(0,)] * 2, one)
    second = evaluation([(0,)] * 5 + [(1,)] + [(0,)] * 2, one)
    test = compare(first, second).tests["mean@1"]
    assert test.test == "McNemar"
    assert test.p_value == pytest.approx(2 / 2**5)


def test_answers_that_were_judged_by_another_tolerance_are_not_compared():
    relaxed = evaluation([(0,)] * 8, {"samples": 1, "numeric_tolerance": 0.05})
    strict = evaluation([(0,)] * 8, {"samples": 1})  # as written before there was a tolerance
    assert compare(strict, strict).differences == []
    with pytest.raises(EvaluationError, match=r"numeric_tolerance: None and 0\.05"):
        compare(strict, relaxed)


def test_an_evaluation_against_itself_shows_nothing():
    found = compare(FIRST, FIRST)
    assert {test.p_value for test in found.tests.values()} == {1.0}
    assert found.better == found.worse == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"data_digest": "e"}, r"in more than the model \(other problems\);"),
        ({"temperature": 0.0, "prompt_sha256": "q"}, "temperature: 1.0 and 0.0; other prompts"),
        ({"variants": "none"}, "variants: 'each' and 'none'"),
    ],
)
def test_unlike_evaluations_are_refused_by_what_differs(changed, told):
    other = dataclasses.replace(SECOND, protocol={**SECOND.protocol, **changed})
    with pytest.raises(EvaluationError, match=told):
        compare(FIRST, other)
    forced = compare(FIRST, other, force=True)
    assert forced.tests == compare(FIRST, SECOND).tests
    assert {name for name, _, _ in forced.differences} == set(changed)


def test_seed_and_engine_may_differ_and_are_said():
    other = dataclasses.replace(SECOND, protocol={**SECOND.protocol, "seed": 1, "engine": "vllm"})
    shown = tables(compare(FIRST, other), ("A", "B"))
    assert [table.rows for table in shown if table.title == "Settings that differ"] == [
        [("seed", "0", "1"), ("engine", "hf", "vllm")]
    ]


def test_forced_over_the_shared_problems_and_figures():
    fewer = evaluation([(0, 0, 1, 1), (0, 0, 0, 0)], {"samples": 4, "problems": 2, "data_digest": "e"})
    found = compare(FIRST, fewer, force=True)
    assert found.tests["mean"].problems == 2
    assert found.only_one == 6
    assert "mean@2" not in found.tests
    assert "consistency" in FIRST.metrics
    assert "consistency" not in found.tests, "a majority of four is another one than of two"
    strangers = [Outcome("q", None, "q?", "1", (Asked("plain", None, answers(0, 1)),))]
    with pytest.raises(EvaluationError, match="share no problem"):
        compare(FIRST, Evaluation.of(PROTOCOL, strangers), force=True)


def test_problems_without_a_verified_response_are_in_no_pair():
    unknown = evaluation([("?", "?"), *[(0, 1)] * 7], rotate=[(0, 1)] * 8)
    found = compare(FIRST, unknown)
    assert found.tests["mean@2"].problems == 7
    assert found.responses["mean@2"] == (14, 14)


def test_each_figure_says_on_how_many_responses_it_stands():
    """One response to the second problem has no verdict: it has a length and a format all the same."""
    partly = evaluation([(0, 0), (0, "?"), *[(0, 1)] * 6], rotate=[(0, 1)] * 7 + [("?", "?")])
    found = compare(FIRST, partly)
    shown = {name: (test.problems, *found.responses[name]) for name, test in found.tests.items()}
    assert {name: shown[name] for name in ("mean@2", "pass@2", "format", "mean@2 rotate", "mean@2 [x]")} == {
        "mean@2": (8, 16, 15), "pass@2": (7, 14, 14), "format": (8, 16, 16), "mean@2 rotate": (7, 14, 14),
        "mean@2 [x]": (4, 8, 7),
    }  # fmt: skip
    assert shown["consistency"] == (7, 28, 27)
    (table, *_) = tables(found, ("A", "B"))
    assert table.header[-2:] == ("problems", "responses")
    assert {row[0]: row[-2:] for row in table.rows}["mean@2"] == ("8", "16 / 15")
    assert {row[0]: row[-2:] for row in table.rows}["format"] == ("8", "16")


@pytest.mark.parametrize("change", ["question", "gold"])
def test_problems_of_one_id_are_one_problem_only_with_their_question_and_answer(change):
    """Without a column of ids these are the numbers of rows, which every data set has."""
    others = [dataclasses.replace(each, **{change: "another"}) for each in SECOND.problems]
    with pytest.raises(EvaluationError, match=r"share no problem \(by id, question and answer\)"):
        compare(FIRST, Evaluation.of(SECOND.protocol, others), force=True)
    mixed = Evaluation.of({**SECOND.protocol, "data_digest": "e"}, [*others[:3], *SECOND.problems[3:]])
    found = compare(FIRST, mixed, force=True)
    assert (found.shared, found.only_one, found.other_problem) == (5, 6, 3)
    assert found.tests["mean@2"].problems == 5
    assert {mover.id for mover in found.better} == {"p3", "p4", "p7"}
    notes = tables(found, ("A", "B"))[0].notes
    assert "5 problems are in both, 6 in one only (left out). 3 ids are in both with another question" in notes


def with_protocol(evaluation, **changed):
    return dataclasses.replace(evaluation, protocol={**evaluation.protocol, **changed})


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pixels_digest", "other pictures"),
        ("variant_kinds", "variant_kinds: 'one' and 'other'"),
        ("variant_mirrors", "variant_mirrors: 'one' and 'other'"),
        ("variant_guard", "variant_guard: 'one' and 'other'"),
        ("variant_probability", "variant_probability: 'one' and 'other'"),
        ("variant_rows_digest", "other transforms that the rows allow"),
    ],
)
def test_other_pictures_or_ways_of_asking_are_refused_where_both_are_known(name, told):
    first, second = with_protocol(FIRST, **{name: "one"}), with_protocol(SECOND, **{name: "other"})
    with pytest.raises(EvaluationError, match=told):
        compare(first, second)
    assert (name, "one", "other") in compare(first, second, force=True).differences
    older = compare(FIRST, second)  # saved before this was recorded
    assert older.differences == [(name, "not recorded", "other")]
    assert older.tests == compare(FIRST, SECOND).tests
    plain = [with_protocol(each, variants="none") for each in (first, second)]
    if name != "pixels_digest":
        assert compare(*plain).differences == [], "no variants, no difference"


@pytest.mark.parametrize(
    "name",
    [
        "loader",
        "load_in_4bit",
        "harness_version",
        "version_math_verify",
        "version_sharevl_lite",
        "version_transformers",
    ],
)
def test_another_way_to_run_or_judge_is_said(name):
    first, second = with_protocol(FIRST, **{name: "1"}), with_protocol(SECOND, **{name: "2"})
    shown = tables(compare(first, second), ("A", "B"))
    assert [table.rows for table in shown if table.title == "Settings that differ"] == [[(name, "1", "2")]]


def rewarded(base, value, **protocol):
    """The evaluation with rewards: the whole, and of two functions."""
    rewards = {"reward": value, "reward/short": value, "reward/neat": value}
    problems = [
        dataclasses.replace(
            problem,
            asked=tuple(
                dataclasses.replace(way, answers=tuple(dataclasses.replace(a, rewards=rewards) for a in way.answers))
                for way in problem.asked
            ),
        )
        for problem in base.problems
    ]
    return Evaluation.of({**base.protocol, **protocol}, problems)


WEIGHTS, FUNCTIONS = "accuracy=0.9, short=1.0, neat=1.0", "short=aa, neat=bb"


@pytest.mark.parametrize(
    ("weights", "functions", "gone"),
    [
        (WEIGHTS, FUNCTIONS, []),
        ("accuracy=0.9, short=2.0, neat=1.0", FUNCTIONS, ["reward"]),
        (WEIGHTS, "short=aa, neat=cc", ["reward", "reward/neat"]),
    ],
)
def test_rewards_that_were_computed_otherwise_are_not_compared(weights, functions, gone):
    first = rewarded(FIRST, 0.5, reward_weights=WEIGHTS, reward_functions=FUNCTIONS)
    second = rewarded(SECOND, 1.5, reward_weights=weights, reward_functions=functions)
    found, every = compare(first, second), {"reward", "reward/short", "reward/neat"}
    assert found.not_compared == gone
    assert every & found.tests.keys() == every - set(gone)
    assert found.tests["mean@2"] == compare(FIRST, SECOND).tests["mean@2"]
    notes = tables(found, ("A", "B"))[0].notes
    assert ("Not compared, for weights or functions differ: " + ", ".join(gone) in notes) == bool(gone)
    assert every <= compare(first, second, force=True).tests.keys()
    older = compare(rewarded(FIRST, 0.5), second)
    assert every <= older.tests.keys()
    assert ("reward_weights", "not recorded", weights) in older.differences


def test_benchmarks_are_compared_each_and_never_pooled():
    suite = {"variants": "none", "harness": "lmms-eval", "harness_version": "0.7.3", "samples": 1}
    first, second = evaluation([(1,), (0,)] * 4, suite), evaluation([(0,)] * 8, {**suite, "harness_version": "0.6.0"})
    found = compare(first, second)
    assert set(found.tests) == {"mean@1 [x]", "mean@1 [y]", "truncated [x]", "truncated [y]"}
    assert found.tests["mean@1 [x]"].problems == 4
    assert found.responses["truncated [x]"] == (4, 4)
    assert found.differences == [("harness_version", "0.7.3", "0.6.0")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ("[1]", "not an evaluation"),
        ('{"schema_version": 9, "problems": []}', "schema version 9"),
        ('{"schema_version": 1, "problems": [{}], "protocol": {}, "metrics": {}}', "damaged"),
    ],
)
def test_files_that_are_no_evaluations_are_named(tmp_path, text, told):
    file = tmp_path / "a.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(EvaluationError, match=told):
        document.read(file)


@pytest.mark.parametrize("name", ["samples", "seed", "bootstrap_resamples"])
@pytest.mark.parametrize("value", [None, "7", True, 1.5, -1, "missing"])
def test_a_protocol_without_a_number_that_is_needed_is_damaged(tmp_path, name, value):
    record = FIRST.as_json()
    record["protocol"] = {**record["protocol"], name: value}
    told = rf"protocol\.{name} is {value!r}, not a whole number from \d on"
    if value == "missing":
        del record["protocol"][name]
        told = rf"protocol\.{name} is missing"
    file = tmp_path / "a.json"
    file.write_text(json.dumps(record))
    with pytest.raises(EvaluationError, match=rf"a\.json: a damaged evaluation \({told}\); evaluate again"):
        document.read(file)
