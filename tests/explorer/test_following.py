"""What a page that follows says of the run: whether it goes on, and how old its newest step is."""

import os
from datetime import datetime

import pytest
from hostile_rows import rows
from pages import opened
from sharevl_explorer.app import news
from sharevl_explorer.index import Index

from sharevl_lite.store import RolloutStore

LONG_AGO = datetime(2024, 3, 5, 13, 14, 15).timestamp()


@pytest.fixture
def aged(tmp_path):
    """A run whose newest step is of another day."""
    store = RolloutStore(tmp_path / "run")
    for age, step in enumerate((2, 1)):
        os.utime(store.write("train", step, rows(store, step, {"a": "one"})), (0, LONG_AGO - age))
    return tmp_path / "run"


def test_the_news_of_a_run(aged):
    index = Index([aged])
    told = {"revision": 1, "step": 2, "written": LONG_AGO, "ended": False}
    assert news(index) == told
    (aged / "summary.json").write_text("{}")
    assert news(index) == told | {"ended": True}
    index.shard(0, "train", 2).unlink()
    assert news(index)["written"] is None, "the file went away between two looks"


def test_an_evaluation_has_ended_when_its_document_is_there(aged):
    document = aged.parent / "run.json"
    document.write_text("{}")
    assert news(Index([aged]))["ended"]
    (aged / "recipe.yaml").write_text("")
    assert not news(Index([aged]))["ended"], "a file beside a run is none of its own"


def test_two_runs_have_ended_when_both_have(aged, tmp_path):
    store = RolloutStore(tmp_path / "other")
    store.write("train", 1, rows(store, 1, {"a": "one"}))
    (aged / "summary.json").write_text("{}")
    assert not news(Index([aged, tmp_path / "other"]))["ended"]


def test_without_a_step_there_is_no_time(tmp_path):
    assert news(Index([tmp_path])) == {"revision": 0, "step": -1, "written": None, "ended": False}


@pytest.mark.slow
def test_the_page_says_when_the_run_has_ended_and_when_its_step_was_written(page, served, aged):
    live = page.locator(".live")
    opened(page, served(aged, follow=True))
    page.wait_for_selector(".live:has-text('live')")
    before = live.inner_text()
    assert "step 2 at" in before
    assert "2024" in before
    page.reload()
    page.wait_for_selector(".live:has-text('live')")
    assert live.inner_text() == before, "a reload makes the step no newer"
    (aged / "summary.json").write_text("{}")
    page.wait_for_selector(".live:has-text('finished')")
    assert live.inner_text() == before.replace("● live", "✓ finished")
    store = RolloutStore(aged)
    (aged / "summary.json").unlink()
    store.write("train", 3, rows(store, 3, {"a": "one"}))
    page.wait_for_selector(".live:has-text('step 3')")
    assert "live" in live.inner_text()
    assert "2024" not in live.inner_text()
