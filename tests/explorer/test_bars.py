"""Bars of groups: on the axis of steps, and ranges of steps where there are many."""

import re
from itertools import pairwise

import pytest
from sharevl_explorer.bars import MOST, stacked_bars

KINDS = [("right", "all right"), ("wrong", "all wrong")]


def bars(steps, **options):
    """Of each bar: where its middle is, how wide it is, its link and what is said of it."""
    rows = [{"step": step, "right": 1, "wrong": 3} for step in steps]
    page = stacked_bars(rows, KINDS, lambda step: f"?step={step}", **options)
    found = []
    for link, told, inside in re.findall(r'<a href="\?step=(\d+)" aria-label="([^"]*)"[^>]*>(.*?)</a>', page):
        left, wide = re.search(r'<rect[^>]* x="([^"]*)"[^>]* width="([^"]*)"', inside).groups()
        found.append((float(left) + float(wide) / 2, float(wide), int(link), told))
    return found


def test_a_missing_step_leaves_a_gap():
    middles = [middle for middle, *_ in bars([1, 2, 3, 7, 8])]
    apart = [after - before for before, after in pairwise(middles)]
    assert apart[2] == pytest.approx(4 * apart[0], rel=0.01)
    assert apart[0] == pytest.approx(apart[3], rel=0.01)


@pytest.mark.parametrize("steps", [[0, 4, 8, 10], [0, 50, 100, 101], [3], [*range(MOST)]])
def test_bars_do_not_cover_each_other_and_stay_in_the_chart(steps):
    found = bars(steps)
    edges = [edge for middle, wide, *_ in found for edge in (middle - wide / 2, middle + wide / 2)]
    assert [link for _, _, link, _ in found] == steps
    assert edges == sorted(edges)
    assert edges[0] >= 38
    assert edges[-1] <= 960


@pytest.mark.parametrize(("steps", "wide"), [(121, 2), (500, 5), (1000, 10), (2500, 50)])
def test_of_many_steps_each_bar_is_a_range_and_leads_to_its_first(steps, wide):
    found = bars(range(1, steps + 1))
    assert len(found) == -(-steps // wide) <= MOST
    middle, _, link, told = found[1]
    assert link == 1 + wide
    assert told == f"steps {1 + wide} to {2 * wide}: {wide} all right, {3 * wide} all wrong"
    assert found[0][0] < middle < found[-1][0] < 960


def test_steps_that_a_range_lacks_are_not_linked():
    found = bars([*range(1, 200), *range(406, 600)])
    assert 406 in [link for _, _, link, _ in found]
    assert not any(199 < link < 406 for _, _, link, _ in found)
    assert [told for *_, told in found if told.startswith("steps 406")] == [
        "steps 406 to 410: 5 all right, 15 all wrong"
    ]


def test_the_axis_is_that_of_the_other_charts():
    ((middle, _, _, _),) = bars([5], over=(1, 9))
    assert middle == pytest.approx((38 + 960) / 2, abs=1)
