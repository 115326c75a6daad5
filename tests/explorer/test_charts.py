"""Figures: axes tell their values apart, holes stay open, and two runs can be told apart."""

import json
import re

import pytest
from hostile_rows import rows
from sharevl_explorer.charts import Line, figure, line_chart
from sharevl_explorer.index import Index
from sharevl_explorer.page import render

from sharevl_lite.store import RolloutStore


def chart(*lines):
    return line_chart("t", [Line(points, lambda step: f"?step={step}") for points in lines])


def ticks(page):
    return re.findall(r'text-anchor="end">([^<]*)<', page)[:3]


@pytest.mark.parametrize("high", [1e-7, 3e-5, 2.8e-4, 0.004, 0.5, 3.0, 900.0])
def test_the_ticks_of_an_axis_differ(high):
    page = chart([(1, 0.0), (2, high), (3, 0.0)])
    assert len(set(ticks(page))) == 3
    assert f"step 2: t {figure(high, min(1.08 * high, 0.02))}<" in page
    assert float(figure(high, 0.02 if high > 0.02 else high).replace("−", "-")) == pytest.approx(high, rel=0.05)


@pytest.mark.parametrize(
    ("points", "lines"),
    [
        ([(1, 0.1), (2, 0.2), (3, 0.3)], [3]),
        ([(1, 0.1), (2, 0.2), (3, None), (4, 0.3), (5, 0.4)], [2, 2]),
        ([(1, 0.1), (2, 0.2), (3, 0.2), (9, 0.3), (10, 0.4)], [3, 2]),
        ([(0, 0.1), (4, 0.2), (8, 0.3), (10, 0.4)], [4]),
        ([(0, 0.1), (100, 0.2)], [2]),
    ],
)
def test_a_line_is_left_open_where_a_step_is_missing(points, lines):
    drawn = re.findall(r'<path class="line" d="([^"]*)"', chart(points))
    assert [len(path.split()) for path in drawn] == lines


@pytest.mark.parametrize("steps", [1, 99, 100, 101, 250, 1000])
def test_of_many_points_a_hundred_are_links_and_the_newest_is(steps):
    page = chart([(step, 0.001 * step) for step in range(1, steps + 1)])
    assert min(steps, 50) <= page.count("<circle") <= 100
    assert f'href="?step={steps}"' in page


def test_a_damaged_step_leaves_the_lines_open(tmp_path):
    """Of the store's figures; what metrics.jsonl holds of the step is drawn."""
    store = RolloutStore(tmp_path)
    paths = [store.write("train", step, rows(store, step, {"a": "one"})) for step in (1, 2, 3, 4, 5)]
    paths[2].write_bytes(b"torn")
    lines = [json.dumps({"step": step, "reward": 0.5, "entropy": 0.1 * step}) + "\n" for step in (1, 2, 3, 4, 5)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    charts = render(Index([tmp_path]), "?view=run").split('<figure class="chart">')
    paths = {re.search("<span[^>]*>([^<]*)", part)[1]: part.count('class="line"') for part in charts[1:]}
    assert paths["reward"] == 2
    assert paths["entropy"] == 1


def test_figures_of_two_runs_share_their_axes(tmp_path):
    for number, name in enumerate(("one", "two")):
        store = RolloutStore(tmp_path / name)
        for step in (1, 2 + number):
            store.write("train", step, rows(store, step, {"a": "one"}))
    page = render(Index([tmp_path / "one", tmp_path / "two"]), "?view=run")
    reward = page.split('<figure class="chart">')[1]
    assert reward.count('class="line"') == reward.count('class="line other"') == 1
    assert "reward 0.500 of one" in reward
    assert 'href="?view=step&amp;run=1&amp;step=3" aria-label="step 3: reward 0.500 of two"' in reward
    assert 'class="line other"' not in render(Index([tmp_path / "one"]), "?view=run")
