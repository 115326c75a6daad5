"""Every view of the explorer over a run, light and dark, wide and narrow.

python scripts/take_screenshots.py RUN OUT_FOLDER
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright
from sharevl_explorer.app import serve
from sharevl_explorer.index import Index

CHOICE = """
SELECT step, problem FROM problems WHERE run = 0 AND split = 'train'
ORDER BY outcome = 'rescued' DESC, spread_global DESC, step DESC, problem LIMIT 1
"""


def main(run: str, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    index = Index([run])
    chosen = index.rows(CHOICE)[0]
    there = f"&step={chosen['step']}&problem={chosen['problem']}"
    views = {
        "run": "?view=run",
        "step": f"?view=step&step={chosen['step']}",
        "problem": "?view=problem&cell=advantage" + there,
        "response": "?view=response&variant=1&response=0" + there,
        "compare": f"?view=compare&split={index.splits()[-1]}",
    }
    blocks = serve(index, block=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": width, "height": 860}, color_scheme=scheme)
                for name, query in views.items():
                    page.goto(blocks.local_url + query)
                    page.wait_for_selector("#sharevl main section")
                    page.wait_for_load_state("networkidle")
                    page.screenshot(path=out / f"{name}-{scheme}-{width}.png")
        browser.close()
    blocks.close()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: take_screenshots.py RUN OUT_FOLDER")
    main(sys.argv[1], Path(sys.argv[2]))
