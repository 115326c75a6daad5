"""Files and folders that appear under their name only when they are whole and on the disk.

Content goes to a temporary name in the same folder (a rename across file systems is a copy), is fsynced, renamed, and
the folder is fsynced, so that neither SIGKILL nor a power cut leaves half a file under a final name. What a kill does
leave is the temporary: its name starts with a dot and `TEMPORARY`, readers skip it, and
:func:`remove_stale_temporaries` takes it away. A folder that takes hours to fill is :func:`staged`: its age
says nothing, a lock says that its writer lives.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY = ".tmp-"
TOKEN_BYTES = 6
STALE_SECONDS = 3600.0
"""Age at which a temporary has surely lost its writer; none takes an hour."""


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[int]:
    """Holds a lock on a folder that is there, and gives its descriptor; the lock ends with the process.

    Raises BlockingIOError where another process holds it, and another OSError where the file system has no locks.
    """
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def temporary_beside(final: str | Path) -> Path:
    """A fresh hidden name in the folder of `final`, for content on its way there."""
    final = Path(final)
    return final.with_name(f"{TEMPORARY}{secrets.token_hex(TOKEN_BYTES)}-{final.name}")


def write_atomically(path: str | Path, content: bytes | Callable[[BinaryIO], object]) -> Path:
    """Write a file so that `path` holds either what it held before or all of `content`; returns `path`.

    Args:
        path: the final name; an existing file is replaced. Its folder must exist.
        content: the bytes, or a function that writes them to the open file it is given (and does not close it).

    Raises:
        OSError: the disk is full, the folder is missing, …; the temporary is removed and `path` is as before.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        with open(temporary, "xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
    return path


def write_json(path: str | Path, value: Any, *, indent: int | None = None) -> Path:
    """Write a value as JSON and a line's end, as :func:`write_atomically` does."""
    return write_atomically(path, (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode())


def publish_directory(temporary: str | Path, final: str | Path, *, replace: bool = False) -> Path:
    """Give a finished folder its final name; returns the final path.

    Every file and folder in it is fsynced first. With `replace`, an older folder of that name is moved aside and then
    deleted; a kill between the two renames leaves no folder under the name, never a partial one.

    Args:
        temporary: the folder as written, named by :func:`temporary_beside` so that a kill leaves no visible rest.
        final: its name from now on, in the same parent folder.
        replace: whether a folder that already has the name gives way.

    Raises:
        FileExistsError: `final` exists and `replace` is false.
        ValueError: the two do not lie in the same folder, so that the rename might not be atomic.
    """
    temporary, final = Path(temporary), Path(final)
    if temporary.parent.resolve() != final.parent.resolve():
        raise ValueError(
            f"{temporary} must lie in the folder of {final}; name it with temporary_beside({str(final)!r})"
        )
    if not temporary.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "no folder to publish", str(temporary))
    if final.exists() and not replace:
        raise FileExistsError(errno.EEXIST, "already published; remove it or pass replace=True", str(final))
    sync_tree(temporary)
    replaced = None
    if final.exists():
        replaced = temporary_beside(final)
        os.rename(final, replaced)
    os.rename(temporary, final)
    sync_directory(final.parent)
    if replaced is not None:
        shutil.rmtree(replaced)
    return final


def remove_stale_temporaries(folder: str | Path, older_than_seconds: float = STALE_SECONDS) -> list[Path]:
    """Remove what killed writers left in `folder`; returns the names removed.

    A temporary younger than `older_than_seconds` may have a live writer in another process and stays. Pass 0 where no
    other writer can exist. A missing folder holds nothing.
    """
    removed = []
    youngest = time.time() - older_than_seconds
    for entry in sorted(Path(folder).glob(f"{TEMPORARY}*")):
        with contextlib.suppress(FileNotFoundError):  # another writer cleans too, or has just renamed it
            if entry.stat().st_mtime > youngest:
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
            removed.append(entry)
    return removed


@contextlib.contextmanager
def staged(final: str | Path) -> Iterator[Path]:
    """A folder to fill, named by :func:`temporary_beside` and held by a lock; gone at the end unless it was published.

    What killed writers left for the same final name is removed first. On a file system without locks it stays, since
    nothing there tells it from the work of another process.

    Raises OSError where the folder cannot be made.
    """
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(final)
    folder = temporary_beside(final)
    folder.mkdir()
    try:
        with contextlib.ExitStack() as lock:
            with contextlib.suppress(OSError):  # no locks here
                lock.enter_context(locked(folder))
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(final: str | Path) -> None:
    """Remove the folders of this final name that were :func:`staged` and that nobody holds any more, however young."""
    final = Path(final)
    token = "[0-9a-f]" * (2 * TOKEN_BYTES)  # a * would take those of x-name for those of name
    for left in final.parent.glob(f"{TEMPORARY}{token}-{glob.escape(final.name)}"):
        with contextlib.suppress(OSError), locked(left):  # its writer may be alive
            shutil.rmtree(left)


def sync_directory(folder: str | Path) -> None:
    """Make the names in `folder` durable: a rename or unlink is, only after this."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make all files and names below `folder` durable."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            with open(Path(parent) / name, "rb") as file:
                os.fsync(file.fileno())
        sync_directory(parent)
