"""What a reader keeps: the page while the server is away, the place, what was opened and typed."""

import re
import socket
from dataclasses import replace

import pytest
from hostile_rows import rows
from pages import opened, started
from sharevl_explorer.app import serve
from sharevl_explorer.export import export
from sharevl_explorer.index import Index
from sharevl_explorer.page import render
from sharevl_explorer.trial import AskedVariant, Attempt, Tryout

from sharevl_lite.store import RolloutStore
from sharevl_lite.store_schema import StoreError

SHOWN = "document.querySelector('#sharevl').dataset.shown === location.search"
FOCUSED = "document.activeElement.textContent.trim()"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tryout():
    def ask(trial):
        return (AskedVariant(trial.question, None, (), (Attempt("It is \\boxed{4}", 5, False),)),)

    return Tryout("a model", 1, 32, ask=ask, close=lambda: None)


@pytest.fixture
def long_step(tmp_path):
    """One step of 25 problems: taller than the window."""
    store = RolloutStore(tmp_path / "run")
    store.write("train", 1, rows(store, 1, {f"{n:02}": f"question {n}" for n in range(25)}, n=1))
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.parametrize("follow", [[], ["--follow"]])
def test_a_lost_connection_leaves_the_page_and_comes_back_by_itself(page, long_step, follow):
    words = (long_step, "--port", free_port(), *follow)
    with started(*words) as (address, finish):
        opened(page, address, "?view=step&step=1", ".problems")
        before = page.locator(".content").inner_text()
        finish()
    if not follow:
        page.locator(".problems .row").first.click()
    page.wait_for_selector(".notice:has-text('No connection to the explorer')")
    assert page.locator(".content").inner_text() == before
    with started(*words):
        page.wait_for_selector(".problems" if follow else ".matrix")
        page.wait_for_selector(".notice", state="hidden")


@pytest.mark.slow
def test_try_it_keeps_what_was_asked(page, long_step):
    port = free_port()
    blocks = serve(Index([long_step]), port=port, tryout=tryout(), block=False)
    opened(page, blocks.local_url, "?view=try", "form.try")
    page.fill("[name=question]", "How many?")
    page.click("form.try button")
    page.wait_for_selector(".answers .attempt")
    page.get_by_role("link", name="Run", exact=True).click()
    page.wait_for_selector(".charts")
    page.go_back()
    page.wait_for_selector(".answers .attempt")
    assert page.input_value("[name=question]") == "How many?"
    blocks.close()
    page.click("form.try button")
    page.wait_for_selector(".answers .note")
    assert "ask again once it is there" in page.locator(".answers").inner_text()
    assert "undefined" not in page.locator("#sharevl").inner_text()
    assert page.input_value("[name=question]") == "How many?"


@pytest.mark.slow
def test_back_returns_to_the_row_and_sorting_keeps_the_focus(page, served, long_step):
    opened(page, served(long_step), "?view=step&step=1", ".problems")
    assert page.title() == "step 1 · run · sharevl explorer"
    row = page.locator(".problems .row").nth(20)
    row.scroll_into_view_if_needed()
    row.focus()
    name, height = page.evaluate(FOCUSED), page.evaluate("scrollY")
    assert height > 100
    page.keyboard.press("Enter")
    page.wait_for_selector(".matrix")
    assert page.evaluate("scrollY") == 0
    assert page.title() == "p-20, step 1 · run · sharevl explorer"
    page.go_back()
    page.wait_for_selector(".problems")
    page.wait_for_function(SHOWN)
    assert (page.evaluate(FOCUSED), page.evaluate("scrollY")) == (name, height)
    page.get_by_role("link", name="reward", exact=True).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("th[aria-sort=descending]")
    assert page.evaluate(FOCUSED) == "reward ↓"
    page.locator("select[name=outcome]").focus()
    page.select_option("select[name=outcome]", "right")
    page.wait_for_url("**outcome=right**")
    page.wait_for_function(SHOWN)
    assert page.evaluate("document.activeElement.name") == "outcome"


@pytest.mark.slow
def test_a_slow_view_shows_that_it_loads(page, served, long_step):
    page.add_init_script(
        "const real = fetch; window.fetch = async (...given) => {"
        "  if (String(given[0]).includes('component_server')) await new Promise(go => setTimeout(go, 800));"
        "  return real(...given); }"
    )
    opened(page, served(long_step), "?view=step&step=1", ".problems")
    page.locator(".problems .row").first.click()
    page.wait_for_selector("#sharevl[aria-busy=true] > .busy")
    page.wait_for_selector(".matrix")
    assert page.locator("#sharevl[aria-busy]").count() == 0


@pytest.mark.slow
def test_following_keeps_what_is_open_and_tells_a_reader_of_a_new_step(page, served, long_step):
    store = RolloutStore(long_step)
    address = served(long_step, follow=True)
    torn = long_step / "rollouts" / "train" / "step_000009.parquet"
    torn.write_bytes(b"PAR1")
    opened(page, address, ready=".bars")
    page.wait_for_selector("details.note")
    assert "1 shard cannot be read" in page.locator("details.note summary").inner_text()
    page.locator("details.note summary").click()
    page.locator(".bars a").first.focus()
    page.wait_for_selector(".live:has-text('live')")
    store.write("train", 2, rows(store, 2, {"a": "two"}))
    page.wait_for_function("document.querySelectorAll('.bars a').length === 2")
    assert page.locator("details.note").get_attribute("open") is not None
    assert page.evaluate("document.activeElement.closest('.bars') !== null")
    opened(page, address, "?view=step&step=1", ".problems")
    page.keyboard.press("j")
    focused = page.evaluate(FOCUSED)
    page.wait_for_selector(".live:has-text('live')")
    page.wait_for_timeout(2500)
    store.write("train", 3, rows(store, 3, {"a": "three"}))
    page.wait_for_selector(".notice:has-text('Step 3 is new')")
    assert page.evaluate(FOCUSED) == focused
    page.locator(".notice a").click()
    page.wait_for_selector(".trail:has-text('step 3')")
    assert not page.locator(".notice").is_visible()


def test_neighbours_are_links_that_are_seen(long_step):
    index = Index([long_step])
    shown = str(render(index, "?view=response&step=1&problem=p-03&variant=1"))
    assert re.search(r'<a class="button near" href="[^"]*" data-key="k" aria-label="previous response"', shown)
    assert 'aria-label="next response"' not in shown, "it is the last"
    assert 'aria-label="next problem"' in str(render(index, "?view=problem&step=1&problem=p-03"))


def test_one_is_no_plural(tmp_path):
    store = RolloutStore(tmp_path)
    shorter = {"token_ids": [1], "sampling_logprobs": [-0.5], "scorer_logprobs": None}
    store.write("train", 1, [replace(row, **shorter) for row in rows(store, 1, {"a": "x"}, n=1)])
    index = Index([tmp_path])
    assert "1 response, 100 % right" in render(index, "?view=problem&step=1&problem=p-a")
    assert "Response, 1 token<" in render(index, "?view=response&step=1&problem=p-a")
    with pytest.raises(StoreError, match="it has step 1 alone"):
        export(index, tmp_path / "out.html", step=7)


def test_one_landmark_and_the_current_run_is_marked(tmp_path):
    runs = [tmp_path / parent / "same" for parent in ("first", "second")]
    for run in runs:
        store = RolloutStore(run)
        store.write("eval", 0, rows(store, 0, {"a": "one"}))
    index = Index(runs)
    shown = str(render(index, "?run=1"))
    assert "<main" not in shown, "Gradio's page has one"
    links = re.findall(r'<a href="[^"]*"[^>]*>(?:first|second)/same', shown)
    assert links == [
        '<a href="?split=eval">first/same',
        '<a href="?run=1&amp;split=eval" aria-current="page">second/same',
    ]
    assert "No step" not in str(render(index, "?view=step")), "an evaluation is a step to show"


@pytest.mark.slow
def test_narrow_pages_reach_everything(browser, served, tmp_path):
    store = RolloutStore(tmp_path / "run")
    wide = "$\\boxed{" + "+".join(f"x_{{{n}}}" for n in range(60)) + "}$ or \\boxed{" + "9" * 200 + "}"
    written = rows(store, 1, {"a": wide, "b": "w" * 3000}, n=1, variants=5)
    store.write("train", 1, written)
    address = served(tmp_path / "run")
    page = browser.new_page(viewport={"width": 390, "height": 800})
    opened(page, address, "?view=response&step=1&problem=p-a", ".tokens")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for tab in page.locator(".tabs a").all():
        box = tab.bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 390
    for box in page.locator("mark.boxed").all():
        assert box.bounding_box()["width"] <= 366
    opened(page, address, "?view=step&step=1", ".problems")
    page.get_by_role("link", name="reward", exact=True).click()
    page.wait_for_selector("th[aria-sort=descending]")
    page.set_viewport_size({"width": 1280, "height": 800})
    table = page.locator(".scroll")
    assert table.evaluate("part => part.scrollWidth - part.clientWidth") <= 1
    page.close()


@pytest.mark.slow
def test_tall_pictures_keep_their_shape(page, served, tmp_path):
    from PIL import Image

    store = RolloutStore(tmp_path / "run")
    (row,) = rows(store, 1, {"a": "one"}, n=1, variants=1)
    row.image_sha[0] = store.put_image(Image.new("RGB", (300, 1800)))
    store.write("train", 1, [row])
    opened(page, served(tmp_path / "run"), "?view=problem&step=1&problem=p-a", ".picture")
    assert page.locator(".card .picture").evaluate("image => getComputedStyle(image).objectFit") == "contain"


def test_what_reward_functions_logged_about_a_response(tmp_path):
    store = RolloutStore(tmp_path)
    written = rows(store, 1, {"a": "one"})
    said = {"judge": "too <b>long</b>", "marks": "[1, 2]", "story": "word " * 1000 + "THE-END"}
    store.write("train", 1, [replace(row, extra=said if row.response_index == 0 else {}) for row in written])
    index = Index([tmp_path])
    shown = str(render(index, "?view=response&step=1&problem=p-a&response=0"))
    assert "Logged by reward functions" in shown
    assert "too &lt;b&gt;long&lt;/b&gt;" in shown
    assert "[1, 2]" in shown
    assert "the first 4,000 characters of each; " in shown
    assert "THE-END" not in shown
    whole = str(render(index, "?view=response&step=1&problem=p-a&response=0&full=1"))
    assert "THE-END" in whole
    assert "characters of each" not in whole
    assert "Logged by" not in str(render(index, "?view=response&step=1&problem=p-a&response=1"))
