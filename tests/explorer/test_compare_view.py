"""Compare: two runs are put side by side at the same steps, and only where they asked the same problem."""

import re
from dataclasses import replace

import pytest
from hostile_rows import rows
from sharevl_explorer.index import Index
from sharevl_explorer.page import render

from sharevl_lite.store import RolloutStore


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
    shown = re.findall(r"<h3><a[^>]*>([^<]*)<", page)
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
