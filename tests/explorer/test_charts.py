"""Figures: axes tell their values apart, holes stay open, and two runs can be told apart."""

import json
import re

import pytest
from hostile_rows import rows
from sharevl_explorer.charts import HEIGHT, Line, line_chart, moving_mean
from sharevl_explorer.index import Index
from sharevl_explorer.page import render

from sharevl_lite.store import RolloutStore


def chart(*lines):
    return line_chart("t", [Line(points, lambda step: f"?step={step}") for points in lines])


def ticks(page):
    return re.findall(r'text-anchor="end">([^<]*)</text>', page.partition("<path")[0].partition("<circle")[0])


def step_names(page):
    return re.findall(f'y="{HEIGHT - 4}" text-anchor="[a-z]*">([^<]*)<', page)


def as_numbers(labels):
    return [float(label.replace("−", "-").replace(",", "")) for label in labels]


@pytest.mark.parametrize("high", [1e-7, 3e-5, 2.8e-4, 0.004, 0.5, 3.0, 900.0, 250_000.0])
def test_the_ticks_of_an_axis_differ(high):
    page = chart([(1, 0.0), (2, high), (3, 0.0)])
    labels = as_numbers(ticks(page))
    assert 3 <= len(set(labels)) == len(labels) <= 5
    assert labels[0] == 0
    assert labels[-1] == pytest.approx(high, rel=0.2)
    told = re.search('step 2: t ([^<"]*)', page)[1]
    assert as_numbers([told]) == pytest.approx([high], rel=0.05)
    assert ("e" in told) == (high < 1e-3 or high >= 1e5)


def test_rounding_noise_is_a_flat_line():
    """Two runs, 5.6e-17 apart: at the same height, on an axis whose ticks differ and are written plainly."""
    page = chart([(1, 0.2707590553114011)], [(1, 0.2707590553114012)])
    heights = {float(y) for y in re.findall(r'cy="([^"]*)"', page)}
    assert len(heights) == 1
    assert ticks(page) == ["0.26", "0.27", "0.28"]
    assert page.count(">0.271</b>") == 2
    noise = chart([(1, 0.0), (2, 5.6e-17), (3, -5.6e-17)])
    assert len(set(re.findall(r'cy="([^"]*)"', noise))) == 1
    assert len(set(re.findall(r'cy="([^"]*)"', chart([(1, 2.0), (2, 1.95)])))) == 2


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ((0.36484, 0.97421), ["0", "0.5", "1.0"]),
        ((0.9, 1.0), ["0.90", "0.95", "1.00"]),
        ((1.0, 1.0), ["0.950", "0.975", "1.000"]),
        ((1.0, 1.4), ["1.0", "1.2", "1.4"]),
        ((-9.0, 1.0), ["−10", "−5", "0", "5"]),
        ((17.0, 20.5), ["17", "18", "19", "20", "21"]),
    ],
)
def test_an_axis_ends_at_round_numbers_and_a_share_at_1(values, labels):
    assert ticks(chart(list(enumerate(values)))) == labels


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((64.0, 48.0), ["64", "48"]),
        ((0.0, 3.0), ["0", "3"]),
        ((64.0, 48.5), ["64.000", "48.500"]),
        ((1.0, 0.0), ["1.000", "0"]),
        ((120_000.0, 90_000.0), ["1.20e5", "9.0e4"]),
    ],
)
def test_counts_are_written_as_whole_numbers_and_shares_are_not(values, told):
    assert re.findall('step [01]: t ([^<"]*)<', chart(list(enumerate(values)))) == told


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


def test_many_values_are_faint_below_their_moving_mean():
    noisy = [(step, 0.5 + (0.5 if step % 2 else -0.5)) for step in range(1, 201)]
    page = chart(noisy)
    raw, mean = (
        [float(place.split(",")[1]) for place in re.search(f'<path class="{kind}" d="M([^"]*)"', page)[1].split(" L")]
        for kind in ("line raw", "line")
    )
    assert len(raw) == len(mean) == 200
    assert max(raw) - min(raw) > 70
    assert max(mean[20:-20]) - min(mean[20:-20]) < 10
    assert page.count("moving mean over 11 values") == 2, "in the title and for a screen reader"
    assert "<b>0</b>" in page, "the figure is the newest value, not a mean"
    assert page.count('class="dot"') == 1, "the newest"
    assert "moving" not in chart(noisy[:60])
    assert 'class="line raw"' not in chart(noisy[:60])


def test_a_moving_mean_is_over_as_many_values_to_each_side():
    assert moving_mean([(1, 1.0), (2, 2.0), (3, 6.0), (9, 4.0)], 3) == [(1, 1.5), (2, 3.0), (3, 4.0), (9, 5.0)]


@pytest.mark.parametrize(
    ("steps", "labels"),
    [
        (range(1, 2), ["step 1"]),
        (range(1, 3), ["step 1", "2"]),
        (range(1, 501), ["step 1", "100", "200", "300", "400", "500"]),
        (range(0, 1244, 4), ["step 0", "500", "1000", "1240"]),
        (range(0, 151, 50), ["step 0", "50", "100", "150"]),
        (range(1_000_000, 1_000_500), ["step 1000000", "1000200", "1000300", "1000499"]),
    ],
)
def test_steps_between_have_round_labels_where_there_is_room(steps, labels):
    assert step_names(chart([(step, 1.0) for step in steps])) == labels


@pytest.mark.parametrize(
    ("values", "told"),
    [((19.0, 18.96), "19.0"), ((1044.8125, 900.5), "1,044.8"), ((64.0, 19.0), "64"), ((0.04, 0.02), "0.0")],
)
def test_lengths_have_one_decimal_at_most(values, told):
    line = Line(list(enumerate(reversed(values))), lambda step: f"?step={step}")
    assert f">{told}</b>" in line_chart("t", [line], decimals=1)


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


def test_reward_functions_of_the_user_have_figures_with_what_they_are_over(tmp_path):
    store = RolloutStore(tmp_path)
    records = []
    for step in (1, 2):
        store.write("train", step, rows(store, step, {"a": "one"}))
        store.write("eval", step, rows(store, step, {"a": "one"}))
        bonus = {"reward/bonus": 0.75} if step == 1 else {}
        records.append({"step": step, "reward": 0.5, **bonus, "reward/bonus/applied": 0.25 if step == 1 else 0.0})
        records[-1] |= {"reward/brevity": -0.5, "reward/brevity/applied": 1.0, "eval_reward/brevity": 0.1}
        records[-1] |= {"log_metric/judge's <b>": 3.5, "eval_log_metric/late": 2}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    index = Index([tmp_path])

    def titles(query):
        return re.findall("<figcaption><span[^>]*>(reward/[^<]*)<", render(index, query))

    page = render(index, "?view=run")
    assert titles("?view=run") == ["reward/bonus", "reward/bonus, applied", "reward/brevity"]
    assert titles("?view=run&split=eval") == ["reward/brevity"]
    assert "step 1: reward/bonus, applied 0.250" in page
    assert "step 1: reward/bonus 0.75" in page
    assert "step 2: reward/bonus 0" not in page
    assert "step 2: log_metric/judge&#x27;s &lt;b&gt; 3.5" in page
    assert "late" not in page
    assert "step 2: log_metric/late 2" in render(index, "?view=run&split=eval")


def test_kl_is_shown_where_it_was_logged_and_the_optimizer_has_its_figures(tmp_path):
    kl = {"without": None, "with": 0.004}
    for name, value in kl.items():
        store = RolloutStore(tmp_path / name)
        store.write("train", 1, rows(store, 1, {"a": "one"}))
        record = {
            "step": 1,
            "loss": -0.25,
            "learning_rate": 1e-5,
            "ratio": 1.002,
            "grad_norm": 0.5,
            "seconds/step": 9.5,
        }
        record |= {} if value is None else {"kl": value, "eval_accuracy_plain": 0.5}
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        page = render(Index([tmp_path / name]), "?view=run")
        assert ("step 1: KL 0.0040" in page) == (value is not None)
        assert ("held-out, plain" in page) == ("held-out accuracy" in page) == (value is not None)
        assert "held-out, variants" not in page
        optimizer = page.split("<summary>optimizer")[1].split("Groups per step")[0]
        told = dict(re.findall("<title>step 1: (.*?) ([^ ]*)</title>", optimizer))
        assert told.keys() == {"loss", "learning rate", "gradient norm", "mean ratio", "seconds per step"}
        assert as_numbers(told.values()) == pytest.approx([-0.25, 1e-5, 0.5, 1.002, 9.5], rel=0.01)
    both = render(Index([tmp_path / name for name in kl]), "?view=run")
    assert re.search("step 1: KL 0.0040* of with", both)


def test_a_run_without_metrics_has_no_group_for_the_optimizer(tmp_path):
    store = RolloutStore(tmp_path)
    store.write("train", 1, rows(store, 1, {"a": "one"}))
    assert "<summary>optimizer" not in render(Index([tmp_path]), "?view=run")


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
