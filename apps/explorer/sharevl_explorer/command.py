"""`view`: its options, and what they start. The same for `sharevl-lite view` and `python -m sharevl_explorer`."""

from __future__ import annotations

import argparse
import difflib
import errno
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sharevl_lite.heavy_imports import without_collecting
from sharevl_lite.run_files import RECIPE_FILE
from sharevl_lite.store_schema import ROLLOUTS_DIR, StoreError

if TYPE_CHECKING:
    from sharevl_explorer.index import Index
    from sharevl_explorer.trial import Tryout

LOCAL_HOST = "127.0.0.1"
_MANY = 100
_PAUSE = 1.0
"""Seconds between two looks for a run that has not begun."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `view`. Needs neither Gradio nor DuckDB."""
    parser.add_argument(
        "run_dir", metavar="RUN", help="folder of a run, finished or training, or of an evaluation's responses"
    )
    parser.add_argument("--against", metavar="RUN2", help="a second run to compare it with")
    parser.add_argument("--host", help=f"address to bind to (default: {LOCAL_HOST})")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--follow", action="store_true", help="show new steps as they are written; waits for the first")
    parser.add_argument("--share", action="store_true", help="Gradio's public link")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="ask for a login")
    parser.add_argument(
        "--export",
        metavar="OUT.html",
        help="write problems to one file instead of serving: of a step the 12 whose rewards differ most, or --problem",
    )
    parser.add_argument("--problem", action="append", default=[], metavar="ID", help="with --export: which, repeatable")
    parser.add_argument("--step", type=int, help="with --export: of which step (default: the newest)")
    parser.add_argument("--split", help="with --export: of which split (default: train, where there is one)")


def run(options: argparse.Namespace, open_tryout: Callable[[], Tryout] | None = None) -> None:
    """Serve or export. `open_tryout` loads the model of the Try it view, once the run is read.

    Raises:
        StoreError: the run, the login, the address or what is to be exported is not as it must be.
    """
    from sharevl_explorer.index import Index

    auth, host = _login(options.auth), options.host or LOCAL_HOST
    runs = [options.run_dir, *([options.against] if options.against else [])]
    _check_folders(runs, follow=options.follow)
    if options.export:
        _check_export(options)
        _export(Index(runs), options)
        return
    if options.problem or options.step is not None or options.split is not None:
        raise StoreError(
            "--problem, --split and --step choose what --export OUT.html writes; a served page has them all"
        )
    _check_address(host, options.port)
    _tell_wait(runs)
    try:
        index = _awaited(runs) if options.follow else Index(runs)
    except KeyboardInterrupt:
        print()
        return
    if not index.splits() and not options.follow:
        reasons = "; ".join(f"{path}: {why}" for path, why in index.unreadable.items())
        inside = _runs_in(Path(options.run_dir))
        if inside and not reasons:
            named = ", ".join(map(str, inside[:5]))
            raise StoreError(f"{options.run_dir}: a folder of runs, such as {named}; name one")
        raise StoreError(f"{options.run_dir}: no readable rollouts{': ' + reasons if reasons else ''} (--follow waits)")
    with without_collecting():
        from sharevl_explorer.app import serve

    tryout = None if open_tryout is None else open_tryout()
    shown = {"follow": options.follow, "share": options.share, "auth": auth, "tryout": tryout}
    try:
        serve(index, host=host, port=options.port, **shown)
    finally:
        if tryout is not None:
            tryout.close()


def _tell_wait(runs: Sequence[str]) -> None:
    """Says what is read where that takes seconds."""
    steps = sum(1 for run in runs for _ in Path(run, ROLLOUTS_DIR).glob("*/step_*.parquet"))
    if steps > _MANY:
        print(f"reading {steps:,} steps …", flush=True)


def _runs_in(folder: Path) -> list[Path]:
    """Folders of runs in a folder, by name."""
    return sorted(recipe.parent for recipe in folder.glob(f"*/{RECIPE_FILE}"))


def _check_export(options: argparse.Namespace) -> None:
    """Raises StoreError where the file's name is another kind's, or an option means nothing without a server."""
    target = Path(options.export)
    if target.suffix.lower() not in (".html", ".htm") and not target.is_dir():
        raise StoreError(f"--export {options.export}: a page is written, and replaces what is there; end it in .html")
    if options.against:
        raise StoreError("--export writes problems of one run; --against needs a server. Leave one of them out")
    if options.follow:
        raise StoreError("--export writes what is there now; --follow needs a server. Leave one of them out")
    served = {"host": options.host, "port": options.port, "share": options.share or None, "auth": options.auth}
    for name, value in served.items():
        if value is not None:
            raise StoreError(f"--export writes a file; --{name} needs a server. Leave one of them out")


def _export(index: Index, options: argparse.Namespace) -> None:
    """Writes the file, and says of which step, and which steps could not be read."""
    from sharevl_explorer.export import export
    from sharevl_explorer.parts import counted

    done = export(index, Path(options.export), options.problem, split=options.split, step=options.step)
    told = f"{options.export}: {counted(done.problems, 'problem')} of step {done.step} ({done.split})"
    if done.problems < done.asked and not options.problem:
        told += f", which asked {done.asked}: those whose rewards differ most. --problem ID, repeatable, chooses others"
    print(told)
    for path, why in index.unreadable.items():
        print(f"left out: {path}: {why}", file=sys.stderr)


def _check_folders(runs: Sequence[str], *, follow: bool) -> None:
    """A file in the place of a folder, the figures of an evaluation above all: no folder will come of it. And a folder
    that is not there, unless it is waited for."""
    for run in map(Path, runs):
        if not run.exists() and not follow:
            names = [other.name for other in _runs_in(run.parent)]
            near = difflib.get_close_matches(run.name, names, n=1)
            known = f"; did you mean {run.with_name(near[0])}?" if near else ""
            if names and not near:
                known = f"; in {run.parent} there {'is' if len(names) == 1 else 'are'} {', '.join(names[:5])}"
            raise StoreError(f"{run}: no such run folder{known}")
        if run.is_file():
            told = f"{run} is a file; give the folder of a run or of an evaluation"
            if run.suffix in (".json", ".md") and (run.with_suffix("") / "rollouts").is_dir():
                told = f"{run} holds the figures of an evaluation; give the folder of its responses, which shows both: "
                told += f"{run.with_suffix('')}"
            raise StoreError(told)


def _awaited(runs: Sequence[str]) -> Index:
    """The index, once the run has a step to show, or a file that cannot be read."""
    from sharevl_explorer.index import Index

    index, told = None, ""
    while True:
        missing = [run for run in runs if not Path(run).is_dir()]
        if index is None and not missing:
            index = Index(runs)
        elif index is not None:
            index.refresh()
        if index is not None and (index.splits() or index.unreadable):
            return index
        state = f"{missing[0]}: no such folder yet" if missing else f"{runs[0]}: no steps yet"
        if state != told:
            print(f"{state}; waiting for its first step (Ctrl-C ends this)", flush=True)
        told = state
        time.sleep(_PAUSE)


def _check_address(host: str, port: int | None) -> None:
    """Before anything is loaded. A port of 0 asks the system for any: only the host is tried then."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.strip("[]"), port or 0))
    except OverflowError as error:
        raise StoreError(f"--port {port}: a port is a number from 1 to 65535") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            what = f"--port {port}: another program listens there; give another one, or leave --port out"
        else:
            told = "" if port is None else f" --port {port}"
            what = f"--host {host}{told}: cannot listen there: {error.strerror}; 127.0.0.1 is this machine alone"
        raise StoreError(what) from error


def _login(written: str | None) -> tuple[str, str] | None:
    if written is None:
        return None
    user, colon, password = written.partition(":")
    if not (user and colon and password):
        raise StoreError("--auth: give USER:PASSWORD")
    return user, password


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of `python -m sharevl_explorer`; exit code 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="sharevl_explorer", description="Opens the trajectory explorer.")
    add_options(parser)
    try:
        run(parser.parse_args(arguments))
    except StoreError as error:
        print(f"sharevl_explorer: {error}", file=sys.stderr)
        return 2
    return 0
