"""One tiny training run, one hostile store, one server and one browser for all tests of the explorer."""

import contextlib
import shutil
from pathlib import Path

import pytest
from PIL import Image

from sharevl_explorer.index import Index
from sharevl_lite.store import Rewards, RolloutRow, RolloutStore, Scorer, Verification

ROOT = Path(__file__).parents[2]
HOSTILE = {
    "image-error": "<img src=x onerror=\"window.hacked='img'\">",
    "script-end": "</script><script>window.hacked='script'</script>",
    "attribute": '" onmouseover="window.hacked=\'attr\'" x="\'><svg onload="window.hacked=\'svg\'">',
    "template": "${window.hacked='js'} {{#each value}}{{this}}{{/each}}",
    "boxed": "<think>\\boxed{</math><img src=x onerror=\"window.hacked='boxed'\">}",
    "mathematics": '$\\text{<img src=x onerror="window.hacked=1">}$ $\\frac{1}{$ \\(x^^2\\)',
    "long-line": "x" * 60_000,
    "rtl": "\u202eשלום עולם مرحبا <think>بالعالم</think>",
    "nul": "before\x00after\x1b[31m",
    "megabyte": "word " * 200_000 + "THE-END",
}


def rows(store, step, texts, *, n=2, variants=2):
    """Responses to one problem per text: variant 0 is all right, variant 1 all wrong."""
    sha = store.put_image(Image.new("RGB", (12, 8), (step, 90, 160)))
    return [
        RolloutRow(
            run_id="hostile", step=step, problem_id=f"p-{name}", variant_index=j, variant_text=f"<image>{text[:70_000]} Q{j}",
            transform="rotate_90_cw" if j else None, image_sha=[sha], answer=text[:100], response_index=i, text=text,
            token_ids=[1, 2], truncated=i == 1, sampling_logprobs=[-0.5, -2.0],
            rewards=Rewards(1.0 - j, 1.0 - j, 1.0), verification=Verification(text[:100], "exact"),
            adv_global=1.0 - 2 * j, adv_local=0.0,
            scorers=[Scorer(k, 0.5, -1.0, 0.0 if k == j else -0.25 * (k + 1), 0.125) for k in range(variants)],
        )
        for name, text in texts.items() for j in range(variants) for i in range(n)
    ]  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """What a real training run wrote: two steps of six problems."""
    from sharevl_lite.recipes import load_recipe
    from sharevl_lite.run import train

    folder = tmp_path_factory.mktemp("run")
    words = "--train.rollouts 2 --train.problems_per_rollout 6 --train.problems_per_update 6 --rollout.num_responses 3"
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
    """Serve a run, once each; gives the address."""
    from sharevl_explorer.app import serve

    addresses = {}
    with contextlib.ExitStack() as stack:

        def address(run, **options):
            if run not in addresses:
                blocks = serve(Index([run]), block=False, **options)
                stack.callback(blocks.close)
                addresses[run] = blocks.local_url
            return addresses[run]

        yield address
