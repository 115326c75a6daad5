"""One tiny training run, one hostile store, one server and one browser for all tests of the explorer."""

import contextlib
import shutil

import pytest
from hostile_rows import HOSTILE, rows
from sharevl_explorer.index import Index

from sharevl_lite.store import RolloutStore


@pytest.fixture(scope="session")
def trained(small_run):
    return small_run


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    run = tmp_path_factory.mktemp("stores") / "<b>run</b>"
    store = RolloutStore(run)
    store.write("train", 1, rows(store, 1, HOSTILE))
    store.write("train", 2, rows(store, 2, {"image-error": "fine"}))
    return run


@pytest.fixture(scope="session")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(60_000)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def served():
    """Serve a run, once with the same options; gives the address.

    Each server takes some hundredths of a core while nobody asks it anything, so a file's servers end with it.
    """
    from sharevl_explorer.app import serve

    addresses = {}
    with contextlib.ExitStack() as stack:

        def address(run, **options):
            asked = (run, *options.items())
            if asked not in addresses:
                blocks = serve(Index([run]), block=False, **options)
                stack.callback(blocks.close)
                addresses[asked] = blocks.local_url
            return addresses[asked]

        yield address
