"""A folder that appears under its name only when it was written and verified.

It is built under a hidden name beside the final one, and renamed at the end. A writer holds a lock on what it builds,
so that what a killed one left is told from the work of another process and taken away by the next export of that name.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from sharevl_lite.atomic import TEMPORARY, locked, publish_directory, temporary_beside
from sharevl_lite.export.errors import ExportError

MARGIN_BYTES = 64 * 1024**2
"""Room beside the weights: tokenizer, card, what the file system keeps."""


def check_target(folder: Path) -> None:
    """Raises ExportError where the folder is there and not empty."""
    if folder.is_dir() and any(folder.iterdir()):
        raise ExportError(f"--to {folder}: the folder is not empty; name a new one, or remove it")
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"--to {folder}: is a file; name a folder")


def check_space(folder: Path, need: int) -> None:
    """Raises ExportError where the disk of the folder has less than `need` bytes and a margin."""
    there = next(parent for parent in folder.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(there).free
    if free < need + MARGIN_BYTES:
        raise ExportError(
            f"--to {folder}: the export needs {_gib(need + MARGIN_BYTES)}, the disk of {there} has {_gib(free)} free; "
            "free some, or name a folder on another disk"
        )


@contextlib.contextmanager
def published(folder: Path) -> Iterator[Path]:
    """A folder to write into, which gets the name `folder` when the block ends well, and is removed when it does
    not."""
    staging = temporary_beside(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        staging.mkdir()
    except OSError as error:
        raise ExportError(f"--to {folder}: cannot be written ({error}); name another folder") from error
    try:
        with locked(staging):
            yield staging
            check_target(folder)
            if folder.is_dir():
                folder.rmdir()
            publish_directory(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _remove_leftovers(folder: Path) -> None:
    for left in folder.parent.glob(f"{TEMPORARY}*-{folder.name}"):
        with contextlib.suppress(OSError), locked(left):  # its writer may be alive
            shutil.rmtree(left)


def _gib(size: int) -> str:
    return f"{size / 1024**3:.2f} GiB"
