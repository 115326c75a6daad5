"""The Gradio app: one component that asks the server for the page of the URL, and the route of the run's images."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from sharevl_explorer.evaluation_view import document_of
from sharevl_explorer.index import Index
from sharevl_explorer.page import render
from sharevl_explorer.trial import Desk, TrialError, Tryout
from sharevl_explorer.try_view import answers, refused
from sharevl_lite.run_files import RECIPE_FILE, SUMMARY_FILE

_IMAGE = re.compile(r"([0-9a-f]{64})\.png")
_SCRIPTS = ("explorer.js", "pictures.js", "keyboard.js", "theme.js")
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def asset(name: str) -> str:
    """Text of a file in `assets/`."""
    return (files("sharevl_explorer") / "assets" / name).read_text(encoding="utf-8")


def news(index: Index) -> dict[str, Any]:
    """What a page that follows is told: the index's revision, the run's newest step and when its file was written
    (seconds since 1970; None without one), and whether every run has ended."""
    shards = [(step, index.shard(0, split, step)) for split in index.splits() for step in index.steps(0, split)[-1:]]
    times = []
    for _, path in shards:
        with suppress(OSError):  # deleted since the index was read
            times += [] if path is None else [path.stat().st_mtime]
    return {
        "revision": index.revision,
        "step": max((step for step, _ in shards), default=-1),
        "written": max(times, default=None),
        "ended": all(map(_has_ended, index.runs)),
    }


def _has_ended(run: Path) -> bool:
    """A run writes a summary at its end, and takes it away to go on; an evaluation's document is written last."""
    evaluated = document_of(run).is_file() and not (run / RECIPE_FILE).exists()
    return (run / SUMMARY_FILE).is_file() or evaluated


def build(index: Index, *, follow: bool, tryout: Tryout | None = None) -> gr.Blocks:
    """The app over an index; with `follow`, pages ask for changes every two seconds; a `tryout` answers questions."""
    desk = None if tryout is None else Desk(tryout)

    def view(query: str) -> str:
        index.refresh()
        return str(render(index, query, tryout))

    def attempt(given: Any) -> str:
        try:
            if desk is None:
                raise TrialError("No model to ask: the explorer was started without --model.")
            return str(answers(desk.ask(given)))
        except TrialError as error:
            return str(refused(str(error)))

    def revision(_: Any) -> dict[str, Any]:  # Gradio passes one argument, whatever the page sends
        index.refresh()
        return news(index)

    with gr.Blocks(title=f"{index.runs[0].name} · sharevl explorer", analytics_enabled=False, fill_width=True) as app:
        gr.HTML(
            html_template='<div id="sharevl" data-follow="${follow}">loading …</div>',
            js_on_load="".join(map(asset, _SCRIPTS)),
            server_functions=[view, revision, attempt],
            apply_default_css=False,
            follow=int(follow),
        )
    return app


def serve(
    index: Index,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    follow: bool = False,
    share: bool = False,
    auth: tuple[str, str] | None = None,
    tryout: Tryout | None = None,
    block: bool = True,
) -> Any:
    """Serve the app; returns Gradio's Blocks, whose `local_url` is the address. Images need the login as pages do."""
    if (host not in _LOOPBACK or share) and auth is None:
        print(f"warning: {'a public link' if share else host} lets others read the run without a password; see --auth")

    def image(request: Request) -> Response:
        app = request.app
        tokens = [request.cookies.get(f"access-token{kind}-{app.cookie_id}") for kind in ("", "-unsecure")]
        if app.auth is not None and not any(token in app.tokens for token in tokens if token):
            return PlainTextResponse("log in first", status_code=401)
        match = _IMAGE.fullmatch(request.path_params["name"])
        run = request.path_params["run"]
        path = index.runs[run] / "images" / match[0] if match and run < len(index.runs) else None
        if path is None or not path.is_file():
            return PlainTextResponse("no such image", status_code=404)
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=86400"}
        return FileResponse(path, media_type="image/png", headers=headers)

    blocks = build(index, follow=follow, tryout=tryout)
    blocks.launch(
        server_name=host,
        server_port=port,
        share=share,
        auth=auth,
        prevent_thread_lock=True,
        css=asset("style.css"),
        footer_links=[],
        run_history=False,
        quiet=not (block and share),  # else it names an option of its own for the public link
        app_kwargs={"routes": [Route("/run-image/{run:int}/{name}", image)]},
    )
    if block:
        if not share:
            print(f"* Running on local URL:  {blocks.protocol}://{blocks.server_name}:{blocks.server_port}", flush=True)
        blocks.block_thread()
    return blocks
