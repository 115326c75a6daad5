"""Replies of models in SQLite, so that none is paid for twice, whenever the process dies and however many share it.

A request is known by a hash of the model, the prompt, the images and the parameters; no address, key or question is
stored, only replies. A claim marks a request under way; another process that wants it waits for the reply, and takes
the claim over when its owner's process is gone or the claim is too old.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sqlite3
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from sharevl_lite.rewrite.errors import VariantsError

BUSY_SECONDS = 60.0
STALE_SECONDS = 900.0
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Reply:
    """What a model said, and its cost: tokens read, tokens written, seconds."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0


class ReplyCache:
    """The replies in one file. Raises VariantsError where the file is no such cache."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._owner = f"{socket.gethostname()}:{secrets.token_hex(4)}:{os.getpid()}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            self._switch_to_wal()
            self._base.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, text TEXT, tokens_in INT, tokens_out INT, "
                "seconds REAL)"
            )
            self._base.execute("CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT, since REAL)")
        except (sqlite3.Error, OSError) as error:
            raise VariantsError(
                f"{path}: cannot be used as a cache ({error}); give another file with --cache"
            ) from error

    def _switch_to_wal(self) -> None:
        """Two processes that do this at once see "locked" without SQLite's own waiting: the later one tries again."""
        until = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._base.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def get(self, key: str) -> Reply | None:
        """The stored reply, if any."""
        row = self._base.execute(
            "SELECT text, tokens_in, tokens_out, seconds FROM replies WHERE key=?", (key,)
        ).fetchone()
        return None if row is None else Reply(*row)

    async def get_or_ask(self, key: str, ask: Callable[[], Awaitable[Reply]]) -> tuple[Reply, bool]:
        """The reply, and whether it was asked for now. What `ask` raises passes through; its claim is given up."""
        while True:
            known = self.get(key)
            if known is not None:
                return known, False
            if self._claim(key):
                break
            await asyncio.sleep(POLL_SECONDS)
        try:
            known = self.get(key)  # the former owner may have stored it between our look and our claim
            if known is not None:
                return known, False
            reply = await ask()
            self._base.execute(
                "INSERT OR REPLACE INTO replies VALUES (?,?,?,?,?)",
                (key, reply.text, reply.tokens_in, reply.tokens_out, reply.seconds),
            )
            return reply, True
        finally:
            self._base.execute("DELETE FROM claims WHERE key=? AND owner=?", (key, self._owner))

    def _claim(self, key: str) -> bool:
        now = time.time()
        done = self._base.execute("INSERT OR IGNORE INTO claims VALUES (?,?,?)", (key, self._owner, now))
        if done.rowcount == 1:
            return True
        row = self._base.execute("SELECT owner, since FROM claims WHERE key=?", (key,)).fetchone()
        if row is None or (now - row[1] < STALE_SECONDS and not self._is_gone(row[0])):
            return False
        taken = self._base.execute(
            "UPDATE claims SET owner=?, since=? WHERE key=? AND owner=? AND since=?", (self._owner, now, key, *row)
        )
        return taken.rowcount == 1

    def _is_gone(self, owner: str) -> bool:
        """Whether the owner was a process of this machine that has ended. An own claim is that of another task."""
        host, _, process = owner.split(":")
        if host != socket.gethostname() or owner == self._owner:
            return False
        if int(process) == os.getpid():
            return True  # a container that starts anew gives out the same numbers
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def close(self) -> None:
        """Close the file."""
        self._base.close()
