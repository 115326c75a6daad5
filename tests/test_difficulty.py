"""Success rates: an exponential mean over visits, the same whatever the order, and exact in a checkpoint."""

import json

import pytest

from sharevl_lite.config import DifficultySection
from sharevl_lite.data import Problem
from sharevl_lite.difficulty import DifficultyError, SuccessRates


def rates(saved=None, **changes):
    return SuccessRates(DifficultySection(**{"adaptive": True, **changes}), saved or {})


def problem(name):
    return Problem(name, "How many?", (), "1")


def test_the_first_visit_counts_whole_and_later_ones_by_their_weight():
    found = rates(memory=0.75).after([("a", 1.0), ("b", 0.25)])
    assert found.rates == {"a": 1.0, "b": 0.25}
    found = found.after([("a", 0.0)])
    assert found.rates == {"a": 0.75, "b": 0.25}
    assert found.after([("a", 0.0)]).rates["a"] == 0.75 * 0.75


def test_without_memory_the_last_visit_is_all_that_counts():
    assert rates(memory=0.0).after([("a", 1.0)]).after([("a", 0.5)]).rates == {"a": 0.5}


def test_rates_that_a_rollout_began_with_do_not_change_under_it():
    before = rates().after([("a", 1.0)])
    before.after([("a", 0.0), ("b", 1.0)])
    assert before.rates == {"a": 1.0}


@pytest.mark.parametrize(
    ("rate", "expected"), [(0.0, "plainer"), (0.2, "plainer"), (0.21, "usual"), (0.79, "usual"), (0.8, "harder")]
)
def test_bounds_belong_to_their_side(rate, expected):
    found = rates(solved=0.8, unsolved=0.2).after([("a", rate)])
    assert found.difficulty(problem("a")) == expected
    assert found.difficulty(problem("never asked")) == "usual"
    assert rates({"a": rate}, adaptive=False).difficulty(problem("a")) == "usual"


def test_bounds_that_cross_are_refused():
    with pytest.raises(ValueError, match=r"unsolved \(0\.5\) must be below solved \(0\.5\)"):
        DifficultySection(solved=0.5, unsolved=0.5)


def test_a_checkpoint_holds_the_rates_exactly(tmp_path):
    found = rates(memory=0.3).after([("a", 1 / 3), ("ü", 1e-17)]).after([("a", 2 / 7)])
    found.save(tmp_path)
    assert rates(memory=0.3).load(tmp_path) == found


def test_off_nothing_is_written_or_needed(tmp_path):
    off = rates(adaptive=False)
    off.save(tmp_path)
    assert not list(tmp_path.iterdir())
    assert off.load(tmp_path) is off


@pytest.mark.parametrize("content", [None, "{", "[]", json.dumps({"rate": {}})])
def test_a_checkpoint_without_rates_is_an_error(tmp_path, content):
    if content is not None:
        (tmp_path / "difficulty.json").write_text(content)
    with pytest.raises(DifficultyError, match=r"difficulty\.json: .* restore the file, or resume from another"):
        rates().load(tmp_path)
