"""Room and colours: wide screens, long questions, links that lead somewhere, the theme that is chosen."""

import re
import shutil
from dataclasses import replace

import pytest
from hostile_rows import rows
from pages import opened
from PIL import Image
from sharevl_explorer.folds import MOST
from sharevl_explorer.index import Index
from sharevl_explorer.page import render

from sharevl_lite.store import RolloutStore

LONG = "How many $x$ are there? " * 100 + "THE-END"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Asks `a` at every step and `b` once; the pictures are large."""
    run = tmp_path_factory.mktemp("layout") / "run"
    store = RolloutStore(run)
    sha = store.put_image(Image.linear_gradient("L").resize((900, 600)).convert("RGB"))
    for step in (1, 2):
        texts = {"a": LONG} | ({"b": "short"} if step == 1 else {})
        store.write("train", step, [replace(row, image_sha=[sha]) for row in rows(store, step, texts)])
    return run


@pytest.mark.parametrize("view", ["problem", "response"])
def test_a_long_question_is_folded(run, view):
    page = render(Index([run]), f"?view={view}&step=1&problem=p-a")
    folds = re.findall('<details class="long"><summary>(.*?)</summary>', page)
    assert len(folds) == (2 if view == "problem" else 1)
    assert f"show all {len('<image>' + LONG + ' Q0'):,} characters" in folds[0]
    assert "<math" in folds[0], "the beginning has its formulas"
    assert "THE-END" not in folds[0]
    assert len(LONG) > MOST
    assert 'class="long"' not in render(Index([run]), f"?view={view}&step=1&problem=p-b")


def test_steps_are_compared_where_a_problem_was_asked_again(run, tmp_path):
    index = Index([run])
    assert "compare across steps" in render(index, "?view=problem&step=1&problem=p-a")
    assert "compare across steps" not in render(index, "?view=problem&step=1&problem=p-b")
    both = Index([run, shutil.copytree(run, tmp_path / "other")])
    assert "compare across steps" in render(both, "?view=problem&step=1&problem=p-b"), "in the other run"


@pytest.mark.slow
def test_a_fold_shows_the_whole_or_the_beginning(page, served, run):
    opened(page, served(run), "?view=problem&step=1&problem=p-a", ".matrix")
    card = page.locator(".card").first
    assert "THE-END" not in card.inner_text()
    card.locator(".more").click()
    assert card.inner_text().count("THE-END") == 1
    assert not card.locator(".start").is_visible()
    card.locator(".less").click()
    assert "THE-END" not in card.inner_text()


@pytest.mark.slow
def test_a_wide_screen_is_used(browser, served, run):
    sizes = {}
    for width in (400, 1280, 2560):
        page = browser.new_page(viewport={"width": width, "height": 900})
        opened(page, served(run), "?view=problem&step=1&problem=p-b", ".matrix")
        frame, picture, matrix = (
            page.locator(part).first.bounding_box()["width"] for part in (".frame", ".card .picture", ".matrix")
        )
        sizes[width] = (frame, picture, matrix)
        opened(page, served(run), "?view=response&step=1&problem=p-a", ".tokens")
        assert page.locator(".response-text .words").first.bounding_box()["width"] < 1000
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.close()
    assert sizes[1280][0] <= 1280
    assert sizes[2560][0] == 1800
    assert sizes[2560][1] > 1.4 * sizes[1280][1]
    assert sizes[2560][2] > 1.4 * sizes[1280][2]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_chosen_and_said(browser, served, run, scheme):
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    dark, button = "document.body.classList.contains('dark')", page.locator("[data-theme]")
    opened(page, served(run), ready=".charts")
    found = []
    for _ in range(4):
        found.append((button.inner_text(), page.evaluate(dark)))
        button.click()
    assert found == [("◐ system", scheme == "dark"), ("☀ light", False), ("☾ dark", True), found[0]]
    page.get_by_role("link", name="Step", exact=True).click()
    page.wait_for_selector(".problems")
    assert button.inner_text() == "☀ light"
    page.reload()
    page.wait_for_selector(".problems")
    assert (button.inner_text(), page.evaluate(dark)) == ("☀ light", False)
    button.click()
    button.click()
    other = "light" if scheme == "dark" else "dark"
    page.emulate_media(color_scheme=other)
    page.wait_for_function(f"{dark} === {'true' if other == 'dark' else 'false'}")
    context.close()
