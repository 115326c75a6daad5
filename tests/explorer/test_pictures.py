"""Pictures open in their full size: fitted to the window, 1:1 by a second click, closed by Escape; in a file too."""

from dataclasses import replace

import pytest
from hostile_rows import rows
from pages import opened
from PIL import Image
from sharevl_explorer.command import main

from sharevl_lite.store import RolloutStore

SIZES = {"wide": (1600, 1200), "tiny": (24, 16)}


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    """A run with a problem over an image larger than the window, and one over an image of a few pixels."""
    run = tmp_path_factory.mktemp("pictures") / "run"
    store, written = RolloutStore(run), []
    for name, size in SIZES.items():
        sha = store.put_image(Image.linear_gradient("L").resize(size).convert("RGB"))
        written += [replace(row, image_sha=[sha]) for row in rows(store, 1, {name: "one"})]
    store.write("train", 1, written)
    return run


def drawn(page):
    """Size of the large picture as it is drawn, and whether its pixels stay squares."""
    return page.locator(".enlarged:is([open], :popover-open) .large").evaluate(
        "large => [large.clientWidth, large.clientHeight, getComputedStyle(large).imageRendering]"
    )


def scrolls(page):
    return page.locator(".enlarged:is([open], :popover-open) .pane").evaluate(
        "pane => pane.scrollWidth > pane.clientWidth && pane.scrollHeight > pane.clientHeight"
    )


@pytest.mark.slow
def test_a_click_opens_a_picture_and_a_second_one_shows_it_1_to_1(page, served, pictured):
    opened(page, served(pictured), "?view=problem&step=1&problem=p-wide", ".matrix")
    link = page.locator(".card .enlarge").first
    link.click()
    page.wait_for_selector(".enlarged[open] span:has-text('1,600 × 1,200 pixels, shown at 7')")
    width, height, rendering = drawn(page)
    assert width == 1280
    assert 700 < height < 900
    assert rendering == "auto"
    assert not scrolls(page)
    page.keyboard.press("j")
    page.locator(".enlarged .pane").click()
    page.wait_for_selector(".enlarged span:has-text('1:1')")
    assert drawn(page) == [1600, 1200, "auto"]
    assert scrolls(page)
    page.keyboard.press("Enter")
    page.wait_for_selector(".enlarged span:has-text('shown at')")
    page.keyboard.press("Escape")
    page.wait_for_selector(".enlarged", state="hidden")
    assert link.evaluate("link => document.activeElement === link"), "the reader is where he was"
    assert "p-wide" in page.url, "keys of the page do nothing behind a picture"
    assert link.get_attribute("href").startswith("/run-image/0/"), "a link, where no script runs"


@pytest.mark.slow
def test_small_pictures_are_enlarged_by_the_keyboard_to_squares(page, served, pictured):
    opened(page, served(pictured), "?view=step&step=1&sort=problem&down=1", ".problems")
    page.locator(".problems tr:has-text('p-tiny') .enlarge").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".enlarged[open] span:has-text('24 × 16 pixels')")
    width, _, rendering = drawn(page)
    assert (width, rendering) == (1280, "pixelated")
    page.keyboard.press("Enter")
    page.wait_for_selector(".enlarged span:has-text('1:1')")
    assert drawn(page) == [24, 16, "auto"]
    page.go_back()
    assert page.locator(".enlarged[open]").count() == 0


@pytest.mark.slow
def test_pictures_of_a_file_open_without_a_script(page, pictured, tmp_path):
    target = tmp_path / "out.html"
    assert main([str(pictured), "--export", str(target)]) == 0
    assert target.read_text().count("data:image/png;base64") == len(SIZES)
    page.goto(target.as_uri())
    for name, fitted, rendering in (("wide", 1280, "auto"), ("tiny", 1280, "pixelated")):
        button = page.locator(f".problem:has-text('p-{name}') .card .enlarge").first
        button.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector(".enlarged:popover-open")
        assert drawn(page)[::2] == [fitted, rendering]
        page.locator(".enlarged:popover-open .pane").click()
        assert drawn(page)[:2] == list(SIZES[name])
        assert scrolls(page) == (name == "wide")
        page.keyboard.press("Space")
        assert drawn(page)[0] == fitted
        page.keyboard.press("Escape")
        page.wait_for_selector(".enlarged:popover-open", state="hidden")
        assert button.evaluate("button => document.activeElement === button")
