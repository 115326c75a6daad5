"""Figures from outcomes: what counts, what is left out, and when two answers say the same."""

import json
from dataclasses import replace

import pytest

from sharevl_lite.config import RewardSection
from sharevl_lite.evaluation.figures import Bootstrap, agreements, by_kind, by_source, counts, headline
from sharevl_lite.evaluation.grouping import group_wrong_answers
from sharevl_lite.evaluation.outcomes import Answer, Asked, Outcome
from sharevl_lite.rewards import RewardScorer

DRAWS = Bootstrap(seed=0, resamples=200)


def answers(*groups):
    """0 right, 1.. wrong, None without a box, "?" not verified."""
    return tuple(
        Answer(
            extracted=None if group in (None, "?") else f"answer {group}",
            correct=None if group == "?" else group == 0,
            group=None if group == "?" else group,
            well_formed=group is not None,
            truncated=group is None,
            tokens=10,
        )
        for group in groups
    )


def outcome(name, plain, source=None, **others):
    ways = [Asked("plain", None, answers(*plain))]
    ways += [
        Asked(kind, "rotate_180" if kind == "rotate" else None, answers(*groups)) for kind, groups in others.items()
    ]
    return Outcome(name, source, f"{name}?", "1", tuple(ways))


def values(figures):
    return {name: found.value for name, found in figures.items()}


def test_headline_figures_of_the_plain_questions():
    found = values(headline([outcome("a", (0, 1, 1, 0)), outcome("b", (1, 2, None, 0))], 4, DRAWS))
    assert found["mean@4"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert found["pass@2"] == pytest.approx(((1 - 1 / 6) + (1 - 3 / 6)) / 2)
    assert found["pass@4"] == 1.0
    assert found["maj@4"] == pytest.approx((1 / 2 + 1 / 3) / 2), "ties of two and of three"
    assert found["format"] == pytest.approx(7 / 8)
    assert found["truncated"] == pytest.approx(1 / 8)
    assert "consistency" not in found


def test_rewards_are_means_of_what_is_known_and_are_written_and_read():
    first, second = (
        replace(one, asked=(replace(one.asked[0], answers=tuple(map(rewarded, one.asked[0].answers, worth))),))
        for one, worth in ((outcome("a", (0, 1)), (1.0, None)), (outcome("b", (0, 0)), (0.5, 0.25)))
    )
    found = values(headline([first, second], 2, DRAWS))
    assert found["reward/iou"] == pytest.approx((1.0 + 0.375) / 2)
    assert found["reward"] == pytest.approx((2.0 + 0.75) / 2)
    assert Outcome.from_json(json.loads(json.dumps(first.as_json()))) == first
    old = outcome("a", (0, 1)).as_json()
    assert "rewards" not in old["asked"][0]
    assert Outcome.from_json(old) == outcome("a", (0, 1))
    old["asked"][0]["truncated"].pop()
    with pytest.raises(ValueError, match="shorter"):
        Outcome.from_json(old)


def rewarded(answer, worth):
    return replace(answer, rewards={"reward": None if worth is None else 2 * worth, "reward/iou": worth})


def test_one_response_has_neither_pass_nor_vote():
    assert list(headline([outcome("a", (0,))], 1, DRAWS)) == ["mean@1", "format", "truncated", "response_length"]


def test_failed_verifications_are_left_out_never_wrong():
    found = headline([outcome("a", ("?", 0, 0, 1)), outcome("b", ("?",) * 4)], 4, DRAWS)
    assert found["mean@4"].value == pytest.approx(2 / 3)
    assert (found["mean@4"].problems, found["mean@4"].left_out) == (1, 1)
    assert found["pass@2"].value == 1.0, "of three verified ones, two are right"
    assert (found["pass@4"].value, found["pass@4"].left_out) == (None, 2)
    assert found["maj@4"].value == 1.0
    assert found["format"].problems == 2, "the form is known without the verifier"
    told = counts([outcome("a", ("?", 0, None, 1))], comparisons_failed=3)
    assert told["not_verified"] == 1
    assert told["without_answer"] == 1
    assert told["truncated"] == 1
    assert told["comparisons_failed"] == 3


def test_a_vote_without_any_answer_is_wrong():
    assert headline([outcome("a", (None, None))], 2, DRAWS)["maj@2"].value == 0.0


def test_consistency_is_about_the_majority_answers():
    problems = {
        "all right": (outcome("a", (0, 0, 1), rotate=(0, 1, 0)), 1, (1, 0, 0)),
        "all wrong, alike": (outcome("b", (2, 2, 0), rotate=(0, 2, 2)), 1, (0, 1, 0)),
        "all wrong, unlike": (outcome("c", (2, 2, 0), rotate=(3, 3, 0)), 0, (0, 1, 0)),
        "mixed": (outcome("d", (0, 0, 1), rotate=(1, 1, 0)), 0, (0, 0, 1)),
        "no answers": (outcome("e", (None,) * 3, rotate=(None,) * 3), 0, (0, 1, 0)),
        "tie by first": (outcome("f", (0, 1), rotate=(0, 0)), 1, (1, 0, 0)),
    }
    for name, (problem, consistent, shares) in problems.items():
        found = agreements(problem)
        assert found["consistency"] == consistent, name
        assert (found["all_right"], found["all_wrong"], found["mixed"]) == shares, name
    assert agreements(outcome("g", (0, 0))) is None
    assert agreements(outcome("h", (0, 0), rotate=("?", "?"))) is None, "one way has no verified response"
    everyone = headline([problem for problem, _, _ in problems.values()], 3, DRAWS)
    assert everyone["consistency"].value == pytest.approx(3 / 6)
    assert everyone["all_right"].value + everyone["all_wrong"].value + everyone["mixed"].value == pytest.approx(1)


def test_a_kinds_change_is_over_the_problems_asked_in_both_ways():
    easy = outcome("a", (0, 0))  # not rotated: it must not count as plain of the comparison
    hard = outcome("b", (0, 1), rotate=(1, 1))
    found = by_kind([easy, hard], 2, DRAWS)
    assert found["plain"]["mean@2"].value == pytest.approx(3 / 4)
    assert found["rotate"]["mean@2"].value == 0.0
    assert found["rotate"]["change"].value == pytest.approx(-1 / 2)
    assert "change" not in found["plain"]


def test_a_change_of_few_problems_excludes_0_only_where_the_test_does():
    """Three of three worse: a bootstrap says so for sure, of the 8 ways to swap them 2 are as far from 0 (p = 0.25)."""
    worse = [outcome(str(number), (0, 0, 0, number % 2), rotate=(0, 1, 1, 1)) for number in range(8)]
    few, many = (by_kind(worse[:count], 4, DRAWS)["rotate"]["change"] for count in (3, 8))
    assert few.low < few.value < 0.0 == few.high
    assert many.low < many.value < many.high < 0.0
    unverified = outcome("x", (0, 0, 0, 0), rotate=("?",) * 4)
    known = by_kind([*worse, unverified], 4, DRAWS)["rotate"]["change"]
    assert (known.problems, known.left_out, known.value) == (8, 1, many.value)
    assert by_kind([unverified], 4, DRAWS)["rotate"]["change"].value is None


def test_sources_are_apart():
    found = by_source([outcome("a", (0, 0), "x"), outcome("b", (0, 1), "y"), outcome("c", (1, 1), "y")], 2, DRAWS)
    assert {name: figures["mean@2"].value for name, figures in found.items()} == {"x": 1.0, "y": 0.25}
    assert by_source([outcome("a", (0, 0))], 2, DRAWS) == {}


def test_answers_that_the_verifier_holds_for_equal_are_one_class():
    with RewardScorer(RewardSection(workers=1)) as scorer:
        groups, failed = group_wrong_answers(
            [["0.5", r"\frac{1}{2}", "x+1", "7", "1+x", "7"], [], ["B", "(B)", "C"]], scorer.same_answers
        )
    assert groups[0] == {"0.5": 1, r"\frac{1}{2}": 1, "x+1": 2, "7": 3, "1+x": 2}
    assert groups[1] == {}
    assert groups[2] == {"B": 1, "(B)": 1, "C": 2}
    assert failed == 0


def test_a_comparison_that_fails_is_counted_and_joins_nothing():
    groups, failed = group_wrong_answers([["a", "b"]], lambda pairs: [None] * len(pairs))
    assert (groups, failed) == ([{"a": 1, "b": 2}], 1)
