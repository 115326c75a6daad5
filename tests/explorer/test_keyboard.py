"""Who uses keys or hears the page: headings, where the focus goes, one stop a chart, what scrolls, large targets."""

import re
from itertools import pairwise

import pytest
from hostile_rows import rows
from pages import opened
from sharevl_explorer.index import Index
from sharevl_explorer.page import render
from sharevl_explorer.trial import Tryout

from sharevl_lite.store import RolloutStore

VIEWS = {
    "?view=run": "run",
    "?view=run&split=none": "run",
    "?view=step&step=1": "Step 1",
    "?view=step&step=77": "Step 77",
    "?view=problem&step=1&problem=p-a": "Problem p-a, step 1",
    "?view=problem&step=1&problem=gone": "Problem gone, step 1",
    "?view=response&step=1&problem=p-a": "Response Q0·0 of p-a, step 1",
    "?view=compare": "Compare",
    "?view=compare&problem=p-a": "Compare p-a",
    "?view=try": "Try it",
}
SHOWN = "document.querySelector('#sharevl').dataset.shown === location.search"
FOCUSED = "[document.activeElement.tagName, document.activeElement.textContent]"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("keyboard") / "run"
    store = RolloutStore(run)
    for step in range(1, 6):
        store.write("train", step, rows(store, step, {"a": "<think>one</think> so \\boxed{1}", "b": "two"}))
    return run


@pytest.mark.parametrize("query", VIEWS)
def test_every_view_has_one_heading_of_the_page_and_leaves_out_no_level(run, query):
    tryout = Tryout("a model", 1, 32, ask=lambda trial: (), close=lambda: None)
    page = render(Index([run]), query, tryout)
    levels = [int(level) for level in re.findall("<h([1-6])", page)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert re.search(r'<h1[^>]* tabindex="-1">([^<]*)', page)[1] == VIEWS[query]


@pytest.mark.parametrize(("query", "item"), [("?view=problem&problem=p-a", "Step"), ("?view=response", "Step")])
def test_a_view_below_another_is_in_the_bar_where_that_is(run, query, item):
    page = render(Index([run]), query)
    assert re.findall('aria-current="page">([^<]*)<', page) == [item]


@pytest.mark.parametrize("query", VIEWS)
def test_tables_are_named(run, query):
    page = render(Index([run]), query)
    assert page.count("<table") == len(re.findall('<table class="[^"]*" aria-label="[^"]+"', page))
    assert page.count('class="scroll"') == len(re.findall('class="scroll" role="group" aria-label="[^"]+"', page))


def test_a_chart_is_one_stop_of_the_tab_key(run):
    page = render(Index([run]), "?view=run")
    charts = [chart for chart in re.findall("<svg.*?</svg>", page, re.S) if "<a " in chart]
    assert len(charts) > 4
    for chart in charts:
        (stop,) = [link for link in re.findall("<a [^>]*>", chart) if 'tabindex="0"' in link]
        assert "step=5" in stop, "the newest"


@pytest.mark.slow
def test_the_focus_goes_to_the_heading_of_the_next_view(page, served, run):
    opened(page, served(run), "?view=step&step=1", ".problems")
    assert page.evaluate("document.activeElement === document.body"), "the first page takes no focus"
    page.locator(".problems .row").first.click()
    page.wait_for_selector(".matrix")
    page.wait_for_function(SHOWN)
    assert page.evaluate(FOCUSED) == ["H1", "Problem p-a, step 1"]
    page.keyboard.press("j")
    page.wait_for_url("**problem=p-b**")
    page.wait_for_function(SHOWN)
    assert page.evaluate(FOCUSED) == ["H1", "Problem p-b, step 1"]
    page.get_by_role("link", name="Run", exact=True).click()
    page.wait_for_selector(".charts")
    page.wait_for_function(SHOWN)
    assert page.evaluate(FOCUSED) == ["H1", "run"]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "none"


@pytest.mark.slow
def test_the_bar_can_be_skipped(page, served, run):
    opened(page, served(run), "?view=step&step=1", ".problems")
    skip = page.locator(".skip")
    skip.focus()
    assert skip.bounding_box()["height"] >= 24
    page.keyboard.press("Enter")
    assert page.evaluate(FOCUSED) == ["H1", "Step 1"]
    assert page.url.endswith("?view=step&step=1")


@pytest.mark.slow
@pytest.mark.parametrize("chart", [".bars", ".chart svg >> nth=0"])
def test_arrow_keys_go_from_step_to_step(page, served, run, chart):
    opened(page, served(run), ready=".bars")
    told = "document.activeElement.getAttribute('aria-label').split(':')[0]"
    page.locator(chart).locator("[tabindex='0']").focus()
    found = [page.evaluate(told)]
    for key in ("ArrowLeft", "ArrowLeft", "ArrowRight", "Home", "ArrowLeft", "End"):
        page.keyboard.press(key)
        found.append(page.evaluate(told))
    assert found == [f"step {step}" for step in (5, 4, 3, 4, 1, 1, 5)]
    page.keyboard.press("ArrowLeft")
    assert page.locator(chart).locator("[tabindex='0']").count() == 1, "the stop has moved along"
    page.keyboard.press("Enter")
    page.wait_for_selector(".problems")
    assert "step=4" in page.url


@pytest.mark.slow
def test_what_scrolls_is_reached_by_the_tab_key(page, served, run):
    address = served(run)
    opened(page, address, "?view=problem&step=1&problem=p-a", ".matrix")
    region = page.locator(".panel > .scroll")
    assert region.get_attribute("tabindex") is None, "it has room"
    page.set_viewport_size({"width": 320, "height": 800})
    page.wait_for_selector(".panel > .scroll[tabindex='0']")
    assert region.get_attribute("aria-label") == "responses"
    for target in page.locator(".matrix .row, summary:visible").all():
        assert target.bounding_box()["height"] >= 24
