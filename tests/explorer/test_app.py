"""The real app in a real browser, over what a training run and a hostile writer left."""

import urllib.error
import urllib.request

import pytest
from hostile_rows import HOSTILE, rows
from pages import first_problem, opened

from sharevl_lite.store import RolloutStore, read


@pytest.mark.slow
def test_from_the_run_to_a_response_by_clicks_and_back_by_links(page, served, trained):
    """Run, Step, Problem, Response; every address reloads to the same view."""
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    opened(page, served(trained), ready=".charts")
    assert page.locator(".chart svg:visible").count() == 9
    page.locator("details.more summary").first.click()
    assert page.locator(".chart svg:visible").count() == 18
    page.locator("details.more summary").last.click()
    assert page.locator(".chart svg:visible").count() == 23
    assert page.locator(".bars a").count() == 2
    page.locator(".bars a").first.click()
    page.wait_for_selector(".problems")
    assert page.locator(".problems tbody tr").count() == 6
    assert page.locator(".problems img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    page.locator(".problems .row").first.click()
    page.wait_for_selector(".matrix")
    assert page.locator(".card").count() == 2
    assert page.locator(".matrix tbody tr").count() == 6
    assert page.locator(".cell.source").count() == 6
    gap = page.locator(".matrix").inner_text()
    page.get_by_role("link", name="advantage", exact=True).click()
    page.wait_for_selector(".tabs [aria-current]:has-text('advantage')")
    assert page.locator(".matrix").inner_text() != gap
    page.locator(".matrix .row").first.click()
    page.wait_for_selector(".tokens")
    stored = read(trained, steps=[1]).to_pylist()
    row = next(row for row in stored if f"problem={row['problem_id']}&" in page.url + "&")
    assert page.locator(".token").count() == len(row["token_ids"])
    shown, url = page.locator("#sharevl .content").inner_text(), page.url
    page.goto("about:blank")
    opened(page, url, ready=".tokens")
    assert page.locator("#sharevl .content").inner_text() == shown
    page.go_back()
    assert not errors


@pytest.mark.slow
def test_filters_and_sorting_are_in_the_address(page, served, trained):
    table = read(trained, steps=[1])
    opened(page, served(trained), "?view=step&step=1", ".problems")
    page.get_by_role("link", name="reward", exact=True).click()
    page.wait_for_selector("th[aria-sort=descending]")
    rewards = [float(cell) for cell in page.locator("td[data-label=reward]").all_inner_texts()]
    assert rewards == sorted(rewards, reverse=True)
    page.select_option("select[name=outcome]", "mixed")
    page.wait_for_url("**outcome=mixed**")
    page.wait_for_function("document.querySelector('#sharevl').dataset.shown === location.search")
    assert "sort=reward" in page.url
    assert {text.strip() for text in page.locator(".badge.mixed, .badge.wrong, .badge.right").all_inner_texts()} <= {
        "◐mixed",
        "◐ mixed",
        "◐\nmixed",
    }
    wanted = table["problem_id"][0].as_py()
    page.goto(served(trained) + "?view=step&step=1")
    page.wait_for_selector(".problems")
    page.keyboard.press("/")
    page.keyboard.type(wanted)
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('.problems tbody tr').length === 1")
    assert page.locator(".id").inner_text() == wanted


@pytest.mark.slow
def test_keys(page, served, trained):
    problem = first_problem(trained)
    opened(page, served(trained), f"?view=response&step=1&problem={problem}", ".tokens")
    for pressed, there in (("j", "response=1"), ("l", "variant=1"), ("h", "response=1"), ("k", "step=1")):
        before = page.url
        page.keyboard.press(pressed)
        page.wait_for_function("old => location.href !== old", arg=before)
        page.wait_for_function("document.querySelector('#sharevl').dataset.shown === location.search")
        assert there in page.url
    page.keyboard.press("?")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    opened(page, served(trained), "?view=step&step=1", ".problems")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.hasAttribute('data-row')")
    page.keyboard.press("]")
    page.wait_for_url("**step=2**")


@pytest.mark.slow
def test_accuracy_before_and_after(page, served, trained):
    opened(page, served(trained), "?view=compare&split=eval", ".movers")
    page.locator(".movers .row").first.click()
    page.wait_for_selector(".card")
    assert page.locator(".card").count() == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_no_script_of_the_data_runs(page, served, hostile, name):
    address = served(hostile)
    for query in (
        "?view=step&step=1&q=" + urllib.request.quote(HOSTILE[name][:100]),
        f"?view=problem&step=1&problem=p-{name}",
        f"?view=response&step=1&problem=p-{name}",
        f"?view=compare&problem=p-{name}",
    ):
        opened(page, address, query)
        page.wait_for_timeout(100)
        assert page.evaluate("window.hacked") is None
        assert (
            page.locator("#sharevl [onerror], #sharevl [onload], #sharevl script, #sharevl [onmouseover]").count() == 0
        )
    if name == "nul":
        opened(page, address, f"?view=response&step=1&problem=p-{name}")
        assert "before␀after" in page.locator(".response-text").inner_text()
    if name == "megabyte":
        opened(page, address, f"?view=response&step=1&problem=p-{name}")
        assert "of 1,000,007 characters" in page.locator(".response-text").inner_text()
        page.locator(".response-text .note a").click()
        page.wait_for_function("document.querySelector('.response-text')?.innerText.includes('THE-END')")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


@pytest.mark.slow
def test_follows_a_writer_and_survives_torn_shards_and_missing_images(page, served, tmp_path):
    run = tmp_path / "run"
    store = RolloutStore(run)
    whole = store.write("train", 1, rows(store, 1, {"a": "one"}))
    address = served(run, follow=True)
    opened(page, address, ready=".bars")
    assert page.locator(".bars a").count() == 1
    page.wait_for_timeout(2500)
    store.write("train", 2, rows(store, 2, {"a": "two"}))
    (whole.parent / "step_000003.parquet").write_bytes(whole.read_bytes()[:400])
    page.wait_for_function("document.querySelectorAll('.bars a').length === 2", timeout=5000)
    assert "step_000003.parquet" in page.locator("details.note").text_content()
    (whole.parent / "step_000003.parquet").unlink()
    store.write("train", 3, rows(store, 3, {"a": "three"}))
    page.wait_for_function("document.querySelectorAll('.bars a').length === 3", timeout=5000)
    assert page.locator("details.note").count() == 0
    for image in (run / "images").glob("*.png"):
        image.unlink()
    opened(page, address, "?view=problem&step=1&problem=p-a", ".matrix")
    assert page.locator(".picture.missing").count() == 2


def test_only_images_of_the_run_are_served(served, trained):
    address = served(trained)
    image = next((trained / "images").glob("*.png"))
    assert urllib.request.urlopen(f"{address}run-image/0/{image.name}").read() == image.read_bytes()
    for path in (
        f"run-image/0/{'0' * 64}.png",
        "run-image/0/..%2Frecipe.yaml",
        f"run-image/7/{image.name}",
        f"gradio_api/file={trained}/recipe.yaml",
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(address + path)
        assert caught.value.code in (403, 404)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_pages_do_not_scroll_sideways(browser, served, trained, scheme):
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    problem = first_problem(trained)
    for query in (
        "",
        "?view=step&step=1",
        f"?view=problem&step=1&problem={problem}",
        f"?view=response&step=1&problem={problem}&under=1",
        "?view=compare&split=eval",
    ):
        opened(page, served(trained), query)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, query
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    page.close()


@pytest.mark.slow
def test_the_newest_bars_are_in_sight_on_a_narrow_page(browser, served, tmp_path):
    store = RolloutStore(tmp_path)
    for step in range(1, 13):
        store.write("train", step, rows(store, step, {"a": "one"}))
    page = browser.new_page(viewport={"width": 420, "height": 800})
    address = served(tmp_path, follow=True)
    opened(page, address, ready=".bars")
    chart, newest = page.locator(".scroll:has(.bars)"), page.locator(".bars a").last
    right = chart.bounding_box()["x"] + chart.bounding_box()["width"]
    assert newest.bounding_box()["x"] + newest.bounding_box()["width"] <= right + 1
    chart.evaluate("chart => { chart.scrollLeft = 0 }")
    page.wait_for_selector(".live:has-text('step 12')")
    store.write("train", 13, rows(store, 13, {"a": "one"}))
    page.wait_for_function("document.querySelectorAll('.bars a').length === 13")
    assert chart.evaluate("chart => chart.scrollLeft") == 0, "a reader who went back is left there"
    page.close()
