"""`view`: its options, and what they start. The same for `sharevl-lite view` and `python -m sharevl_explorer`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sharevl_lite.store_schema import StoreError

if TYPE_CHECKING:
    from sharevl_explorer.trial import Tryout


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `view`. Needs neither Gradio nor DuckDB."""
    parser.add_argument("run_dir", metavar="RUN", help="folder of a run, finished or training")
    parser.add_argument("--against", metavar="RUN2", help="a second run to compare it with")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind to (default: %(default)s)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--follow", action="store_true", help="show new steps as they are written")
    parser.add_argument("--share", action="store_true", help="Gradio's public link")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="ask for a login")
    parser.add_argument("--export", metavar="OUT.html", help="write problems to one file instead of serving")
    parser.add_argument("--problem", action="append", default=[], metavar="ID", help="with --export: which, repeatable")
    parser.add_argument("--step", type=int, help="with --export: of which step (default: the newest)")
    parser.add_argument("--split", default="train", help="with --export: of which split (default: %(default)s)")


def run(options: argparse.Namespace, open_tryout: Callable[[], Tryout] | None = None) -> int:
    """Serve or export; returns the exit code. `open_tryout` loads the model of the Try it view, once the run is read.

    Raises:
        StoreError: the run, the login or what is to be exported is not as it must be.
    """
    from sharevl_explorer.index import Index

    auth = _login(options.auth)
    index = Index([options.run_dir, *([options.against] if options.against else [])])
    if options.export:
        from sharevl_explorer.export import export

        number = export(index, Path(options.export), options.problem, split=options.split, step=options.step)
        print(f"{options.export}: {number} problems")
        return 0
    if not index.splits() and not options.follow:
        reasons = "; ".join(f"{path}: {why}" for path, why in index.unreadable.items())
        raise StoreError(f"{options.run_dir}: no readable rollouts{': ' + reasons if reasons else ''} (--follow waits)")
    from sharevl_explorer.app import serve

    tryout = None if open_tryout is None else open_tryout()
    shown = {"follow": options.follow, "share": options.share, "auth": auth, "tryout": tryout}
    try:
        serve(index, host=options.host, port=options.port, **shown)
    finally:
        if tryout is not None:
            tryout.close()
    return 0


def _login(written: str | None) -> tuple[str, str] | None:
    if written is None:
        return None
    user, colon, password = written.partition(":")
    if not (user and colon and password):
        raise StoreError("--auth: give USER:PASSWORD")
    return user, password


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of `python -m sharevl_explorer`; exit code 2 for a user's mistake."""
    import sys

    parser = argparse.ArgumentParser(prog="sharevl_explorer", description="Opens the trajectory explorer.")
    add_options(parser)
    try:
        return run(parser.parse_args(arguments))
    except StoreError as error:
        print(f"sharevl_explorer: {error}", file=sys.stderr)
        return 2
