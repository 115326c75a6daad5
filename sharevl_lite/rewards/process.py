"""One verifier process, seen from the trainer: start it, hand it an item, collect its replies, kill it.

A plain child process on pipes, not `multiprocessing`: a fork would copy a parent that holds threads and a CUDA context,
and spawn and forkserver import the user's `__main__` again, which starts a second training when a script has no
`if __name__ == "__main__"` guard, and does not work from every notebook.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

_ALARM_GRACE_SECONDS = 2.0  # the process's own alarm is for orphans only: the pool's kill comes first
_READ_BYTES = 65536


class WorkerProcess:
    """A started verifier process. `deadline` (monotonic seconds) is when its present work, or its start, is overdue."""

    def __init__(self, start_seconds: float) -> None:
        """Start the process; it says on its own when it is ready, at the latest after `start_seconds`."""
        environment = dict(os.environ)
        # The parent's module path, so that both run the same code, however the parent came to find it.
        environment["PYTHONPATH"] = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        environment["PYTHONHASHSEED"] = "0"  # sympy orders by hash: the same answer gets the same verdict in every run
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-m", "sharevl_lite.rewards.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is the trainer's to handle
        )
        self.ready = False
        self.task: tuple[str, str] | None = None
        self.deadline = time.monotonic() + start_seconds
        self._unread = b""

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def fileno(self) -> int:
        """The descriptor to wait on for replies."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def give(self, task: tuple[str, str], seconds: float, tolerance: float) -> bool:
        """Hand over (extracted answer, gold), to be done within `seconds`; False if the process is dead already."""
        assert self._process.stdin is not None
        line = json.dumps([*task, tolerance, seconds + _ALARM_GRACE_SECONDS]).encode() + b"\n"
        try:
            while line:
                line = line[self._process.stdin.write(line) :]
        except BrokenPipeError:
            return False
        self.task, self.deadline = task, time.monotonic() + seconds
        return True

    def read(self) -> list[dict[str, Any]] | None:
        """Replies that have arrived, when the descriptor is readable; None when the process closed it: it is dying."""
        received = os.read(self.fileno(), _READ_BYTES)
        if not received:
            return None
        *lines, self._unread = (self._unread + received).split(b"\n")
        return [json.loads(line) for line in lines]

    def kill(self, patience: float = 0.0) -> str:
        """End the process, whatever it is doing; returns how it ended.

        A process that is dying by itself gets `patience` seconds to do so, for its own ending to be known.
        """
        try:
            code = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
