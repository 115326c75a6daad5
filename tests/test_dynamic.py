"""Dynamic sampling on rollouts with given rewards: what is replaced, by what, and that nothing is lost."""

from dataclasses import dataclass, replace

import pytest
import torch

from sharevl_lite.collect import Rollout, Stopwatch
from sharevl_lite.data import Problem, Variant
from sharevl_lite.dynamic import everything_asked, replace_silent
from sharevl_lite.metrics import Tally, tally_replaced, tally_rollout
from sharevl_lite.share import hierarchical_advantage

SILENT, ROUNDED, LIVELY, UNKNOWN, SPLIT = (
    [[1.0, 1.0], [1.0, 1.0]],
    [[0.3, 0.1 + 0.2], [0.3, 0.3]],
    [[1.0, 0.0], [1.0, 1.0]],
    [[float("nan")] * 2] * 2,
    [[1.0, 1.0], [0.0, 0.0]],
)


@dataclass
class Reply:
    truncated: bool


class Data:
    """Rewards [M][N] by problem index; `asked` notes every call."""

    def __init__(self, *rewards):
        self.rewards = rewards
        self.asked = []

    def __call__(self, indices):
        self.asked.append(indices)
        rewards_PMN = torch.tensor([self.rewards[index] for index in indices], dtype=torch.float64)
        mask_PMN = torch.isfinite(rewards_PMN)
        problems = [Problem(str(index), f"Question {index}?", (), "1") for index in indices]
        watch = Stopwatch()
        watch.seconds["rollout"] = 1.0
        return Rollout(
            number=7,
            problems=problems,
            variants=[[Variant(k, problem.text, ()) for k in range(2)] for problem in problems],
            prompts=[[] for _ in problems],
            responses=[[[], []] for _ in problems],
            scores=[[[], []] for _ in problems],
            rewards_PMN=rewards_PMN,
            mask_PMN=mask_PMN,
            advantages=hierarchical_advantage(rewards_PMN, mask_PMN),
            difficulties=["usual" for _ in problems],
            stopwatch=watch,
        )


def ids(rollout):
    return [int(problem.id) for problem in rollout.problems]


def test_silent_places_are_filled_and_the_others_stay():
    data = Data(LIVELY, SILENT, LIVELY, UNKNOWN, LIVELY, LIVELY, LIVELY)
    found = replace_silent(data([0, 1, 2, 3]), data, [[4], [5], [], [6]], "hierarchical")
    assert ids(found) == [0, 5, 2, 6]
    assert data.asked == [[0, 1, 2, 3], [5, 6]]
    assert [ids(gone) for gone in found.replaced] == [[1, 3]]
    assert ids(everything_asked(found)) == [0, 5, 2, 6, 1, 3]
    assert found.number == 7
    # Each value moved with its problem.
    assert torch.equal(found.rewards_PMN, torch.tensor([LIVELY] * 4, dtype=torch.float64))
    assert not found.advantages.silent_P.any()
    fresh = hierarchical_advantage(found.rewards_PMN, found.mask_PMN)
    assert torch.equal(found.advantages.global_PMN, fresh.global_PMN)
    assert torch.equal(found.advantages.local_PMN, fresh.local_PMN)
    assert [row[0].text for row in found.variants] == [f"Question {index}?" for index in (0, 5, 2, 6)]
    assert found.stopwatch.seconds == {"rollout": 2.0}
    assert everything_asked(found).stopwatch is found.stopwatch


def test_a_replacement_may_be_replaced_until_the_rounds_are_over():
    data = Data(SILENT, SILENT, SILENT, LIVELY, SILENT, LIVELY)
    found = replace_silent(data([0, 1]), data, [[2, 4], [3, 5]], "hierarchical")
    assert ids(found) == [4, 3], "the first place had no luck, and what it has is silent"
    assert data.asked == [[0, 1], [2, 3], [4]]
    assert [ids(gone) for gone in found.replaced] == [[0, 1], [2]]
    assert found.advantages.silent_P.tolist() == [True, False]


def test_rewards_that_differ_by_rounding_alone_are_silent_and_count_as_vanished():
    data = Data(ROUNDED, LIVELY, ROUNDED)
    found = replace_silent(data([0, 1]), data, [[2], [2]], "hierarchical")
    assert data.asked == [[0, 1], [2]]
    tally = Tally()
    tally_rollout(tally, found)
    tally_replaced(tally, found, "hierarchical")
    record = tally.as_record()
    assert record["reward_std"] == pytest.approx(0.5 / 3), "of all three that were asked"
    assert record["vanished_global"] == 2 / 3
    assert record["vanished_local"] == 5 / 6
    assert record["silent_left"] == 1


def test_without_spares_silent_problems_stay():
    data = Data(SILENT, LIVELY)
    found = replace_silent(data([0, 1]), data, [[], []], "hierarchical")
    assert (ids(found), found.replaced, len(data.asked)) == ([0, 1], [], 1)


def test_a_problem_whose_only_differences_were_cut_off_gives_way_where_those_train_nothing():
    def cut(rollout):
        of = [
            [[Reply(truncated=problem.id == "0") for _ in range(2)] for _ in range(2)] for problem in rollout.problems
        ]
        return replace(rollout, responses=of)

    data = Data(LIVELY, LIVELY, LIVELY)
    ask = lambda indices: cut(data(indices))  # noqa: E731
    assert ids(replace_silent(ask([0, 1]), ask, [[2], [2]], "hierarchical")) == [0, 1]
    assert ids(replace_silent(ask([0, 1]), ask, [[2], [2]], "hierarchical", masks_truncated=True)) == [2, 1]
    tally = Tally()
    tally_replaced(tally, ask([0, 1]), "hierarchical", masks_truncated=True)
    assert tally.as_record()["silent_left"] == 1


def test_with_no_silent_problem_nothing_is_asked():
    data = Data(LIVELY, LIVELY, SILENT)
    rollout = data([0, 1])
    found = replace_silent(rollout, data, [[2], []], "hierarchical")
    assert (ids(found), found.replaced, len(data.asked)) == ([0, 1], [], 1)
    assert found.rewards_PMN is rollout.rewards_PMN
    assert everything_asked(found) is found


def test_a_difference_between_variants_alone_teaches_only_the_shared_level():
    data = Data(SPLIT, LIVELY)
    assert ids(replace_silent(data([0]), data, [[1]], "hierarchical")) == [0]
    assert ids(replace_silent(data([0]), data, [[1]], "global")) == [0]
    assert ids(replace_silent(data([0]), data, [[1]], "local")) == [1]
