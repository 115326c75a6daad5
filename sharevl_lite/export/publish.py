"""A folder that holds an export only when it was written and verified.

It is built under a hidden name beside the final one, and renamed at the end. A folder that is there already, empty, is
not replaced: it may be a mount point, the current folder or a link's target. There the hidden folder lies inside it, on
the same disk, and its files are moved up at the end, those without which nothing is loaded last. A writer holds a lock
on what it builds, so that what a killed one left is told from the work of another process and taken away by the next
export of that name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from sharevl_lite.atomic import TEMPORARY, publish_directory, remove_leftovers, staged, sync_directory, sync_tree
from sharevl_lite.export.errors import ExportError
from sharevl_lite.policy.folder import ADAPTER_CONFIG, CONFIG_FILE

_REFUSALS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
MARGIN_BYTES = 64 * 1024**2
"""Room beside the weights: tokenizer, card, what the file system keeps."""


def resolved(folder: Path) -> Path:
    """The folder itself, without links, dots and the current folder."""
    return Path(os.path.realpath(folder))


def check_target(folder: Path) -> None:
    """Raises ExportError where the folder is there and not empty, but for what exports under way or killed keep."""
    try:
        taken = folder.is_dir() and any(not _is_nobodys(entry.name) for entry in folder.iterdir())
    except OSError as error:
        raise ExportError(f"--to {folder}: cannot be read ({error}); name another folder") from error
    if taken:
        raise ExportError(f"--to {folder}: the folder is not empty; name a new one, or remove it")
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"--to {folder}: is a file; name a folder")


def _is_nobodys(name: str) -> bool:
    """Whether a file system, a file manager or an export has put something there by itself."""
    return name in ("lost+found", ".DS_Store") or name.startswith(TEMPORARY)


def check_space(folder: Path, need: int) -> None:
    """Raises ExportError where the disk of the folder has less than `need` bytes and a margin."""
    place = resolved(folder)
    there = next(parent for parent in (place, *place.parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    if free < need + MARGIN_BYTES:
        raise ExportError(
            f"--to {folder}: the export needs {_gib(need + MARGIN_BYTES)}, the disk of {there} has {_gib(free)} free; "
            "free some, or name a folder on another disk"
        )


@contextlib.contextmanager
def published(folder: Path) -> Iterator[Path]:
    """A folder to write into, whose files are those of `folder` when the block ends well, and which is removed when it
    does not.

    Raises ExportError where `folder` cannot be written, the disk is full on the way, or it is not empty at the end.
    """
    final = resolved(folder)
    inside = final / final.name
    with contextlib.ExitStack() as stack:
        try:
            for name in (final, inside):
                remove_leftovers(name)
            staging = stack.enter_context(staged(inside if final.is_dir() else final))
        except OSError as error:
            raise ExportError(f"--to {folder}: cannot be written ({error}); name another folder") from error
        with _told_where_the_disk_is_full(folder):
            yield staging
        check_target(final)
        if final.is_dir():
            _move_up(staging, final)
        else:
            publish_directory(staging, final)


@contextlib.contextmanager
def _told_where_the_disk_is_full(folder: Path) -> Iterator[None]:
    """Raises ExportError for what a disk, a quota or a limit on files refuses to Python or to safetensors."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        found = re.search(r"os error (\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        if number not in _REFUSALS:
            raise
        raise ExportError(
            f"--to {folder}: {os.strerror(number)}; what was written is removed. Free some space or raise the limit, "
            "or name a folder on another disk"
        ) from error


def _move_up(staging: Path, final: Path) -> None:
    sync_tree(staging)
    last = (CONFIG_FILE, ADAPTER_CONFIG)
    for entry in sorted(staging.iterdir(), key=lambda entry: entry.name in last):
        entry.rename(final / entry.name)
    staging.rmdir()
    sync_directory(final)


def _gib(size: int) -> str:
    return f"{size / 1024**3:.2f} GiB"
