"""Links that reload, keys that wait for their page, and pages that show what is on the disk."""

import re
from dataclasses import fields, replace
from urllib.request import urlopen

import pytest
from hostile_rows import rows
from pages import opened
from sharevl_explorer.app import serve
from sharevl_explorer.index import Index
from sharevl_explorer.page import render
from sharevl_explorer.state import State

from sharevl_lite.store import RolloutStore

SHOWN = "document.querySelector('#sharevl').dataset.shown === location.search"


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """Two steps of 30 problems: two sheets, taller than the window."""
    run = tmp_path_factory.mktemp("long") / "run"
    store = RolloutStore(run)
    for step in (1, 2):
        store.write("train", step, rows(store, step, {f"{n:02}": f"question {n}" for n in range(30)}, n=6))
    return run


@pytest.mark.slow
def test_no_key_of_a_link_is_one_that_gradio_takes_for_itself(served, long_run):
    values = {"str": "x", "int": "2", "float | None": "0.5"}
    query = "&".join(f"{field.name}={values[str(field.type)]}" for field in fields(State))
    with urlopen(f"{served(long_run)}?{query}") as answer:
        assert answer.status == 200


@pytest.mark.slow
def test_a_second_sheet_reloads_to_itself(page, served, long_run):
    opened(page, served(long_run), "?view=step&step=1", ".problems")
    page.keyboard.press("l")
    page.wait_for_selector(".pager:has-text('page 2 of 2')")
    page.reload()
    page.wait_for_selector(".pager:has-text('page 2 of 2')")


@pytest.mark.slow
def test_keys_wait_for_the_page_that_they_are_for(page, served, long_run):
    page.add_init_script(
        "const real = fetch; window.fetch = async (...given) => {"
        "  if (String(given[0]).includes('component_server')) await new Promise(go => setTimeout(go, 300));"
        "  return real(...given); }"
    )
    opened(page, served(long_run), "?view=problem&step=1&problem=p-00", ".matrix")
    before = page.evaluate("history.length")
    for _ in range(3):
        page.keyboard.press("j")
    page.wait_for_url("**problem=p-03**")
    page.wait_for_function(SHOWN)
    assert page.evaluate("history.length") == before + 3
    page.keyboard.press("h")  # the first variant: there is none before it
    page.wait_for_timeout(800)
    assert page.evaluate("history.length") == before + 3


@pytest.mark.slow
def test_an_open_help_takes_the_keys(page, served, long_run):
    opened(page, served(long_run), "?view=problem&step=1&problem=p-00", ".matrix")
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("j")
    page.wait_for_timeout(500)
    assert "p-00" in page.url
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.wait_for_url("**problem=p-01**")


@pytest.mark.slow
def test_a_response_of_the_matrix_opens_at_its_top(browser, served, long_run):
    page = browser.new_page(viewport={"width": 400, "height": 700})
    opened(page, served(long_run), "?view=problem&step=1&problem=p-00", ".matrix")
    link = page.locator(".matrix .row").last
    link.scroll_into_view_if_needed()
    assert page.evaluate("scrollY") > 200
    link.click()
    page.wait_for_selector("section.response")
    page.wait_for_function(SHOWN)
    assert page.evaluate("scrollY") == 0
    page.close()


@pytest.mark.slow
def test_a_page_shows_what_is_on_the_disk(page, tmp_path):
    """Without --follow too: else a table and the file behind it would tell two stories."""
    store = RolloutStore(tmp_path / "run")
    store.write("train", 1, rows(store, 1, {"a": "one"}))
    blocks = serve(Index([tmp_path / "run"]), block=False)
    try:
        opened(page, blocks.local_url, "?view=problem&step=1&problem=p-a", ".matrix")
        assert "right answer one" in page.locator(".content").inner_text()
        store.write("train", 1, [replace(row, answer="other") for row in rows(store, 1, {"a": "two"})])
        store.write("train", 2, rows(store, 2, {"a": "three"}))
        page.reload()
        page.wait_for_selector(".content:has-text('right answer other')")
        assert "also asked at step 2" in page.locator(".content").inner_text()
    finally:
        blocks.close()


def two_runs(tmp_path):
    """Evaluated before the training and after as many steps as each has."""
    runs = []
    for name, last in (("one", 6), ("two", 4)):
        store = RolloutStore(tmp_path / name)
        for step in (0, last):
            store.write("eval", step, rows(store, step, {"a": "same", "b": "same"}))
        runs.append(tmp_path / name)
    return Index(runs)


def test_runs_with_the_beginning_alone_in_common_are_compared_at_their_ends(tmp_path):
    shown = str(render(two_runs(tmp_path), "?view=compare&split=eval"))
    assert re.findall(r"<option[^>]* selected>([^<]*)<", shown) == ["one · step 6", "two · step 4"]


def test_a_mover_opens_at_the_steps_that_were_compared(tmp_path):
    shown = str(render(two_runs(tmp_path), "?view=compare&split=eval&first=6&last=4&problem=p-a"))
    cards = re.findall(r'<article class="card( marked)?">.*?<h2><a[^>]*>([^<]*)<', shown)
    marked = " marked"
    assert cards == [("", "one · step 0"), ("", "two · step 0"), (marked, "two · step 4"), (marked, "one · step 6")]


@pytest.mark.parametrize(
    "query", ["view=step&step=0", "view=problem&step=0&problem=p-a", "view=compare&first=6&last=4"]
)
def test_the_other_run_is_shown_at_the_same_place(tmp_path, query):
    shown = str(render(two_runs(tmp_path), f"?split=eval&{query}"))
    (href,) = re.findall(r'<a href="([^"]*)">two</a>', shown)
    asked = {*query.split("&"), "split=eval", "run=1"}
    assert set(href.removeprefix("?").split("&amp;")) == asked


def test_a_step_with_damaged_texts_has_a_way_out(tmp_path):
    store = RolloutStore(tmp_path)
    store.write("train", 1, rows(store, 1, {"a": "z" * 5000}))
    index = Index([tmp_path])
    index.shard(0, "train", 1).write_bytes(b"PAR1 no more")
    shown = str(render(index, "?view=step&step=1&q=z"))
    assert "This cannot be read" in shown
    assert 'href="?view=step&amp;step=1">the step&#x27;s problems</a>' in shown
    assert "p-a" in str(render(index, "?view=step&step=1"))


def test_sound_lines_of_a_damaged_log_are_used(tmp_path):
    store = RolloutStore(tmp_path)
    for step in (1, 2, 3):
        store.write("train", step, rows(store, step, {"a": "x"}))
    lines = ['{"step": 1, "entropy": 1.5}', '{"step": 2, "entr', '{"entropy": 9}', '{"step": 3, "entropy": 0.5}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    shown = str(render(Index([tmp_path]), "?view=run"))
    assert "2 lines of metrics.jsonl left out of the figures: " in shown
    assert "metrics.jsonl:2: not a JSON object (" in shown
    assert re.search(r"<span[^>]*>entropy</span><span><b>0.500</b>", shown), shown[:4000]


def test_what_turns_text_around_is_seen_and_tables_set_texts_apart(tmp_path):
    store = RolloutStore(tmp_path)
    store.write("train", 1, rows(store, 1, {"a": "\u202edesrever \u200bب"}))
    index = Index([tmp_path])
    table = str(render(index, "?view=step&step=1"))
    assert "[U+202E]desrever [U+200B]ب" in table
    assert '<bdi dir="auto">' in table
    assert "\u202e" not in str(render(index, "?view=problem&step=1&problem=p-a"))


def test_a_response_tells_what_its_reward_is_compared_with(tmp_path):
    store = RolloutStore(tmp_path)
    totals = iter((1.0, 0.0, 0.5, 0.5))
    written = [replace(row, rewards=replace(row.rewards, total=next(totals))) for row in rows(store, 1, {"a": "x"})]
    store.write("train", 1, written)
    index = Index([tmp_path])
    shown = str(render(index, "?view=response&step=1&problem=p-a&variant=0&response=0"))
    assert (
        "reward 1.00; mean 0.50, deviation 0.41 of the problem&#x27;s 4; mean 0.50, deviation 0.71 of Q0&#x27;s 2"
        in shown
    )
    assert "mean reward 0.50, spread 0.41" in str(render(index, "?view=problem&step=1&problem=p-a"))
