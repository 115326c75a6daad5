"""Which problems a rollout asks: once per pass, shuffled anew, and the same set however many processes share it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharevl_lite.config import Recipe, RolloutSection, TrainSection
from sharevl_lite.schedule import Schedule, ScheduleError


def schedule(num_problems, *, per_rollout, per_update, rollouts=1000, epochs=1, seed=0, rank=0, world=1):
    train = TrainSection(
        rollouts=rollouts, problems_per_rollout=per_rollout, problems_per_update=per_update, epochs_per_rollout=epochs
    )
    return Schedule(Recipe(seed=seed, train=train), num_problems, rank=rank, world=world)


@st.composite
def sizes(draw):
    """(problems, per rollout, per update, processes) that fit each other."""
    world = draw(st.integers(1, 4))
    per_update = world * draw(st.integers(1, 3))
    per_rollout = per_update * draw(st.integers(1, 3))
    return per_rollout + draw(st.integers(0, 3 * per_rollout)), per_rollout, per_update, world


def updates(plan, rollout):
    """The problems behind each update of a rollout, first epoch."""
    asked = plan.problems(rollout)
    return [[asked[place] for place in plan.members(chunk)] for chunk in range(plan.chunks)]


@settings(deadline=None)
@given(sizes(), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_every_problem_at_most_once_in_a_pass(size, seed, epoch):
    num_problems, per_rollout, per_update, _ = size
    plan = schedule(num_problems, per_rollout=per_rollout, per_update=per_update, seed=seed)
    whole = num_problems // per_rollout
    asked = [index for place in range(whole) for index in plan.problems(1 + epoch * whole + place)]
    assert len(asked) == len(set(asked)) == whole * per_rollout
    assert set(asked) <= set(range(num_problems))


@settings(deadline=None)
@given(sizes(), st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_processes_share_each_update_of_one_process(size, seed, rollout):
    num_problems, per_rollout, per_update, world = size
    knobs = {"per_rollout": per_rollout, "per_update": per_update, "seed": seed}
    alone = updates(schedule(num_problems, **knobs), rollout)
    shares = [updates(schedule(num_problems, **knobs, rank=rank, world=world), rollout) for rank in range(world)]
    for update, expected in enumerate(alone):
        parts = [share[update] for share in shares]
        assert {len(part) for part in parts} == {per_update // world}, "no process may wait for another"
        assert [index for part in parts for index in part] == expected


def test_a_pass_is_shuffled_anew_and_by_the_seed():
    plan, other = (schedule(64, per_rollout=64, per_update=64, seed=seed) for seed in (0, 1))
    first, second = plan.problems(1), plan.problems(2)
    assert sorted(first) == sorted(second) == list(range(64))
    assert first != second
    assert first != list(range(64))
    assert first == plan.problems(1) != other.problems(1)


def test_a_tail_waits_for_the_next_pass():
    """7 problems, 3 a rollout: two rollouts a pass, and one problem is left out, not always the same."""
    plan = schedule(7, per_rollout=3, per_update=3)
    left_out = set()
    for epoch in range(20):
        asked = plan.problems(1 + 2 * epoch) + plan.problems(2 + 2 * epoch)
        left_out |= set(range(7)) - set(asked)
    assert left_out == set(range(7))


def test_epochs_go_over_the_same_updates():
    plan = schedule(12, per_rollout=6, per_update=2, rollouts=5, epochs=2)
    assert len(plan) == 5 * 6
    steps = [plan[number] for number in range(len(plan))]
    assert [step.rollout for step in steps] == [rollout for rollout in range(1, 6) for _ in range(6)]
    assert [step.update for step in steps[:6]] == [0, 1, 2, 3, 4, 5]
    assert [plan.members(step.update % plan.chunks) for step in steps[:6]] == 2 * [[0, 1], [2, 3], [4, 5]]


def test_too_few_problems():
    with pytest.raises(ScheduleError, match="problems_per_rollout is 8 and the data has 7 problems; lower it or add"):
        schedule(7, per_rollout=8, per_update=4)
    assert schedule(8, per_rollout=8, per_update=4).problems(1)


def test_processes_that_do_not_divide_an_update():
    with pytest.raises(ScheduleError, match=r"problems_per_update \(4\) must be a multiple of the 3 processes"):
        schedule(64, per_rollout=8, per_update=4, world=3)


# ---------------------------------------------------------------- spare problems


def spares(num_problems, rollout, *, per_rollout, per_update, rounds=2, seed=0, world=1):
    """The spare problems of every process, place by place."""
    train = TrainSection(problems_per_rollout=per_rollout, problems_per_update=per_update)
    rollout_section = RolloutSection(dynamic_sampling=num_problems > per_rollout, max_extra_rounds=rounds)
    recipe = Recipe(seed=seed, train=train, rollout=rollout_section)
    plans = [Schedule(recipe, num_problems, rank=rank, world=world) for rank in range(world)]
    return [dict(zip(plan.problems(rollout), plan.spares(rollout), strict=True)) for plan in plans]


@settings(deadline=None)
@given(sizes(), st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 4))
def test_no_spare_is_asked_twice_in_a_rollout(size, seed, rollout, rounds):
    num_problems, per_rollout, per_update, world = size
    knobs = {"per_rollout": per_rollout, "per_update": per_update, "rounds": rounds, "seed": seed}
    shares = spares(num_problems, rollout, **knobs, world=world)
    asked = [index for share in shares for index in share]
    further = [index for share in shares for places in share.values() for index in places]
    assert len(asked) == per_rollout
    assert len({*asked, *further}) == len(asked) + len(further)
    assert len(further) == min(num_problems - per_rollout, rounds * per_rollout), "all there are, within the budget"
    assert {index: places for share in shares for index, places in share.items()} == spares(
        num_problems, rollout, **knobs
    )[0], "whatever the number of processes"


def test_spares_follow_the_rollout_and_the_seed():
    knobs = {"per_rollout": 4, "per_update": 4}
    first = spares(64, 1, **knobs)
    assert first == spares(64, 1, **knobs)
    assert list(first[0].values()) != list(spares(64, 2, **knobs)[0].values())
    assert list(first[0].values()) != list(spares(64, 1, **knobs, seed=1)[0].values())


def test_spares_do_not_always_come_from_the_same_corner():
    """Over many rollouts every problem stands in for another about equally often."""
    taken = [
        i for r in range(1, 801) for places in spares(20, r, per_rollout=4, per_update=4)[0].values() for i in places
    ]
    counts = [taken.count(index) for index in range(20)]
    assert min(counts) > 250
    assert max(counts) < 390  # 8 of 16 others, in 4 rollouts of 5: 320 each, and 5 deviations


def test_no_problem_is_left_to_replace_another():
    with pytest.raises(ScheduleError, match="every step asks all 8 problems, so there is none to replace another"):
        Schedule(
            Recipe(
                train=TrainSection(problems_per_rollout=8, problems_per_update=4),
                rollout=RolloutSection(dynamic_sampling=True),
            ),
            8,
        )
