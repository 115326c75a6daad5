"""One tiny training run, one hostile store, one server and one browser for all tests of the explorer."""

import contextlib
import shutil
from pathlib import Path

import pytest
from hostile_rows import HOSTILE, rows
from sharevl_explorer.index import Index

from sharevl_lite.store import RolloutStore

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """What a real training run wrote: two steps of six problems."""
    from sharevl_lite.recipes import load_recipe
    from sharevl_lite.run import train

    folder = tmp_path_factory.mktemp("run")
    words = "--train.rollouts 2 --train.problems_per_rollout 6 --train.problems_per_update 6 --share.num_responses 3"
    words += f" --eval.problems 4 --output-dir {folder}"
    train(load_recipe(ROOT / "configs" / "digits_cpu.yaml", words.split()))
    return next(folder.iterdir())


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


@pytest.fixture(scope="session")
def served():
    """Serve a run, once with the same options; gives the address."""
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
