"""`metrics.jsonl`: one JSON object per line and step, whole after a kill at any moment.

A line is durable when :meth:`MetricsLog.append` returns. A kill during the write can leave a torn last line, one
without its newline; readers skip it and the next append or truncation removes it. Any other unreadable line is damage
and an error.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sharevl_lite.atomic import sync_directory, write_atomically
from sharevl_lite.errors import UserError


class MetricsError(UserError):
    """A metrics file or record that cannot be used; the message says which and why."""


class MetricsLog:
    """Appends records to one file. The file is opened anew each time, so a truncation by another log is seen."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record and wait until it is on the disk.

        Args:
            record: Numbers, text, None, numpy and torch scalars; NaN and infinities are written as null. `step` (int)
                is required: a resumed run cuts the log by it.

        Raises:
            MetricsError: `step` is missing or a value is something else.
        """
        _step_of(record, "record")
        line = json.dumps({str(key): _plain(value, str(key)) for key, value in record.items()}, allow_nan=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not self.path.exists()
        with open(self.path, "ab") as file:
            file.truncate(_whole_length(self.path))
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if fresh:
            sync_directory(self.path.parent)

    def truncate_after(self, step: int, *, without: str | None = None) -> int:
        """Drop the records of later steps, those with the key `without` and a torn last line; returns how many whole
        records were dropped.

        The rewrite is atomic. A missing file has nothing to drop.
        """
        if not self.path.exists():
            return 0
        lines = _whole_lines(self.path)
        records = [_parse(self.path, number, line) for number, line in enumerate(lines, 1)]
        kept = [
            line
            for line, (record, where) in zip(lines, records, strict=True)
            if _step_of(record, where) <= step and without not in record
        ]
        write_atomically(self.path, b"".join(kept))
        return len(lines) - len(kept)


def read(path: str | Path) -> list[dict[str, Any]]:
    """All whole records, oldest first; a torn last line is skipped.

    Raises:
        FileNotFoundError: there is no such file.
        MetricsError: a line that ends in a newline is not a JSON object.
    """
    path = Path(path)
    return [_parse(path, number, line)[0] for number, line in enumerate(_whole_lines(path), 1)]


def read_sound(path: str | Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The whole records with a step that can be read, oldest first, and what is wrong with each other line: for those
    who show a log, and must not mistake it for whole.

    Raises:
        OSError: the file cannot be read.
    """
    path = Path(path)
    sound, faults = list[dict[str, Any]](), list[str]()
    for number, line in enumerate(_whole_lines(path), 1):
        try:
            record, where = _parse(path, number, line)
            _step_of(record, where)
        except MetricsError as error:
            faults.append(str(error))
        else:
            sound.append(record)
    return sound, faults


def _whole_lines(path: Path) -> list[bytes]:
    """Lines that end in a newline, with it; what follows the last newline is torn."""
    return [line + b"\n" for line in path.read_bytes().split(b"\n")[:-1]]


def _whole_length(path: Path) -> int:
    """Bytes up to and including the last newline."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(-1, os.SEEK_END)
            if file.read() == b"\n":
                return size
    return sum(len(line) for line in _whole_lines(path))


def _parse(path: Path, number: int, line: bytes) -> tuple[dict[str, Any], str]:
    """The record of a line and where it stands."""
    where = f"{path}:{number}"
    try:
        record = json.loads(line)
    except ValueError as error:
        why = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise MetricsError(f"{where}: not a JSON object ({why}); the file is damaged, remove the line") from error
    if not isinstance(record, dict):
        raise MetricsError(
            f"{where}: holds {type(record).__name__}, not an object; the file is damaged, remove the line"
        )
    return record, where


def _step_of(record: Mapping[str, Any], where: str) -> int:
    step = record.get("step")
    if not isinstance(step, int) or isinstance(step, bool):
        raise MetricsError(f"{where}: needs an int `step`, got {step!r}")
    return step


def _plain(value: Any, key: str) -> Any:
    """`value` as JSON has it, non-finite numbers as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if hasattr(value, "item"):
        try:
            return _plain(value.item(), key)
        except (RuntimeError, ValueError) as error:
            raise MetricsError(f"record[{key}]: {error}; log a number, not an array") from error
    raise MetricsError(f"record[{key}]: {type(value).__name__} cannot be logged; log a number or text")
