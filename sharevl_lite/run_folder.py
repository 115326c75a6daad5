"""The folder of a run: held by one process, and what it holds."""

from __future__ import annotations

import contextlib
import difflib
import functools
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from sharevl_lite import metrics_log
from sharevl_lite.atomic import locked, temporary_beside
from sharevl_lite.checkpoints import CHECKPOINTS_DIR, STATE_FILE, list_checkpoints, remove_checkpoint
from sharevl_lite.config import Recipe
from sharevl_lite.errors import UserError
from sharevl_lite.group import from_main, in_all_processes, world
from sharevl_lite.recipes import load_recipe
from sharevl_lite.run_files import ADAPTER_DIR, METRICS_FILE, RECIPE_FILE, SUMMARY_FILE, read_record
from sharevl_lite.together import is_main_process

SEEN_WITHIN = 10.0
"""Seconds in which a file of another machine appears."""

logger = logging.getLogger(__name__)


class RunError(UserError):
    """A run that cannot start or go on, with what to do."""


@contextlib.contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """The run's folder, made and locked by the main process; taken away again where nothing came into it.

    Raises RunError where it cannot be made, or another process trains in it.
    """
    if not is_main_process():
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{run_dir}: cannot be written ({error}); set --output-dir to another folder") from error
        try:
            stack.enter_context(locked(run_dir))
        except BlockingIOError as error:
            raise RunError(f"{run_dir}: another process trains in it; wait for it, or set --name to another") from error
        except OSError as error:
            _warn_of_no_locks(run_dir, str(error))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                run_dir.rmdir()


def check_shared(run_dir: Path) -> None:
    """Raises ToldError, in all processes, where one of them does not see what the main process writes into the folder.

    All of a group must call it, in :func:`held`.
    """
    if world() == 1:
        return
    token = run_dir / from_main(lambda: _written(temporary_beside(run_dir / "shared")).name)
    try:
        in_all_processes(lambda: _see(token))
    finally:
        if is_main_process():
            token.unlink(missing_ok=True)


def _written(token: Path) -> Path:
    try:
        token.touch()
    except OSError as error:
        raise RunError(f"{token.parent}: cannot be written ({error}); set --output-dir to another folder") from error
    return token


def _see(token: Path) -> None:
    latest = time.monotonic() + SEEN_WITHIN
    while not token.exists():
        if time.monotonic() > latest:
            raise RunError(
                f"{token.parent.absolute()} is not the folder that the main process writes to: every process needs the "
                "same --output-dir, on a file system that all machines share"
            )
        time.sleep(0.1)


@functools.cache
def _warn_of_no_locks(run_dir: Path, why: str) -> None:
    """Once, for the folder is held twice: by the first checks, and by the training."""
    logger.warning("%s: its file system has no locks (%s); see to it that one process trains in it", run_dir, why)


def check_place(run_dir: Path, resume: str | Path | None) -> None:
    """Raises RunError where the folder holds a run and `resume` is not given, or `resume` is no checkpoint of it."""
    if resume is None:
        if holds_run(run_dir):
            raise RunError(
                f"{run_dir} already holds a run; continue it with --resume auto, or start another with --name NAME"
            )
    elif resume != "auto":
        checkpoint = Path(resume)
        if not (checkpoint / STATE_FILE).is_file():
            raise RunError(f"--resume {resume}: {_no_checkpoint(checkpoint, run_dir)}")
        if checkpoint.parent.resolve() != (run_dir / CHECKPOINTS_DIR).resolve():
            raise RunError(f"--resume {resume}: not a checkpoint of {run_dir}; set --name and --output-dir to its run")


def _no_checkpoint(folder: Path, run_dir: Path) -> str:
    """Why `folder` is none to resume from, and what to give instead."""
    why = f"not a checkpoint (no {STATE_FILE} in it)" if folder.exists() else "no such folder"
    for place in (folder, folder / CHECKPOINTS_DIR, run_dir / CHECKPOINTS_DIR):
        there = list_checkpoints(place)
        if there:
            told = f"give auto for the newest, or one of {', '.join(map(str, there[-3:]))}"
            return f"{why}; {told if place.parent.resolve() == run_dir.resolve() else _of_another(there[-1])}"
    return f"{why}; {run_dir} has no checkpoints: give auto to begin it, or set --name and --output-dir to its run"


def _of_another(checkpoint: Path) -> str:
    run = checkpoint.parent.parent.resolve()
    return f"there is {checkpoint}, of another run: set --name {run.name} and --output-dir {run.parent} for it"


def holds_run(run_dir: Path) -> bool:
    """Whether `train` would refuse the folder without `--resume`."""
    return (run_dir / RECIPE_FILE).exists() and has_steps(run_dir)


def words_on_beginning(run_dir: Path) -> str:
    """What `--resume auto` finds where there is nothing to go on with, and the run that may have been meant."""
    others = [file.parent.name for file in run_dir.parent.glob(f"*/{RECIPE_FILE}") if file.parent != run_dir]
    near = difflib.get_close_matches(run_dir.name, others, n=1)
    meant = f"; if you meant {run_dir.with_name(near[0])}, stop this and give its --name" if near else ""
    return f"{run_dir} holds no run to resume: it begins{meant}."


def has_steps(run_dir: Path) -> bool:
    """Whether there is something to continue: a run that failed before its first step is simply started again."""
    log = run_dir / METRICS_FILE
    records = metrics_log.read(log) if log.is_file() else []
    return bool(list_checkpoints(run_dir / CHECKPOINTS_DIR)) or any("loss" in record for record in records)


def is_finished(recipe: Recipe) -> bool:
    """Whether the run has come to the end that the recipe asks for; one that a callback ended before has not, as long
    as there is a checkpoint to go on from."""
    summary, file = recipe.run_dir / SUMMARY_FILE, recipe.run_dir / RECIPE_FILE
    if not summary.is_file():
        return False
    asked = load_recipe(file).train.rollouts if file.is_file() else recipe.train.rollouts
    steps = read_record(summary).get("steps", asked)
    ended = steps >= asked or not list_checkpoints(recipe.run_dir / CHECKPOINTS_DIR)
    return ended and asked == recipe.train.rollouts


def reopen(run_dir: Path) -> None:
    """Takes away what only a finished run has; first of all what says that it is finished."""
    (run_dir / SUMMARY_FILE).unlink(missing_ok=True)
    if (run_dir / ADAPTER_DIR).is_dir():
        remove_checkpoint(run_dir / ADAPTER_DIR)
