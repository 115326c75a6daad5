"""Compare: two runs are put side by side at the same steps, and only where they asked the same problem."""

import re
from dataclasses import replace

import pytest
from hostile_rows import rows
from sharevl_explorer.figures import moved
from sharevl_explorer.index import Index
from sharevl_explorer.page import render

from sharevl_lite.store import Rewards, RolloutStore


def written(run, steps, texts, change=lambda row: row, n=2):
    store = RolloutStore(run)
    for step in steps:
        store.write("train", step, [change(row) for row in rows(store, step, texts, n=n)])
    return run


def other_question(row):
    return replace(row, variant_text="something else", answer="7") if row.problem_id == "p-b" else row


def main_of(page):
    return re.search(r'<div class="content">.*<dialog', page, re.S)[0]


def text(page):
    return " ".join(re.sub(r"<[^>]+>", " ", main_of(page)).split())


def selected(page):
    return re.findall(r"<option[^>]* selected>([^<]*)<", page)


def test_two_runs_are_compared_at_the_newest_step_of_both(tmp_path):
    one = written(tmp_path / "one", (1, 2, 3), {"a": "same"})
    two = written(tmp_path / "two", (1, 2), {"a": "same"})
    index = Index([one, two])
    page = render(index, "?view=compare")
    assert selected(page) == ["one · step 2", "two · step 2"]
    assert "from one · step 2 to two · step 2" in text(page)
    assert selected(render(index, "?view=compare&first=3&last=1")) == ["one · step 3", "two · step 1"]
    assert selected(render(Index([one]), "?view=compare")) == ["step 1", "step 3"]


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    runs = [written(tmp_path / place / "run", (1,), {"a": "same"}) for place in ("here", "there")]
    assert selected(render(Index(runs), "?view=compare")) == ["here/run · step 1", "there/run · step 1"]


def test_a_problem_stands_at_the_same_steps_of_both_runs(tmp_path):
    runs = [written(tmp_path / name, range(1, 13), {"a": "same"}) for name in ("one", "two")]
    page = render(Index(runs), "?view=compare&problem=p-a")
    shown = re.findall(r"<h2><a[^>]*>([^<]*)<", page)
    assert shown == [f"{run} · step {step}" for step in (1, 2, 11, 12) for run in ("one", "two")]
    assert "asked in one: 12 steps; two: 12 steps, of which 8 are shown" in text(page)
    assert 'href="?view=problem&amp;run=1&amp;step=5&amp;problem=p-a">two · step 5<' in page


def test_ids_of_different_problems_do_not_move(tmp_path):
    one = written(tmp_path / "one", (1,), {"a": "same", "b": "same"})
    two = written(tmp_path / "two", (1,), {"a": "same", "b": "same"}, other_question)
    page = text(render(Index([one, two]), "?view=compare"))
    assert "1 id with another question or right answer in each run, not compared" in page
    assert "something else (7)" in page
    assert main_of(render(Index([one, two]), "?view=compare")).count("data-row") == 1
    assert "different problems under this id" in text(render(Index([one, two]), "?view=compare&problem=p-b"))
    assert "different problems" not in text(render(Index([one, two]), "?view=compare&problem=p-a"))
    two = written(tmp_path / "three", (1,), {"a": "same"}, lambda row: replace(row, answer="another"))
    assert "1 id with another" in text(render(Index([one, two]), "?view=compare"))


def test_a_split_without_anything_to_compare_leads_to_one_that_has(tmp_path):
    """As after a demo: no problem trained twice, all held-out ones asked before and after."""
    store = RolloutStore(tmp_path)
    for step, name in ((1, "a"), (2, "b")):
        store.write("train", step, rows(store, step, {name: "one"}))
    for step in (0, 2):
        store.write("eval", step, rows(store, step, {"c": "one"}))
    index = Index([tmp_path])
    page = render(index, "?view=compare")
    assert "No problem of this split was asked twice." in text(page)
    assert '<a class="button" href="?view=compare&amp;split=eval">compare in eval</a>' in main_of(page)
    bar = render(index, "?view=run")
    assert '<a href="?view=compare&amp;split=eval">Compare</a>' in bar
    assert selected(render(index, "?view=compare&split=eval")) == ["step 0", "step 2"]


def test_the_bar_stays_in_a_split_that_can_be_compared(tmp_path):
    one = written(tmp_path / "one", (1, 2), {"a": "same"})
    assert '<a href="?view=compare">Compare</a>' in render(Index([one]), "?view=run")
    alone = written(tmp_path / "two", (1,), {"a": "same"})
    assert '<a href="?view=compare">Compare</a>' in render(Index([alone]), "?view=run")
    assert "compare in" not in render(Index([alone]), "?view=compare")


@pytest.mark.parametrize(
    ("difference", "told"), [(0.875, "▲ 88 points"), (-0.01, "▼ 1 point"), (0.0, "= 0 points"), (1.0, "▲ 100 points")]
)
def test_a_move_is_told_in_points(difference, told):
    assert moved(difference) == told


def test_a_mover_is_told_in_points(tmp_path):
    store = RolloutStore(tmp_path)
    store.write("train", 1, rows(store, 1, {"a": "one"}))  # half are right
    right = Rewards(1.0, 1.0, 1.0)
    store.write("train", 2, [replace(row, rewards=right) for row in rows(store, 2, {"a": "one"})])
    assert "50 % → 100 % of 4 ▲ 50 points" in text(render(Index([tmp_path]), "?view=compare"))


def test_an_accuracy_says_of_how_many_responses(tmp_path):
    """Of those with a verdict: one of the four at step 2 has none."""
    store = RolloutStore(tmp_path)
    asked = {"a": "one", "b": "two"}
    store.write("train", 1, rows(store, 1, asked))
    first, *others = rows(store, 2, asked)
    unknown = replace(first, rewards=Rewards(None, None, 1.0))
    right = Rewards(1.0, 1.0, 1.0)
    store.write("train", 2, [unknown, *(replace(row, rewards=right) for row in others)])
    page = text(render(Index([tmp_path]), "?view=compare"))
    assert "from step 1 to step 2: 2 problems in both" in page
    assert "50 % of 4 → 100 % of 3 ▲ 50 points" in page
    assert "50 % → 100 % of 4 ▲ 50 points" in page
    page = text(render(Index([tmp_path]), "?view=compare&problem=p-a"))
    assert "50 % of 4 right, reward" in page
    assert "100 % of 3 right, reward" in page


@pytest.mark.slow
def test_the_columns_of_movers_stand_below_each_other(page, served, tmp_path):
    """With an image or without one, and with a word that is wider than the page."""
    run = written(
        tmp_path / "run", (1, 2), {"a": "same", "b": "W" * 200},
        lambda row: replace(row, image_sha=[]) if row.problem_id == "p-b" else row,
    )  # fmt: skip
    page.goto(served(run) + "?view=compare")
    page.wait_for_selector(".movers")
    for column in ("a.row", ".quiet", "b"):
        lefts = [box.bounding_box()["x"] for box in page.locator(f".movers li > {column}").all()]
        assert len(lefts) == 2
        assert max(lefts) - min(lefts) < 40, column
    row = page.locator(".movers li").nth(1)
    assert row.locator("a.row").bounding_box()["width"] < row.bounding_box()["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_a_long_problem_is_not_set_in_full(tmp_path):
    """Eight steps of sixteen long responses: the start of four each, and links to the rest."""
    formulas = "so $\\frac{1}{2}$ " * 3000
    run = written(tmp_path / "run", range(1, 9), {"a": formulas}, n=8)
    page = render(Index([run]), "?view=compare&problem=p-a")
    assert page.count("<article") == 8
    assert page.count("<summary>Q") == 8 * 4
    assert page.count(">12 more</a>") == 8
    assert "view=response" in page
    assert len(page) < 2_000_000


def test_two_runs_without_a_common_problem_are_told_so(tmp_path):
    """Other steps are of use only where some step of both has the same problem."""
    one = written(tmp_path / "one", (1, 2), {"a": "same"})
    two = written(tmp_path / "two", (1,), {"b": "same"})
    told = text(render(Index([one, two]), "?view=compare"))
    assert "The two runs have no problem of the split train in common, at no step." in told
    assert "Choose two steps" not in told
    written(two, (3,), {"a": "same"})
    assert "Choose two steps that asked the same problems." in text(render(Index([one, two]), "?view=compare&last=1"))
    three = written(tmp_path / "three", (1,), {"a": "same"}, lambda row: replace(row, answer="another"))
    told = text(render(Index([one, three]), "?view=compare"))
    assert "1 id with another question" in told
    assert "no problem of the split train in common" in told


@pytest.fixture
def moving(tmp_path):
    """Half of each problem is right at step 1; at step 2 all of a and b, none of c, half of d."""
    store, asked = RolloutStore(tmp_path), dict.fromkeys("abcd", "one")
    right = {"p-a": 1.0, "p-b": 1.0, "p-c": 0.0}
    store.write("train", 1, rows(store, 1, asked))
    later = [
        replace(row, rewards=Rewards(right[row.problem_id], right[row.problem_id], 1.0))
        if row.problem_id in right
        else row
        for row in rows(store, 2, asked)
    ]
    store.write("train", 2, later)
    return Index([tmp_path])


@pytest.mark.parametrize(
    ("moves", "listed"),
    [("", ["a", "b", "c", "d"]), ("gains", ["a", "b"]), ("losses", ["c"]), ("nonsense", list("abcd"))],
)
def test_gains_and_losses_can_be_asked_for_alone(moving, moves, listed):
    page = render(moving, f"?view=compare&moves={moves}")
    assert re.findall("problem=p-([a-d])", main_of(page)) == listed
    assert "all 4 gains 2 losses 1" in text(page)
    assert "from step 1 to step 2: 4 problems in both" in text(page)


def test_where_nothing_fell_that_is_said(moving):
    assert "No losses between these steps." in text(render(moving, "?view=compare&last=1&moves=losses"))
