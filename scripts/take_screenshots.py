"""Every view of the explorer over a run, light and dark, wide and narrow.

python scripts/take_screenshots.py RUN OUT_FOLDER [MODEL]

With a MODEL, as in `sharevl-lite view --model`, the chosen problem is put to it for a picture of Try it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright
from sharevl_explorer.app import serve
from sharevl_explorer.index import Index

from sharevl_lite.try_it import open_tryout

CHOICE = """
SELECT step, problem FROM problems WHERE run = 0 AND split = 'train'
ORDER BY rescued DESC, spread_global DESC, step DESC, problem LIMIT 1
"""
ASKED = """
SELECT question, answer, images FROM variants WHERE run = 0 AND step = $step AND problem = $problem ORDER BY variant
"""


def main(run: str, out: Path, model: str | None) -> None:
    out.mkdir(parents=True, exist_ok=True)
    index = Index([run])
    chosen = index.rows(CHOICE)[0]
    there = f"&step={chosen['step']}&problem={chosen['problem']}"
    views = {
        "run": "?view=run",
        "step": f"?view=step&step={chosen['step']}",
        "problem": "?view=problem&cell=advantage" + there,
        "response": "?view=response&variant=1&response=0&under=0" + there,
        "compare": f"?view=compare&split={index.splits()[-1]}",
        **({} if model is None else {"try": "?view=try"}),
    }
    blocks = serve(index, block=False, tryout=None if model is None else open_tryout(run, model))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": width, "height": 860}, color_scheme=scheme)
                for name, query in views.items():
                    page.goto(blocks.local_url + query)
                    page.wait_for_selector("#sharevl .content section")
                    page.wait_for_load_state("networkidle")
                    if name == "try":
                        ask(page, index, index.rows(ASKED, chosen)[0])
                    page.screenshot(path=out / f"{name}-{scheme}-{width}.png")
        browser.close()
    blocks.close()


def ask(page: Page, index: Index, asked: dict[str, Any]) -> None:
    """Puts a problem of the run to the model and waits for its answers."""
    page.set_input_files("[name=image]", index.runs[0] / "images" / f"{asked['images'][0]}.png")
    page.fill("[name=question]", asked["question"].replace("<image>", ""))
    page.fill("[name=answer]", asked["answer"])
    page.click("form.try button")
    page.wait_for_selector(".answers .card", timeout=600_000)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: take_screenshots.py RUN OUT_FOLDER [MODEL]")
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3] if len(sys.argv) == 4 else None)
