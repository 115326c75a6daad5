"""Where a view stands: the split is named, other steps are offered, and nothing is a dead end."""

import re

import pytest
from hostile_rows import rows
from sharevl_explorer.index import Index
from sharevl_explorer.page import render

from sharevl_lite.store import RolloutStore


@pytest.fixture
def index(tmp_path):
    """Problem a at steps 1, 3 and 4 of train and at 3 of eval, b at step 2."""
    store = RolloutStore(tmp_path / "run")
    for step, name in ((1, "a"), (2, "b"), (3, "a"), (4, "a")):
        store.write("train", step, rows(store, step, {name: "one"}))
    store.write("eval", 3, rows(store, 3, {"a": "one"}))
    return Index([tmp_path / "run"])


def keyed(page, key):
    """Where a key of the page leads."""
    found = re.search(rf'<a class="key" href="([^"]*)" data-key="{re.escape(key)}"', page)
    return found and found[1].replace("&amp;", "&")


def trail(page):
    return re.sub(r"<[^>]+>", " ", re.search(r'<nav class="trail".*?</nav>', page)[0]).split()


@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize("view", ["step", "problem", "response"])
def test_every_view_says_its_split(index, split, view):
    page = render(index, f"?view={view}&split={split}&step=3&problem=p-a")
    assert trail(page)[:3] == ["run", "·", split]


@pytest.mark.parametrize("view", ["step", "compare"])
def test_the_split_is_changed_where_it_matters(index, view):
    """From step 3 to the same step, from a step that the other split lacks to its newest."""
    page = render(index, f"?view={view}&step=3")
    assert re.search(r'href="([^"]*)">eval<', page)[1].replace("&amp;", "&") == f"?view={view}&split=eval&step=3"
    assert 'aria-current="true">train<' in page
    assert "step=" not in re.search(r'href="([^"]*)">eval<', render(index, f"?view={view}&step=2"))[1]


@pytest.mark.parametrize("view", ["problem", "response"])
def test_brackets_go_to_the_steps_that_asked_the_problem(index, view):
    page = render(index, f"?view={view}&step=3&problem=p-a")
    assert keyed(page, "[") == f"?view={view}&step=1&problem=p-a"
    assert keyed(page, "]") == f"?view={view}&step=4&problem=p-a"
    assert keyed(render(index, f"?view={view}&step=2&problem=p-b"), "]") is None
    assert keyed(render(index, "?view=step&step=3"), "[") == "?view=step&step=2"


@pytest.mark.parametrize("view", ["problem", "response"])
def test_a_step_without_the_problem_offers_those_that_have_it_and_a_way_up(index, view):
    page = render(index, f"?view={view}&step=2&problem=p-a")
    assert "Not here" in page
    assert keyed(page, "[") == f"?view={view}&step=1&problem=p-a"
    assert keyed(page, "]") == f"?view={view}&step=3&problem=p-a"
    assert 'href="?view=step&amp;step=2&amp;problem=p-a">step 2</a>' in page
    text = re.sub(r"<[^>]+>", "", page)
    assert "run · train: step 1, 3, 4" in text
    assert "run · eval: step 3" in text
    assert f'href="?view={view}&amp;split=eval&amp;step=3&amp;problem=p-a">3<' in page


def test_a_step_that_is_not_stored_offers_the_nearest(index):
    page = render(index, "?view=step&step=9")
    assert "Step 9 is not stored" in page
    assert keyed(page, "[") == "?view=step&step=4"
    assert ">4</a>" in page
